"""The guard of a running program: compares the ranks' collectives while they run, over a store."""

from collective_rules.live.comparer import ALWAYS, EXIT, RankComparer

__all__ = ["ALWAYS", "EXIT", "RankComparer"]

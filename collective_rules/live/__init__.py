"""Comparison of ranks while they run, over the store of the job."""

from collective_rules.live.comparer import ALWAYS, EXIT, RankComparer

__all__ = ["ALWAYS", "EXIT", "RankComparer"]

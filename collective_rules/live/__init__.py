"""Comparison of ranks while they run, over the store of the job."""

from collective_rules.live.comparer import EXIT, RankComparer
from collective_rules.live.session import ALWAYS

__all__ = ["ALWAYS", "EXIT", "RankComparer"]

"""The ops: which rule each follows, and how its arguments play the rule's parts."""

from collective_rules.ops.exclusions import EXCLUSIONS
from collective_rules.ops.groups import GROUP_OPS
from collective_rules.ops.row import OPS, Argument, Output, Row, Spelling, lookup

__all__ = ["EXCLUSIONS", "GROUP_OPS", "OPS", "Argument", "Output", "Row", "Spelling", "lookup"]

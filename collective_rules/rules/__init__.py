"""The rules: what each collective does, stated once for the whole group."""

from collective_rules.rules.groups import GROUP_RULES
from collective_rules.rules.rule import KINDS, Form, Kind, Rule, Unsolvable, Volumes
from collective_rules.rules.table import RULES

__all__ = ["GROUP_RULES", "KINDS", "RULES", "Form", "Kind", "Rule", "Unsolvable", "Volumes"]

"""The rules: what each collective does, stated once for the whole group."""

from collective_rules.rules.rule import KINDS, Form, Kind, Rule, Unsolvable, Volumes
from collective_rules.rules.table import RULES

__all__ = ["KINDS", "RULES", "Form", "Kind", "Rule", "Unsolvable", "Volumes"]

"""The dispatch mode: the rules, applied to a running program. What it saw is a `Ledger`."""

from collective_rules.mode.echo import EchoError
from collective_rules.mode.ledger import Entry, Key, Ledger, Total
from collective_rules.mode.mode import RuleMode

__all__ = ["EchoError", "Entry", "Key", "Ledger", "RuleMode", "Total"]

"""The dispatch mode: the rules, applied to a running program. What it saw is a `Ledger`."""

from collective_rules.ledger import Entry, Key, Ledger, Total
from collective_rules.mode.dispatch_mode import RuleMode
from collective_rules.mode.simulated import EchoError

__all__ = ["EchoError", "Entry", "Key", "Ledger", "RuleMode", "Total"]

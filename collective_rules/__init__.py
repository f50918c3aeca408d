"""One table that says, for every PyTorch collective, what its sizes must be, and functions that read it."""

import warnings

with warnings.catch_warnings():
    # torch warns once where numpy is not installed; nothing here needs numpy.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch as _torch

from collective_rules.agree import agree
from collective_rules.call import Call, call
from collective_rules.check import check
from collective_rules.errors import (
    CallError,
    CollectiveRulesError,
    DisagreementError,
    NotationError,
    UnknownOpError,
)
from collective_rules.finding import Finding
from collective_rules.infer import infer
from collective_rules.mode import EchoError, Entry, Ledger, RuleMode
from collective_rules.ops import EXCLUSIONS, OPS, Row, lookup
from collective_rules.rules import RULES, Rule
from collective_rules.spec import Group, Spec
from collective_rules.traffic import Traffic, traffic

__all__ = [
    "Call",
    "CallError",
    "CollectiveRulesError",
    "DisagreementError",
    "EchoError",
    "Entry",
    "Finding",
    "Group",
    "Ledger",
    "NotationError",
    "Row",
    "Rule",
    "RuleMode",
    "Spec",
    "Traffic",
    "UnknownOpError",
    "agree",
    "call",
    "check",
    "exclusions",
    "infer",
    "lookup",
    "ops",
    "rules",
    "traffic",
]

__version__ = "0.1.0"

del _torch, warnings


def ops() -> tuple[str, ...]:
    """Return the names of all ops that have a rule.

    >>> "c10d::allreduce_" in ops()
    True
    """
    return tuple(OPS)


def rules() -> tuple[Rule, ...]:
    """Return all rules."""
    return tuple(RULES.values())


def exclusions() -> dict[str, str]:
    """Return the ops of the collective namespaces that have no rule, each with the reason."""
    return dict(EXCLUSIONS)

"""One table that says, for every PyTorch collective, what its sizes must be, and functions that read it."""

import importlib
import warnings

with warnings.catch_warnings():
    # torch warns once where numpy is not installed; nothing here needs numpy.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch as _torch

from collective_rules.agree import agree
from collective_rules.call import UNKNOWN, Call, call
from collective_rules.check import check
from collective_rules.conventions import chakra_comm_size, collective_op_bytes
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
    "UNKNOWN",
    "Call",
    "CallError",
    "CollectiveRulesError",
    "DisagreementError",
    "EchoError",
    "Entry",
    "Finding",
    "Group",
    "Ledger",
    "LedgerWriter",
    "NotationError",
    "Row",
    "Rule",
    "RuleMode",
    "Spec",
    "Traffic",
    "UnknownOpError",
    "agree",
    "call",
    "chakra_comm_size",
    "check",
    "collective_op_bytes",
    "dry_run",
    "exclusions",
    "infer",
    "lookup",
    "ops",
    "precheck",
    "rules",
    "run_script",
    "traffic",
]

__version__ = "0.1.0"

_LATER = {
    "dry_run": "collective_rules.dryrun",
    "run_script": "collective_rules.dryrun",
    "precheck": "collective_rules.live.precheck",
    "LedgerWriter": "collective_rules.recordings",
}
"""What is imported when it is first asked for: it needs much of torch that the rules do not."""

del _torch, warnings


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'collective_rules' has no attribute {name!r}")


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

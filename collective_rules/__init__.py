"""One table that says, for every PyTorch collective, what its sizes must be, and functions that read it."""

import importlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

with warnings.catch_warnings():
    # torch warns once where numpy is not installed; nothing here needs numpy.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch as _torch

from collective_rules.backends import Backend
from collective_rules.call import UNKNOWN, Call, call
from collective_rules.check import check
from collective_rules.errors import (
    CallError,
    CollectiveRulesError,
    DisagreementError,
    NotationError,
    SimulationError,
    UnknownOpError,
)
from collective_rules.finding import Finding
from collective_rules.infer import infer
from collective_rules.ops import EXCLUSIONS, OPS, Row, lookup
from collective_rules.rules import RULES, Rule
from collective_rules.spec import Group, Spec
from collective_rules.traffic import Traffic, traffic

if TYPE_CHECKING:
    from collective_rules.agreement.agree import agree
    from collective_rules.comparison.precheck import precheck
    from collective_rules.conventions import chakra_comm_size, collective_op_bytes
    from collective_rules.dryrun import dry_run, run_script
    from collective_rules.guarding.guard import guard
    from collective_rules.ledger import Entry, Ledger
    from collective_rules.recordings import LedgerWriter
    from collective_rules.rule_mode import RuleMode

__all__ = [
    "UNKNOWN",
    "Backend",
    "Call",
    "CallError",
    "CollectiveRulesError",
    "DisagreementError",
    "Entry",
    "Finding",
    "Group",
    "Ledger",
    "LedgerWriter",
    "NotationError",
    "Row",
    "Rule",
    "RuleMode",
    "SimulationError",
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
    "guard",
    "infer",
    "lookup",
    "ops",
    "precheck",
    "rules",
    "run_script",
    "traffic",
]

__version__ = "0.1.0"

_ON_DEMAND = {
    "Entry": "collective_rules.ledger",
    "Ledger": "collective_rules.ledger",
    "LedgerWriter": "collective_rules.recordings",
    "RuleMode": "collective_rules.rule_mode",
    "agree": "collective_rules.agreement.agree",
    "chakra_comm_size": "collective_rules.conventions",
    "collective_op_bytes": "collective_rules.conventions",
    "dry_run": "collective_rules.dryrun",
    "guard": "collective_rules.guarding.guard",
    "precheck": "collective_rules.comparison.precheck",
    "run_script": "collective_rules.dryrun",
}
"""Name → the module that has it, imported when the name is first used: it takes long, and many programs never ask."""

if not TYPE_CHECKING:  # a type checker sees the imports above, and refuses any other name

    def __getattr__(name: str) -> object:
        if name not in _ON_DEMAND:
            raise AttributeError(f"module 'collective_rules' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_ON_DEMAND[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


del _torch, warnings


def ops() -> Mapping[str, Row]:
    """Return the table of ops: the name of each op that has a rule, and its row.

    >>> ops()["c10d::allreduce_"].notation
    'tensors[i]: *s -> tensors[i]: *s'
    """
    return _Rows()


def rules() -> Mapping[str, Rule]:
    """Return the table of rules: the name of each rule, and the rule.

    >>> [form.text for form in rules()["all_reduce"].forms][0]
    'input: *s -> output: *s'
    """
    return dict(RULES)


def exclusions() -> Mapping[str, str]:
    """Return the ops of the collective namespaces that have no rule, each with the reason."""
    return dict(EXCLUSIONS)


class _Rows(Mapping[str, Row]):
    """Looks up the row of an op when it is asked for: to look all of them up takes long."""

    def __getitem__(self, op: str) -> Row:
        if op not in OPS:
            raise KeyError(op)
        return lookup(op)

    def __iter__(self) -> Iterator[str]:
        return iter(OPS)

    def __len__(self) -> int:
        return len(OPS)

"""`collective-rules list`: the ops, each with its rule and its notation.

`--json`: {"torch": version, "ops": [{"op", "rule", "notation", "since", "available"}]}, in the order of the tables.
`since` is the first torch version that has the op, "" where the oldest supported one has it; `available` says whether
the running torch has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
import typer

from collective_rules.cli.output import AsJson, CommandError, Report, suggestion
from collective_rules.errors import UnknownOpError
from collective_rules.ops import OPS, lookup
from collective_rules.rules import RULES
from collective_rules.text_table import Table


def list_ops(
    namespace: Annotated[str | None, typer.Option(help="Only the ops of one namespace, such as c10d.")] = None,
    rule: Annotated[str | None, typer.Option(help="Only the ops that follow one rule, such as all_gather.")] = None,
    as_json: AsJson = False,
) -> Report:
    """List the ops, each with its rule and its notation."""
    namespaces = list(dict.fromkeys(op.partition("::")[0] for op in OPS))
    _must_be_among(namespaces, "namespace", namespace)
    _must_be_among(RULES, "rule", rule)
    chosen = [
        _described(op)
        for op, entry in OPS.items()
        if namespace in (None, op.partition("::")[0]) and rule in (None, entry.rule)
    ]
    columns = ("op", "rule", "notation", "since")
    table = Table(columns, tuple(tuple(one[column] for column in columns) for one in chosen))
    nothing = f"no op of the namespace {namespace} follows the rule {rule}"
    return Report({"torch": str(torch.__version__), "ops": chosen}, (table if chosen else nothing,), as_json)


def _must_be_among(names: Iterable[str], option: str, name: str | None) -> None:
    if name is not None and name not in names:
        raise CommandError(f"no {option} {name!r}{suggestion(name, names)} (there are {', '.join(names)})")


def _described(op: str) -> dict[str, Any]:
    entry = OPS[op]
    try:
        row = lookup(op)
        notation, available = row.notation, row.available
    except UnknownOpError:  # an op that a newer torch has dropped
        notation, available = RULES[entry.rule].notation, False
    return {"op": op, "rule": entry.rule, "notation": notation, "since": entry.since, "available": available}

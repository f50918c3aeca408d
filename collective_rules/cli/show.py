"""`collective-rules show`: all facts of the tables about one op.

`--json`, one object:

- `op`, `namespace`, `rule`, `title`, `source`, `defined_in`: text. `torch`: the running version; `available`: whether
  it has the op. `since`: the first version that has it, "" where the oldest supported one does.
- `forms`: [{`name`, `notation` (in the op's own arguments), `rule` (the rule's own text), `flat`}], the usual first.
- `reads`, `writes`: names. `returns`: [{`name`, `kind`: "argument", "fresh", "empty" or "work"}].
- `arguments`: [{`name`, `type` (such as "Tensor[][]", with "?" where it may be None), `role`, `layout` (null for what
  is no tensor)}], in the schema's order.
- `group`, `group_size`, `reduce_op`, `root`, `peer`, `tag`: the argument that holds it, or null. `splits`: {part of the
  rule: {`argument` or null, `empty`: "even" or "none"}}.
- `agreed`: [{`name`, `argument` or null}]. `constraints`: [{`id`, `kind`, `says`}]. `notes`: sentences.
- `limits`: [{`backend`, `id`, `severity`, `says`, `advice`, `from_size`}].
- `traffic`: {`sent`, `buffer`, `bus_factor`}, in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
import typer

from collective_rules.backends import BACKENDS, limits_of
from collective_rules.cli.output import AsJson, Report
from collective_rules.ops import Argument, Row, lookup
from collective_rules.reference import notes, returned, summary
from collective_rules.rules import KINDS
from collective_rules.text_table import Table

_ROLES = ("group_size", "reduce_op", "root", "peer", "tag")


def show_op(
    op: Annotated[str, typer.Argument(metavar="OP", help="The op's qualified name, such as c10d::allreduce_.")],
    as_json: AsJson = False,
) -> Report:
    """Show one op: its rule in its own arguments, and every constraint and limit."""
    row = lookup(op)
    data = _described(row)
    return Report(data, tuple(_blocks(row, data)), as_json)


def _described(row: Row) -> dict[str, Any]:
    rule, entry = row.rule, row.entry
    roles = {role: getattr(row, role) or None for role in ("group", *_ROLES)}
    return {
        "op": row.op,
        "namespace": row.namespace,
        "rule": rule.name,
        "title": rule.title,
        "forms": [
            {"name": form.name, "notation": str(each.statement), "rule": form.text, "flat": form.flat}
            for each in row.spellings
            for form in [each.form]
        ],
        "reads": list(row.reads),
        "writes": list(row.writes),
        "returns": [{"name": output.name, "kind": output.kind} for output in row.returns],
        "arguments": [_argument(row, argument) for argument in row.arguments],
        **roles,
        "splits": {part: {"argument": split.argument, "empty": split.empty} for part, split in entry.splits.items()},
        "agreed": [{"name": name, "argument": entry.attributes.get(name)} for name in rule.agreed],
        "constraints": [{"id": id_, "kind": kind, "says": KINDS[kind].says} for id_, kind in rule.constraints.items()],
        "notes": list(notes(row)),
        "limits": [limit for backend in BACKENDS for limit in _limits(backend, row)],
        "traffic": {name: summary(getattr(rule.volumes, name)) for name in ("sent", "buffer", "bus_factor")},
        "source": rule.source,
        "defined_in": row.source,
        "since": entry.since,
        "available": row.available,
        "torch": str(torch.__version__),
    }


def _argument(row: Row, argument: Argument) -> dict[str, Any]:
    item = argument.kind.rpartition(".")[2] + "?" * argument.gaps
    type_ = item + "[]" * argument.depth + "?" * argument.optional
    layout = row.layout_of(argument.name) if argument.kind == "Tensor" else None
    return {"name": argument.name, "type": type_, "role": _role(row, argument), "layout": layout}


def _role(row: Row, argument: Argument) -> str:
    if argument.is_group:
        return "group"
    if argument.name in row.splits:
        part = next(part for part, split in row.entry.splits.items() if split.argument == argument.name)
        return f"split sizes of the {part}"
    for attribute, name in row.entry.attributes.items():
        if name == argument.name:
            return attribute.replace("_", " ")
    uses = ["read"] * (argument.name in row.reads) + ["written"] * (argument.name in row.writes)
    return " and ".join(uses)


def _limits(backend: str, row: Row) -> list[dict[str, Any]]:
    columns = ("id", "severity", "says", "advice", "from_size")
    return [
        {"backend": backend} | {name: getattr(limit, name) for name in columns} for limit in limits_of(backend, row)
    ]


_TABLES: Mapping[str, Mapping[str, str]] = {
    "forms": {"name": "form", "notation": "notation", "rule": "the rule's text"},
    "arguments": {"name": "argument", "type": "type", "role": "role", "layout": "layout"},
    "constraints": {"id": "id", "says": "what holds"},
    "limits": {"backend": "backend", "id": "id", "severity": "severity", "says": "it takes"},
}
"""By key of the data, the columns of its table, with their titles."""


def _blocks(row: Row, data: Mapping[str, Any]) -> Iterator[str | Table]:
    yield f"{row.op}: {row.notation}\n{row.rule.title}"
    yield Table((), tuple(_facts(row, data)))
    for name, columns in _TABLES.items():
        rows = tuple(tuple(str(item[key] or "") for key in columns) for item in data[name])
        if rows or name != "limits":
            yield Table(tuple(columns.values()), rows, name)
    if data["notes"]:
        yield "\n".join(["notes", *(f"  {note}" for note in data["notes"])])


def _facts(row: Row, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("rule", row.rule.name),
        ("reads", ", ".join(row.reads) or "nothing"),
        ("writes", ", ".join(row.writes) or "nothing"),
        ("returns", ", ".join(map(returned, row.returns)) or "nothing"),
        ("group", row.group or "no argument holds it"),
    ]
    facts += [(role.replace("_", " "), data[role]) for role in _ROLES if data[role]]
    facts += [("splits", ", ".join(row.splits))] if row.splits else []
    agreed = [
        each["name"] if each["argument"] in (None, each["name"]) else f"{each['name']} ({each['argument']})"
        for each in data["agreed"]
    ]
    traffic = data["traffic"]
    since = f"since {row.entry.since}; " if row.entry.since else ""
    return [
        *facts,
        ("agreed", ", ".join(["nothing: no other rank takes part"] if row.rule.one_sided else ["sizes", *agreed])),
        ("sent", traffic["sent"]),
        ("buffer S", traffic["buffer"]),
        ("bus factor", traffic["bus_factor"]),
        ("source", row.rule.source),
        ("defined in", row.source),
        ("torch", f"{since}{torch.__version__} {'has it' if row.available else 'does not have it'}"),
    ]

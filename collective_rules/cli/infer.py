"""`collective-rules infer`: the tensors that one rank's call writes and returns, its findings, and its traffic.

`--json`, one object:

- `op`: text. `group`: {`size`, `rank`}. `backend`: its name or null.
- `results`: {name: tensor or (nested) list of tensors}, null if the sizes have no solution. A tensor is {`shape`
  (null if it is unknown), `dtype`, `stride`, `alias` (the argument whose memory it is, null if fresh),
  `bytes`}.
- `findings`: [{`id`, `severity`, `message`, `ranks`, `names`, `group`, `index`, `count`, `op`}], errors first.
- `traffic`: {`read`, `written`, `sent`, `buffer`, `bus_factor`} in bytes, null if `results` is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import attrs
import typer

from collective_rules.call import Call, call
from collective_rules.check import check
from collective_rules.cli.argument_values import parse_arguments
from collective_rules.cli.output import AsJson, Backend, CommandError, Report
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, Finding
from collective_rules.infer import infer
from collective_rules.ops import lookup
from collective_rules.spec import Group, Spec
from collective_rules.text_table import Table
from collective_rules.traffic import Traffic, traffic

_MOST_RANKS = 1_000_000
"""Lists have an entry for each rank, and so has the answer."""

_COLUMNS = ("name", "is", "shape", "dtype", "stride", "memory", "bytes")


def infer_call(
    op: Annotated[str, typer.Argument(metavar="OP", help="The op's qualified name, such as c10d::allreduce_.")],
    group_size: Annotated[int, typer.Option(max=_MOST_RANKS, help="The number of ranks in the group.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="The op's arguments. A tensor is 16x4:bfloat16 (float32 if left out; 0d has no dims; strides as in "
            "16x4@1,16); a list is 4x3,4x3 or [4x3,4x3]; a list of lists is 4x3,4x3;2x3,2x3 or [[4x3,4x3],[2x3,2x3]]. "
            "Further: 3, true, false, none, and text.",
        ),
    ] = None,
    rank: Annotated[int, typer.Option(help="This rank's index in the group.")] = 0,
    backend: Backend = None,
    as_json: AsJson = False,
) -> Report:
    """Infer the tensors that one rank's call writes and returns, and check the call."""
    row = lookup(op)
    try:
        group = Group(group_size, rank)
    except CallError as error:
        raise CommandError(f"--group-size {group_size} --rank {rank}: {error}") from None
    made = call(row.op, group=group, **parse_arguments(row, arguments or ()))
    results, moved, findings = _judge(made, backend)
    data = {
        "op": row.op,
        "group": {"size": group_size, "rank": rank},
        "backend": backend,
        "results": None if results is None else _plain(results),
        "findings": [_plain(attrs.asdict(each, recurse=False)) for each in findings],
        "traffic": None if moved is None else attrs.asdict(moved),
    }
    status = int(any(each.severity == ERROR for each in findings))
    return Report(data, tuple(_blocks(made, results, moved, findings)), as_json, status)


def _judge(made: Call, backend: str | None) -> tuple[dict[str, Any] | None, Traffic | None, tuple[Finding, ...]]:
    findings = check(made, backend)
    try:
        return infer(made), traffic(made), findings
    except CallError as error:
        if not any(each.severity == ERROR for each in findings):
            findings = error.findings + findings
        if not findings:
            raise
        return None, None, findings


def _plain(value: Any) -> Any:
    """Return `value` as JSON has it."""
    if isinstance(value, Spec):
        has_shape = value.shape is not None
        return {
            "shape": list(value.shape) if has_shape else None,
            "dtype": None if value.dtype is None else _plain(value.dtype),
            "stride": list(value.stride) if has_shape else None,
            "alias": value.alias,
            "bytes": value.nbytes if has_shape and value.dtype is not None else None,
        }
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float)) else str(value).removeprefix("torch.")


def _blocks(
    made: Call, results: dict[str, Any] | None, moved: Traffic | None, findings: tuple[Finding, ...]
) -> Iterator[str | Table]:
    yield f"{made.op} on rank {made.group.rank} of {made.group.size}"
    if results:
        rows = tuple(row for name, value in results.items() for row in _rows(made, name, name, value))
        yield Table(_COLUMNS, rows, right=frozenset({"bytes"}))
    elif results is not None:
        yield "It writes no tensor and returns none."
    for each in findings:
        yield f"{each.severity}: {each.message}"
    if not findings:
        yield "Nothing wrong."
    if moved is not None:
        yield Table((), tuple(_traffic(moved)), "traffic")


def _traffic(moved: Traffic) -> Iterator[tuple[str, str]]:
    for name in ("read", "written", "sent", "buffer"):
        count = getattr(moved, name)
        yield "buffer S" if name == "buffer" else name, f"{count:.{int(count != int(count))}f} bytes"
    yield "bus factor", f"{moved.bus_factor:.6g}"


def _rows(made: Call, name: str, label: str, value: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(value, tuple) and value:
        for place, item in enumerate(value):
            yield from _rows(made, name, f"{label}[{place}]", item)
        return
    is_returned = any(name == output.name for output in made.row.returns)
    roles = ", ".join(["written"] * (name in made.row.writes) + ["returned"] * is_returned)
    if isinstance(value, tuple):
        yield label, roles, "no tensors", "", "", "", ""
    elif value is not None:
        yield label, roles, *_cells(name, value)


def _cells(name: str, spec: Spec) -> tuple[str, ...]:
    dtype = "?" if spec.dtype is None else _plain(spec.dtype)
    memory = "the argument" if spec.alias == name else spec.alias or "fresh"
    if spec.shape is None:
        return "?", dtype, "?", memory, "?"
    shape = "x".join(map(str, spec.shape)) or "0d"
    return shape, dtype, ",".join(map(str, spec.stride)), memory, str(spec.nbytes) if spec.dtype else "?"

"""The entries that gloo's own Flight Recorder makes of a call: a second witness of the traffic, which knows no rules.

TORCH_FR_BUFFER_SIZE asks for it, before torch is imported. It records the group of each collective, what gloo made of
it, and the sizes and dtypes that gloo was given. It does not record

- that groups are made;
- point-to-point calls and monitored_barrier, but it counts them;
- the reduce op, the root, split sizes, strides, and whether the caller waits;
- more of several outputs than how many the first list has, and the sizes of the first of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch

import collective_rules as cr
from collective_rules.rules import GROUP_RULES

BUFFER = {"TORCH_FR_BUFFER_SIZE": "20000"}
"""The environment for a Flight Recorder of that many entries."""

_SAME_NAMES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Bool")
_DTYPES = {getattr(torch, name.lower()): name for name in _SAME_NAMES}
_DTYPES |= {torch.int8: "Char", torch.uint8: "Byte"}
_POINT_TO_POINT = {"send", "recv", "batch_p2p"}
_AS_WRITTEN = {"all_to_all", "all_to_all_single"}

Sized = tuple[tuple[int, ...], str]


@attrs.frozen
class Recorded:
    """One entry of the recorder.

    - `name`: what gloo does, "all_reduce". `inputs`, `outputs`: the sizes and dtypes of the tensors that it was given.
    - `number`: which of the group's operations it is, from 1, with those that are not recorded.
    """

    name: str
    inputs: tuple[Sized, ...] = ()
    outputs: tuple[Sized, ...] = ()
    number: int = 0


def recorded(call: cr.Call) -> Iterator[Recorded]:
    """Yield the entries that gloo makes of `call`."""
    rule, size = call.row.rule.name, call.group.size
    if rule in GROUP_RULES or _unrecorded(call):
        return
    given = tuple(map(_sized, _specs(call, call.row.reads)))
    if rule in {"reduce_scatter", "reduce_scatter_tensor"}:  # it has none: it reduces all, one tensor after another
        yield from (Recorded("all_reduce", (each,), (each,)) for each in given)
    elif rule in {"all_gather", "all_gather_into_tensor"}:
        alone = call.op in {"c10d::allgather_", "c10d::_allgather_base_"}
        yield Recorded("all_gather", given, _stacked(size if alone else len(given), given))
    elif rule == "gather":
        yield Recorded("gather", given, _stacked(size, given) if call.is_root else ())
    elif rule == "scatter":
        yield Recorded("scatter", _stacked(size, given), tuple(map(_sized, _specs(call, call.row.writes))))
    elif rule in _AS_WRITTEN:
        yield Recorded("all_to_all", given, tuple(map(_sized, _specs(call, call.row.writes))))
    else:
        sparse = any(spec.layout != "strided" for spec in _specs(call, call.row.reads))
        yield Recorded(f"sparse_{rule}" if sparse else rule, given, given)


def read_dump(dump: Any) -> dict[str, list[Recorded]]:
    """Return the entries of a dump, by group."""
    groups: dict[str, list[Recorded]] = {}
    for entry in dump.get("entries", ()):  # absent where there are none
        name = entry["profiling_name"].removeprefix("gloo:")
        inputs, outputs = (
            tuple(zip(map(tuple, entry[f"{side}_sizes"]), entry[f"{side}_dtypes"], strict=True))
            for side in ("input", "output")
        )
        groups.setdefault(entry["process_group"][0], []).append(Recorded(name, inputs, outputs, entry["op_id"]))
    return groups


def expected_dump(calls: Iterable[cr.Call]) -> dict[str, list[Recorded]]:
    """Return what the recorder should hold after `calls`, by group."""
    groups: dict[str, list[Recorded]] = {}
    counts: dict[str, int] = {}
    for call in calls:
        name = call.group.name
        counts[name] = counts.get(name, 0) + _unrecorded(call)
        for entry in recorded(call):
            counts[name] += 1
            groups.setdefault(name, []).append(attrs.evolve(entry, number=counts[name]))
    return groups


def dump() -> Any:
    """Return what this process's recorder holds."""
    return json.loads(torch._C._distributed_c10d._dump_fr_trace_json())


def _unrecorded(call: cr.Call) -> int:
    """Return how many operations gloo makes of `call` and does not record."""
    if call.row.rule.name in _POINT_TO_POINT:
        return len(_specs(call, {*call.row.reads, *call.row.writes}))
    if call.op == "c10d::monitored_barrier_":  # the first rank hears of each other one, and answers it
        return 2 if call.group.rank else 2 * (call.group.size - 1)
    return 0


def _specs(call: cr.Call, names: Iterable[str]) -> list[cr.Spec]:
    known = {**cr.infer(call), **call.arguments}
    return [spec for name in names for spec in _flat(known[name])]


def _flat(value: Any) -> Iterator[cr.Spec]:
    if isinstance(value, cr.Spec):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _flat(item)


def _sized(spec: cr.Spec) -> Sized:
    return tuple(spec.shape), _DTYPES[spec.dtype]


def _stacked(count: int, given: tuple[Sized, ...]) -> tuple[Sized, ...]:
    """Return a list of `count` tensors as the recorder tells it: as one, of the first tensor's sizes."""
    return tuple(((count, *shape), dtype) for shape, dtype in given[:1])

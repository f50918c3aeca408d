"""A `Call`, or a `Finding`, as plain data (dicts, lists, text and numbers, as JSON has them), and back.

A record is checked as any other input: a malformed one, or an unknown op, is a `CallError`. Of memory, a record keeps
which tensors of the call share an allocation, and where they lie in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from reprlib import repr as _short
from typing import Any

import attrs
import torch

from collective_rules.call import UNKNOWN, Call, call
from collective_rules.errors import CallError
from collective_rules.finding import SEVERITIES, Finding
from collective_rules.nested import leaves
from collective_rules.ops import lookup
from collective_rules.spec import Group, Memory, Spec, is_size

_DEEPEST, _LARGEST = 3, 2**63 - 1
_UNKNOWN = {"unknown": True}


def to_record(call: Call) -> dict[str, Any]:
    """Return `call` as plain data.

    An unknown argument is {"unknown": true}. A tensor is {"shape", "dtype"} (null if unknown) with those of "stride",
    "device", "layout", "view" and "memory" that are not the default; memory is [allocation, offset in elements], with
    allocations counted from 0 within the call.

    Raises `CallError` for a size that only the run knows.

    >>> import collective_rules as cr
    >>> to_record(cr.call("c10d::send", group=cr.Group(2), tensors=[(3,)], dst=1))["arguments"]["tensors"]
    [{'shape': [3], 'dtype': 'float32'}]
    """
    writer = _Writer(call)
    group = {"size": call.group.size, "rank": call.group.rank}
    named: dict[str, Any] = {"name": call.group.name, "ranks": list(call.group.ranks)}
    record: dict[str, Any] = {
        "op": call.op,
        "group": group | {name: value for name, value in named.items() if value},
        "arguments": {name: writer.value(value) for name, value in call.arguments.items()},
    }
    optional = {"source": call.source or None, "index": call.index, "blocking": call.blocking}
    return record | {name: value for name, value in optional.items() if value is not None}


def from_record(record: Any) -> Call:
    """Return the `Call` that `to_record` wrote as `record`; raises `CallError` for anything else.

    >>> import collective_rules as cr
    >>> made = cr.call("c10d::send", group=cr.Group(2), tensors=[(3,)], dst=1)
    >>> from_record(to_record(made)) == made
    True
    """
    fields = _fields(record, "a record of a call", ("op", "group", "arguments"), ("source", "index", "blocking"))
    if not isinstance(fields["op"], str):
        raise CallError(f"op={_short(fields['op'])}, but should be the name of an op")
    row = lookup(fields["op"])
    given = _fields(fields["group"], "group", ("size", "rank"), ("name", "ranks"))
    group = Group(**{**given, "ranks": _tuple(given.get("ranks", ()), "ranks")})
    arguments = fields["arguments"]
    if not isinstance(arguments, dict):
        raise CallError(f"arguments={_short(arguments)}, but should be an object of arguments by name")
    unknown = [name for name in arguments if name not in row.by_name or row.by_name[name].is_group]
    if unknown:
        raise CallError(f"{row.op} has no argument {_short(unknown[0])}")
    made = call(row.op, group=group, **{str(name): _read(value, name) for name, value in arguments.items()})
    source, index, blocking = fields.get("source", ""), fields.get("index"), fields.get("blocking")
    if not isinstance(source, str) or not (index is None or is_size(index)):
        raise CallError(f"source={_short(source)} and index={_short(index)}, but should be text and a number")
    if not (blocking is None or isinstance(blocking, bool)):
        raise CallError(f"blocking={_short(blocking)}, but should be true or false")
    return Call(made.row, made.group, made.arguments, source, index, blocking)


def to_finding_record(finding: Finding) -> dict[str, Any]:
    """Return a finding as plain data; values of its names that are no data become text.

    >>> to_finding_record(Finding("AR2", "error", "ranks disagree", (1,), {"dtype": {0: torch.int32}}))["names"]
    {'pairs': [['dtype', {'pairs': [[0, 'torch.int32']]}]]}
    """
    return attrs.asdict(finding, recurse=False) | {"names": _plain(finding.names)}


def from_finding_record(record: Any) -> Finding:
    """Return the finding that `to_finding_record` wrote; raises `CallError` for anything else."""
    names = [field.name for field in attrs.fields(Finding)]
    given = _fields(record, "a record of a finding", tuple(names[:3]), tuple(names[3:]))
    texts = [given[name] for name in ("id", "severity", "message")] + [given.get(name, "") for name in ("group", "op")]
    numbers = [*_tuple(given.get("ranks", ()), "ranks"), given.get("count", 1), given.get("index") or 0]
    if not all(isinstance(text, str) for text in texts) or not all(map(is_size, numbers)):
        raise CallError(f"{_short(record)}, but should be a record of a finding")
    if given["severity"] not in SEVERITIES:
        raise CallError(f"severity={_short(given['severity'])}, but should be one of {', '.join(SEVERITIES)}")
    values = _rich(given.get("names", {"pairs": []}))
    return Finding(**{**given, "ranks": tuple(given.get("ranks", ())), "names": values})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {"pairs": [[_plain(name), _plain(item)] for name, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        pairs = value.get("pairs")
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise CallError(f"names={_short(value)}, but should be pairs of names and values")
        return {_rich(name): _rich(item) for name, item in pairs}
    return tuple(_rich(item) for item in value) if isinstance(value, list) else value


class _Writer:
    """Writes arguments, and numbers the allocations of one call. A `Spec` object passed twice is one tensor."""

    def __init__(self, call: Call) -> None:
        self.op = call.op
        self.allocations: dict[Any, int] = {}
        self.times = Counter(map(id, leaves(call.arguments.values(), Spec)))

    def value(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [self.value(item) for item in value]
        if isinstance(value, Spec):
            return self._tensor(value)
        if isinstance(value, torch.dtype):
            return {"dtype": _name(value)}
        if value is UNKNOWN:
            return dict(_UNKNOWN)
        if isinstance(value, torch.SymInt):
            raise CallError(f"{self.op}: the size {value} is known to the run alone, and cannot be written down")
        return value

    def _tensor(self, spec: Spec) -> dict[str, Any]:
        record: dict[str, Any] = {
            "shape": None if spec.shape is None else self.value(spec.shape),
            "dtype": None if spec.dtype is None else _name(spec.dtype),
        }
        if spec._stride is not None:
            record["stride"] = self.value(spec._stride)
        for name, usual in (("device", "cpu"), ("layout", "strided"), ("view", "")):
            if getattr(spec, name) != usual:
                record[name] = getattr(spec, name)
        if spec.memory is not None:
            record["memory"] = [self._allocation(spec.memory.storage), self.value(spec.memory.offset)]
        elif self.times[id(spec)] > 1:
            record["memory"] = [self._allocation(("given twice", id(spec))), 0]
        return record

    def _allocation(self, key: Any) -> int:
        return self.allocations.setdefault(key, len(self.allocations))


def _read(value: Any, what: str, depth: int = 0) -> Any:
    if isinstance(value, list):
        if depth > _DEEPEST:
            raise CallError(f"{what} nests lists more than {_DEEPEST} deep")
        return [_read(item, what, depth + 1) for item in value]
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise CallError(f"{what} holds a number of more than 64 bits")
    if not isinstance(value, dict):
        return value
    if value == _UNKNOWN:
        return UNKNOWN
    if value.keys() == {"dtype"}:
        return _dtype(value["dtype"], what)
    optional = ("stride", "device", "layout", "view", "memory")
    fields = dict(_fields(value, f"{what}, a tensor,", ("shape", "dtype"), optional))
    dtype = fields.pop("dtype")
    for name in ("device", "layout", "view"):
        if not isinstance(fields.get(name, ""), str):
            raise CallError(f"{what}: {name}={fields[name]!r}, but should be text")
    memory = fields.pop("memory", None)
    if memory is not None:
        if not (isinstance(memory, list) and len(memory) == 2 and all(map(is_size, memory))):
            raise CallError(f"{what}: memory={memory!r}, but should be [allocation, offset]")
        fields["memory"] = Memory(*memory)
    try:
        return Spec(dtype=None if dtype is None else _dtype(dtype, what), **fields)
    except CallError as error:
        raise CallError(f"{what}: {error}") from None


def _fields(value: Any, what: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CallError(f"{_short(value)}, but {what} should be an object with {', '.join(needed)}")
    missing = [name for name in needed if name not in value]
    surplus = [str(name) for name in value if name not in needed + optional]
    if missing or surplus:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(surplus)}, which is unknown"
        raise CallError(f"{what} {wrong}: {_short(value)}")
    return value


def _tuple(value: Any, what: str) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise CallError(f"{what}={_short(value)}, but should be a list")


def _dtype(value: Any, what: str) -> torch.dtype:
    dtype = getattr(torch, value, None) if isinstance(value, str) else None
    if isinstance(dtype, torch.dtype):
        return dtype
    raise CallError(f"{what}: dtype={_short(value)}, but should be the name of a torch.dtype such as 'bfloat16'")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""PyTorch execution traces (ExecutionTraceObserver), also with Chakra's schema names: the "nodes" of one JSON object.

Recorded are shapes, dtypes, strides and memory (from 1.1.1 on), split sizes, roots, peers and tags; the group where the
backend writes `record_param_comms` (NCCL does, gloo does not). Never recorded: the reduce op of a c10d op.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch

from collective_rules.ops import Row
from collective_rules.recordings.events import Event, at, is_number, name_known, row_of
from collective_rules.recordings.groups import Collector
from collective_rules.recordings.op_trace import PARAM, TraceRow, evenly_spread, outermost, scalar
from collective_rules.recordings.recording import Notes, short
from collective_rules.recordings.spellings import SPELLINGS, dtype_of, spelled
from collective_rules.spec import Memory, Spec

_GROUPS = "## process_group:init ##"
_KNOWN = re.compile(r"1\.[01]\.\d+")
_DEEPEST = 4
_TENSOR = re.compile(r"Tensor\(([^()]*)\)")
_ARGUMENT = re.compile(r"(?:^|[ ,(])(\w+)(?:=[^,)]*)?(?=[,)])")


@attrs.define(eq=False)
class _Node(TraceRow):
    """A node; `inputs` and `outputs` hold the values, shapes and types of its two sides."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    schema: str
    sequence: int


class ExecutionTrace(Collector):
    """Collects the nodes of one trace."""

    name = "execution trace"
    arrays = ("nodes",)

    @classmethod
    def has_keys(cls, keys: set[str]) -> bool:
        """Return whether a file without nodes is a trace."""
        return "schema" in keys and bool(keys & {"start_ts", "nodes"})

    def __init__(self, notes: Notes) -> None:
        super().__init__(notes)
        self._parents: dict[int, int] = {}
        self._nodes: dict[int, _Node] = {}
        self._number = 0
        self._pointers: dict[int, str] = {}

    def value(self, key: str, value: Any) -> None:
        """Take in a value of the top level."""
        if key == "schema" and not (isinstance(value, str) and _KNOWN.match(value)):
            self.notes.add("READ7", f"schema={short(value)}")

    def item(self, node: Any) -> None:
        """Take in one node."""
        self._number += 1
        where = f"node {self._number}"
        if type(node) is not dict or not is_number(node.get("id")) or type(node.get("name")) is not str:
            self.notes.add("READ2", f"the node {short(node)}", where)
            if _may_communicate(node):
                self.notes.lose()
            return
        id_: int = node["id"]
        name: str = node["name"]
        parent = node.get("ctrl_deps", node.get("parent"))
        if type(parent) is int:
            self._parents[id_] = parent
        if name == _GROUPS:
            self._read_groups(node, where)
        elif ":" not in name and name != PARAM:
            return
        elif name == PARAM or row_of(name) is not None or ("::" not in name and spelled(name)[0]):
            made = _Node(name, id_, *_sides(node), *_told_of(node))
            known = self._nodes.setdefault(id_, made)
            if known is not made:
                self.notes.add("READ8", f"node {id_}", where)
                if (known.name, known.inputs) != (made.name, made.inputs):
                    self.notes.lose()
        elif name.startswith("c10d::"):
            name_known(name, self.notes, where)

    def _read_groups(self, node: Any, where: str) -> None:
        values = _sides(node)[0].get("values")
        try:
            configured = json.loads(values[0]) if isinstance(values, list) and values else []
        except (TypeError, ValueError, RecursionError):
            self.notes.add("READ2", "the list of the groups", where)
            return
        self.configure(configured, "group_size", where)

    def events(self) -> Iterator[Event]:
        """Yield the collectives in the order in which they were begun."""
        nodes = (self._nodes[id_] for id_ in sorted(self._nodes))
        for node in outermost(nodes, self._around, lambda node: row_of(node.name) is not None or node.name == PARAM):
            event = self._event(node)
            if event is not None:
                yield event

    def _around(self, node: _Node, calls: dict[int, _Node]) -> _Node | None:
        """Return the call that a node is inside of: that of its nearest parent."""
        id_, seen = node.number, {node.number}
        while (id_ := self._parents.get(id_, -1)) not in seen and id_ >= 0:
            seen.add(id_)
            if id_ in calls:
                outer = calls[id_]
                return outer if row_of(node.name) is None or _is_same_call(outer, node) else None
        return None

    def _event(self, node: _Node) -> Event | None:
        within = [node, *node.inner]
        param = next((one for one in within if one.name == PARAM), None)
        where, row = f"node {node.number}", row_of(node.name)
        event = Event(node.name, where, node.number)
        self._compare_tensors(event, within)
        if param is not None:
            self._read_param(event, param)
        if row is not None:
            event.name = node.name
            self._arguments(event, row, node)
            return event
        if event.name == PARAM and node.note is not None:
            event.name = spelled(node.note.name)[1]
        if event.name == PARAM:
            return None  # a wait
        return event if name_known(event.name, self.notes, where) else None

    def _arguments(self, event: Event, row: Row, node: _Node) -> None:
        """Read the op's own arguments: by the schema that the trace has, else in the order of today's."""
        values, types = node.inputs.get("values"), node.inputs.get("types")
        if not isinstance(values, list) or not isinstance(types, list):
            return
        names = _ARGUMENT.findall(node.schema.partition("->")[0]) or [argument.name for argument in row.arguments]
        for place, name in enumerate(names[: min(len(values), len(types))]):
            argument = row.by_name.get({"asyncOp": "async_op"}.get(name, name))
            if argument is None:
                continue
            value, kind = values[place], types[place]
            if argument.is_group:
                event.group = value if kind == "String" and isinstance(value, str) else event.group
                continue
            if argument.kind == "Tensor":
                read: Any = self._tensors(node.inputs, place, argument.depth, event.where)
            else:
                read = None if kind == "None" else scalar(value, argument)
            if read is not None:
                event.arguments[argument.name] = read

    def _compare_tensors(self, event: Event, nodes: list[_Node]) -> None:
        """Note where the rows of one call contradict each other, or themselves, about a tensor.

        Its id and its storage's id name a tensor; shape, dtype and number of elements must then be the same.
        """
        known: dict[tuple[int, int], tuple[Any, Any]] = {}
        differ = functools.partial(self.notes.add, "READ12", where=event.where)
        for node in nodes:
            for side in (node.inputs, node.outputs):
                for value, shape, dtype in _leaves(side):
                    if dtype is not None and is_number(value[4]) and value[4] != dtype.itemsize:
                        differ(f"a {dtype} has {short(value[4])} bytes")
                    if shape is not None and is_number(value[3]) and value[3] != math.prod(shape):
                        differ(f"a tensor of shape {short(shape)} has {short(value[3])} elements")
                    told = known.setdefault((value[0], value[1]), (shape, dtype))
                    if None not in (told[0], shape) and told[0] != shape:
                        differ(f"one tensor has the shapes {short(told[0])} and {short(shape)}")
                    if None not in (told[1], dtype) and told[1] != dtype:
                        differ(f"one tensor is {told[1]}, and {dtype}")

    def _tensors(self, side: Mapping[str, Any], place: int, depth: int, where: str) -> Any:
        """Return the tensors at one place, nested as the values are."""
        kind = at(side.get("types"), place)
        if not isinstance(kind, str) or not ("Tensor" in kind or "List" in kind):
            return None
        dtypes = iter([dtype_of(text) for text in _TENSOR.findall(kind)])
        value, shape, stride = (at(side.get(key), place) for key in ("values", "shapes", "strides"))
        return self._nested(value, shape, stride, dtypes, depth, where)

    def _nested(self, value: Any, shape: Any, stride: Any, dtypes: Iterator[Any], depth: int, where: str) -> Any:
        if depth == 0:
            spec = self.fields.spec(shape, next(dtypes, None), "a shape", where, stride)
            return _placed(spec, value, has_strides=isinstance(stride, list))
        if not isinstance(shape, list) or (isinstance(value, list) and len(value) != len(shape)):
            return None
        listed = [
            self._nested(at(value, i), one, at(stride, i), dtypes, depth - 1, where) for i, one in enumerate(shape)
        ]
        return None if None in listed else tuple(listed)

    def _read_param(self, event: Event, node: _Node) -> None:
        """Read `record_param_comms`: [tensors,] sequence, group, rank, name, splits, splits, and the ranks."""
        values, types = node.inputs.get("values"), node.inputs.get("types")
        if not isinstance(values, list) or not isinstance(types, list) or len(values) != len(types):
            return
        name_at = next((place for place, kind in enumerate(types) if kind == "String"), 0)
        if name_at < 2 or not isinstance(values[name_at], str):
            return
        event.name = spelled(values[name_at])[1]
        rank, group = values[name_at - 1], values[name_at - 2]
        if event.name not in SPELLINGS:
            return
        event.take_rank(self.fields.number(rank, "rank", event.where))
        event.group = self._group_name(group)
        rest = values[name_at + 1 :]
        event.read_splits, event.write_splits = (
            self.fields.numbers(at(rest, i), "split sizes", event.where) for i in (0, 1)
        )
        numbers = [n for n in rest[2:] if type(n) is int]
        if len(numbers) in (1, 3) and is_number(numbers[-1], 1):
            event.size = numbers[-1]
        if len(numbers) == 3:
            event.ranks = evenly_spread(event.size, *numbers[:2])
        if "Tensor" in str(types[0]):
            event.reads = self._flat(node.inputs, event.where)
            event.writes = self._flat(node.outputs, event.where)

    def _flat(self, side: Mapping[str, Any], where: str) -> tuple[Spec, ...] | None:
        """Return the tensors of the first place as a flat list."""
        kind = at(side.get("types"), 0)
        if not isinstance(kind, str):
            return None
        depth = kind.count("GenericList[GenericList[") * 2 or int(kind.startswith("GenericList["))
        found = self._tensors(side, 0, depth, where)
        while isinstance(found, tuple) and found and isinstance(found[0], tuple):
            found = found[0]
        return (found,) if isinstance(found, Spec) else found

    def _group_name(self, group: Any) -> str:
        """Return the group's name; older traces have an address instead, which differs between ranks."""
        if isinstance(group, list) and group and isinstance(group[0], str):
            return group[0]
        if isinstance(group, str):
            return group
        return self._pointers.setdefault(group, f"#{len(self._pointers)}") if is_number(group, 1) else ""


def _is_same_call(outer: _Node, inner: _Node) -> bool:
    """Return whether `inner` is `outer` on its way to the backend.

    The observer also puts what follows a gloo send inside of it, until the send is waited for.
    """
    if not outer.name.startswith("c10d::"):
        return True
    both_first = outer.sequence >= 0 and inner.sequence >= 0
    return outer.name == inner.name and not both_first and outer.inputs.get("values") == inner.inputs.get("values")


def _sides(node: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return a node's inputs and outputs, from either of the two ways to write them."""
    sides = []
    for name in ("input", "output"):
        side = node.get(name + "s")
        if isinstance(side, list):
            side = {"values": side, "shapes": node.get(name + "_shapes"), "types": node.get(name + "_types")}
        sides.append(side if isinstance(side, dict) else {})
    return sides[0], sides[1]


def _told_of(node: Any) -> tuple[str, int]:
    """Return the op's schema and its autograd sequence number; -1 for an inner layer of an op, which has none."""
    told = {"op_schema": node.get("op_schema"), "seq_id": node.get("seq_id")}
    listed = node.get("attrs")
    for attribute in listed if isinstance(listed, list) else ():
        if isinstance(attribute, dict) and attribute.get("name") in ("op_schema", "seq_id"):
            told[attribute["name"]] = attribute.get("value")
    schema, sequence = told["op_schema"], told["seq_id"]
    return schema if isinstance(schema, str) else "", sequence if is_number(sequence) else -1


def _placed(spec: Spec, value: Any, *, has_strides: bool) -> Spec:
    """Return the tensor with its device and memory, from [id, storage, offset, numel, itemsize, device].

    Without strides its extent is unknown, and so is the memory that it shares.
    """
    if not isinstance(value, list) or len(value) < 6 or not (is_number(value[1]) and is_number(value[2])):
        return spec
    device = value[5].partition(":")[0] if isinstance(value[5], str) else "cpu"
    memory = Memory(value[1], value[2]) if has_strides else None
    return Spec(spec.shape, spec.dtype, spec._stride, device, memory=memory)


def _leaves(side: Mapping[str, Any]) -> Iterator[tuple[list[Any], tuple[int, ...] | None, torch.dtype | None]]:
    """Yield each tensor's [id, storage, offset, numel, itemsize, device], shape and dtype, where they can be read."""
    types = side.get("types")
    for place, kind in enumerate(types if isinstance(types, list) else ()):
        if not isinstance(kind, str) or "Tensor(" not in kind:
            continue
        found = list(_pairs(at(side.get("values"), place), at(side.get("shapes"), place)))
        dtypes = [dtype_of(text) for text in _TENSOR.findall(kind)]
        for place_in_list, (value, shape) in enumerate(found):
            yield value, shape, dtypes[place_in_list] if len(dtypes) == len(found) else None


def _pairs(value: Any, shape: Any, depth: int = 0) -> Iterator[tuple[list[Any], tuple[int, ...] | None]]:
    """Yield tensors out of lists of them, with their shapes."""
    if not isinstance(value, list) or depth > _DEEPEST:
        return
    if len(value) > 5 and all(is_number(n) for n in value[:2]) and isinstance(value[5], str):
        sizes = isinstance(shape, list) and all(is_number(n) for n in shape)
        yield value, tuple(shape) if sizes else None
        return
    for place, one in enumerate(value):
        yield from _pairs(one, at(shape, place), depth + 1)


def _may_communicate(node: Any) -> bool:
    """Return whether a node that cannot be read may belong to a collective."""
    name = node.get("name") if type(node) is dict else None
    return type(name) is not str or name == PARAM or name.startswith(("c10d::", "_c10d_functional"))

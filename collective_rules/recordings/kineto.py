"""Kineto traces, as torch.profiler exports them: one JSON object whose "traceEvents" are read one by one.

A call is the outermost op of a thread, filled in from the events inside it. The kernels are read instead only where a
trace has neither ops nor `record_param_comms`.

Recorded are, depending on torch's version and on `record_shapes`, sizes, strides, dtypes, split sizes, roots, peers,
tags and the group; never the reduce op. Of gloo's collectives the group is not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from collective_rules.ops import Row
from collective_rules.recordings.events import Event, at, is_number, literal, name_known, row_of
from collective_rules.recordings.groups import Collector
from collective_rules.recordings.op_trace import PARAM, TraceRow, evenly_spread, outermost, scalar
from collective_rules.recordings.recording import Notes, short
from collective_rules.recordings.spellings import dtype_of, spelled
from collective_rules.spec import Spec

_NAME = "Collective name"
_KEPT = (
    *("Input Dims", "Input type", "Input Strides", "Concrete Inputs", _NAME, "In msg nelems", "Out msg nelems"),
    *("dtype", "In split size", "Out split size", "Process Group Name", "Process Group Ranks", "Group size", "Rank"),
    *("Global rank start", "Global rank stride", "Is asynchronized op"),
)
_SAME = ("Input Dims", "Input type", "Concrete Inputs")
"""Fields that are the same in all rows of one name of a call."""
_MOST_KNOWN = 20_000
"""Equal events share their fields, up to so many different ones."""


@attrs.define(eq=False)
class _TraceEvent(TraceRow):
    args: dict[str, Any]
    thread: Any
    start: float
    end: float


class Kineto(Collector):
    """Collects the events of one trace."""

    name = "kineto"
    arrays = ("traceEvents", "")

    @classmethod
    def has_keys(cls, keys: set[str]) -> bool:
        """Return whether a file without events is a trace."""
        return bool(keys & {"distributedInfo", "schemaVersion", "deviceProperties", "traceEvents"})

    def __init__(self, notes: Notes) -> None:
        super().__init__(notes)
        self._cpu: list[_TraceEvent] = []
        self._kernels: list[_TraceEvent] = []
        self._args: dict[str, dict[str, Any]] = {}
        self._number = 0
        self._rows: dict[str, Row | None] = {}

    def value(self, key: str, value: Any) -> None:
        """Take in a value of the top level."""
        if key != "distributedInfo" or not isinstance(value, dict):
            return
        self.rank = self.fields.number(value.get("rank"), "rank", key)
        self.world_size = self.fields.number(value.get("world_size"), "world_size", key, least=1)
        self.configure(value.get("pg_config"), "pg_size", key)

    def item(self, event: Any) -> None:
        """Take in one element of traceEvents."""
        self._number += 1
        if type(event) is not dict:
            self._lose(f"the event {short(event)}")
            return
        name, args = event.get("name"), event.get("args")
        if event.get("ph") != "X":
            return
        if type(name) is not str:
            self._lose(f"name={short(name)}")
            return
        if ":" not in name and name != PARAM and (type(args) is not dict or _NAME not in args):
            return
        if type(args) is not dict:
            if args is not None:
                self._lose(f"args={short(args)}")
            args = {}
        kernel = event.get("cat") in ("kernel", "gpu_memcpy", "gpu_user_annotation")
        if kernel:
            if _NAME in args:
                self._kernels.append(self._seen(name, args, event))
        elif name == PARAM or self._row(name) is not None or self._is_note(name, event) or _NAME in args:
            self._cpu.append(self._seen(name, args, event))

    def _row(self, name: str) -> Row | None:
        if "::" not in name:
            return None
        if name not in self._rows:
            if len(self._rows) > 10_000:
                self._rows.clear()
            is_foreign = not name.startswith(("c10d::", "_c10d_functional"))
            self._rows[name] = row_of(name) if is_foreign or name_known(name, self.notes, self._where()) else None
        return self._rows[name]

    def _is_note(self, name: str, event: Any) -> bool:
        return event.get("cat") == "user_annotation" and "::" not in name and bool(spelled(name)[0])

    def _where(self) -> str:
        return f"event {self._number}"

    def _seen(self, name: str, args: dict[str, Any], event: Any) -> _TraceEvent:
        start, length = event.get("ts"), event.get("dur", 0)
        thread = (event.get("pid"), event.get("tid"))
        if not all(type(n) in (int, float) and -1e18 < n < 1e18 for n in (start, length)):  # not NaN, not text
            what = f"ts={short(start)}, dur={short(length)}"
            start, length = self._cpu[-1].end if self._cpu else 0.0, 0.0
            thread = self._apart(what)
        elif not all(one is None or isinstance(one, str) or is_number(one) for one in thread):
            thread = self._apart(f"pid={short(thread[0])}, tid={short(thread[1])}")
        args = {key: args[key] for key in _KEPT if key in args}
        text = repr(args)
        if len(self._args) < _MOST_KNOWN:
            args = self._args.setdefault(text, args)
        return _TraceEvent(name, self._number, args, tuple(map(str, thread)), start, start + length)

    def _apart(self, what: str) -> tuple[str, int]:
        """Note that an event's place cannot be read, and give it a thread of its own: whose call it is nobody knows."""
        self._lose(what)
        return "", self._number

    def _lose(self, what: str, where: str = "") -> None:
        """Note what cannot be read, by which a call may be another than it seems, or none."""
        self.notes.add_lost("READ2", what, where or self._where())

    def events(self) -> Iterator[Event]:
        """Yield the collectives in the order in which they were begun."""
        rows = sorted(self._cpu, key=lambda row: (row.thread, row.start, -row.end, row.number))
        calls = outermost(rows, self._around, self._is_call) or self._kernels
        calls.sort(key=lambda seen: (seen.start, seen.number))
        for seen in calls:
            event = self._event(seen)
            if event is not None:
                yield event

    def _around(self, row: _TraceEvent, calls: dict[int, _TraceEvent]) -> _TraceEvent | None:
        """Return the call that a row is inside of: the last one of its thread, if that one still runs.

        A backend's note holds nothing: gloo's of a send lasts until the send is waited for.
        """
        outer = next(reversed(calls.values()), None)
        if outer is None or row.thread != outer.thread or row.start >= outer.end:
            return None
        return outer if row.end <= outer.end + 1 or not self._is_call(row) else None

    def _is_call(self, seen: _TraceEvent) -> bool:
        return self._row(seen.name) is not None or seen.name == PARAM or _NAME in seen.args

    def _event(self, seen: _TraceEvent) -> Event | None:
        told = next((one for one in (seen, *seen.inner) if _NAME in one.args), None)
        note, where, row = seen.note, f"event {seen.number}", self._row(seen.name)
        if row is not None:
            name = seen.name
        else:
            text = told.args[_NAME] if told else note.name if note else None
            if not isinstance(text, str):
                if _has_tensors(seen.args):  # without any, it is a wait
                    self.notes.add("READ3", f"{PARAM} without a name", where)
                return None
            name = spelled(text)[1]
            if not name_known(name, self.notes, where):
                return None
        event = Event(name, where, seen.start, bare="Input type" not in seen.args)
        self._compare_rows(seen, where)
        if row is not None:
            self._arguments(event, row, seen.args)
        if note is not None:
            self._noted(event, note.args)
        if told is not None:
            self._read_param(event, told.args)
        dtypes = {spec.dtype for spec in event.reads or ()}
        if row is not None and len(dtypes) == 1:
            _give_dtype(event, dtypes.pop())
        return event

    def _compare_rows(self, seen: _TraceEvent, where: str) -> None:
        """Note where the op as the backend carries it out has other arguments than as the program calls it."""
        for one in seen.inner:
            if one.name == seen.name and one.args is not seen.args:
                for key in _SAME:
                    ours, its = seen.args.get(key), one.args.get(key)
                    if ours != its and _is_sound(ours) and _is_sound(its):
                        self.notes.add("READ12", f"{key} of {one.name} is {short(ours)}, and {short(its)}", where)

    def _arguments(self, event: Event, row: Row, args: dict[str, Any]) -> None:
        """Read the op's own arguments, which stand in the schema's order."""
        shapes, types = args.get("Input Dims"), args.get("Input type")
        texts, strides = args.get("Concrete Inputs"), args.get("Input Strides")
        if not isinstance(types, list):
            return
        for place, argument in enumerate(row.arguments[: len(types)]):
            shape, kind = at(shapes, place), types[place]
            if argument.is_group:
                continue
            if argument.kind == "Tensor":
                value = self._tensor(argument.depth, shape, kind, at(strides, place), event.where)
            else:
                value = scalar(literal(at(texts, place)), argument)
            if value is not None:
                event.arguments[argument.name] = value
            elif argument.kind == "Tensor" and not _is_sound([shape or [], kind]):
                self._lose(f"{argument.name} of {row.op}, of {short(shape)}", event.where)

    def _tensor(self, depth: int, shape: Any, kind: Any, stride: Any, where: str) -> Any:
        if depth == 0:
            dtype = dtype_of(kind)
            return None if dtype is None else self.fields.spec(shape, dtype, "Input Dims", where, stride)
        if depth == 1 and kind == "TensorList" and isinstance(shape, list) and shape and _is_sound(shape):
            steps = stride if isinstance(stride, list) and len(stride) == len(shape) else [None] * len(shape)
            return tuple(
                self.fields.spec(one, None, "Input Dims", where, step) for one, step in zip(shape, steps, strict=True)
            )
        return None

    def _noted(self, event: Event, args: dict[str, Any]) -> None:
        """Read the flat list of what is read, as the backend's note has it."""
        types = args.get("Input type")
        if isinstance(types, list) and types and "Input Dims" in args:
            event.reads = self.fields.specs(args["Input Dims"], map(dtype_of, types), "Input Dims", event.where)

    def _read_param(self, event: Event, args: dict[str, Any]) -> None:
        """Read what `record_param_comms` says: the group, how many elements there are, the split sizes."""
        read, where = self.fields, event.where
        dtype = dtype_of(args.get("dtype"))
        if dtype is None and "dtype" in args:
            self.notes.add("READ2", f"dtype={short(args['dtype'])}", where)
        group = args.get("Process Group Name")
        event.group = group if isinstance(group, str) else ""
        event.size = read.number(args.get("Group size"), "Group size", where, least=1)
        ranks = read.numbers(args.get("Process Group Ranks"), "Process Group Ranks", where)
        event.ranks = ranks or evenly_spread(event.size, args.get("Global rank start"), args.get("Global rank stride"))
        event.take_rank(read.number(args.get("Rank"), "Rank", where))
        event.read_splits = read.numbers(args.get("In split size"), "In split size", where)
        event.write_splits = read.numbers(args.get("Out split size"), "Out split size", where)
        event.blocking = not args["Is asynchronized op"] if type(args.get("Is asynchronized op")) is bool else None
        counts = [read.count(args.get(f"{way} msg nelems"), dtype, f"{way} msg nelems", where) for way in ("In", "Out")]
        if event.reads is None:
            event.counted = True
            event.reads, event.writes = (None if one is None else (one,) for one in counts)
        _give_dtype(event, dtype)


def _is_sound(value: Any) -> bool:
    """Return whether `value` is what torch writes: text, a number, or a list of these."""
    if isinstance(value, list):
        return all(map(_is_sound, value))
    return isinstance(value, str) or is_number(value)


def _has_tensors(args: dict[str, Any]) -> bool:
    types = args.get("Input type")
    return not isinstance(types, list) or any(dtype_of(one) or one == "TensorList" for one in types)


def _give_dtype(event: Event, dtype: Any) -> None:
    """Give the dtype of the backend's record to the op's lists, which have none of their own."""
    for name, value in event.arguments.items():
        if isinstance(value, tuple) and any(isinstance(one, Spec) and one.dtype is None for one in value):
            event.arguments[name] = tuple(Spec(one.shape, dtype, one._stride) for one in value)

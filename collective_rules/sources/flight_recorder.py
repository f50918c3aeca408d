"""Flight Recorder dumps, JSON or pickle: one entry for each collective of the last few thousand.

Recorded are names, shapes, dtypes, sequence numbers, the lines of the program and, of NCCL, the groups' ranks. Not
recorded are reduce ops, roots, tags, split sizes, strides, and the rank, which stands in the file's name alone.
gloo writes down a reduce_scatter as the all_reduce that it carries out, and no sends and receives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from collective_rules.sources.building import Groups
from collective_rules.sources.events import Event, Reader, name_known
from collective_rules.sources.names import SPELLINGS, dtype_of, spelled
from collective_rules.sources.recording import Notes, short

__all__ = ["FlightRecorder"]

_KNOWN = re.compile(r"2\.\d+")
_PAIR = re.compile(r"(\d+)(->|<-)(\d+)$")
_OWN = re.compile(r"/torch/|/collective_rules/mode/|^<|/(runpy|threading|contextlib|typing_extensions)\.py$")
_DEFAULT = "default_pg"


class FlightRecorder:
    """Collects the entries of one dump."""

    name = "flight recorder"

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.reader = Reader(notes)
        self.groups = Groups(notes)
        self.rank: int | None = None
        self.world_size: int | None = None
        self._events: list[Event] = []
        self._number = 0
        self._records: dict[int, tuple[Any, ...]] = {}

    def value(self, key: str, value: Any) -> None:
        """Take in a value of the top level."""
        if key == "version" and not (isinstance(value, str) and _KNOWN.fullmatch(value)):
            self.notes.add("READ7", f"version={short(value)}")
        elif key == "rank":
            self.rank = self.reader.number(value, "rank", "the top level")
        elif key == "world_size":
            self.world_size = self.reader.number(value, "world_size", "the top level", least=1)
        elif key == "pg_config" and isinstance(value, dict):
            for name, told in value.items():
                if isinstance(name, str) and name and isinstance(told, dict):
                    ranks = self.reader.numbers(told.get("ranks"), "ranks", f"the group {name!r}")
                    self.groups.tell(name, None, ranks or None)
                    self._default(name, told.get("desc"))

    def _default(self, name: str, description: Any) -> None:
        if description == _DEFAULT:
            self.groups.default = name

    def item(self, entry: Any) -> None:
        """Take in one entry."""
        self._number += 1
        where = f"entry {self._number}"
        text = entry.get("profiling_name") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            self.notes.add("READ2", f"the entry {short(entry)}", where)
            self.notes.lose(_group_of(entry) if isinstance(entry, dict) else None)
            return
        _, name = spelled(text)
        if not name_known(name, self.notes, where):
            return
        record = entry.get("record_id")
        if type(record) is int:
            told = (text, *(entry.get(key) for key in ("collective_seq_id", "p2p_seq_id", "op_id")))
            if self._records.get(record) == told:
                self.notes.add("READ8", f"record {record}", where)
                return
            if self._records.setdefault(record, told) != told:
                self.notes.add("READ2", f"record_id={record}, of another record", where)
        event = Event(name, where, self._number)
        self._group(event, entry)
        self._tensors(event, entry)
        if SPELLINGS[name].even:
            event.read_splits = event.write_splits = ()
        self._order(event, entry, text)
        event.source = _source(entry.get("frames"))
        self._events.append(event)

    def _group(self, event: Event, entry: dict[Any, Any]) -> None:
        group = entry.get("process_group", entry.get("pg_name"))
        event.group = _group_of(entry) or ""
        if isinstance(group, (list, tuple)) and len(group) > 1:
            self._default(event.group, group[1])
        if not event.group:
            self.notes.add("READ2", f"process_group={short(group)}", event.where)
            self.notes.lose()

    def _tensors(self, event: Event, entry: dict[Any, Any]) -> None:
        sides = []
        for side in ("input", "output"):
            dtypes = entry.get(f"{side}_dtypes")
            known = [self._dtype(text, event.where) for text in dtypes] if isinstance(dtypes, (list, tuple)) else []
            sides.append(self.reader.specs(entry.get(f"{side}_sizes"), known, f"{side}_sizes", event.where))
        event.reads, event.writes = sides
        if event.name in ("send", "isend") and not event.reads:
            event.reads = event.writes
        if event.name in ("recv", "irecv") and not event.writes:
            event.writes = event.reads

    def _dtype(self, text: Any, where: str) -> Any:
        dtype = dtype_of(text)
        if dtype is None and text != "Undefined":  # of NCCL's tensor that stands for no list
            self.notes.add("READ2", f"the dtype {short(text)}", where)
        return dtype

    def _order(self, event: Event, entry: dict[Any, Any], text: str) -> None:
        """Read the number among the group's collectives, or the pair of a send or receive."""
        pair = _PAIR.search(text)
        if SPELLINGS[event.name].op in ("c10d::send", "c10d::recv_"):
            if pair is not None and max(len(pair[1]), len(pair[3])) <= 9:
                event.rank, event.peer = int(pair[1]), int(pair[3])
            return
        number = entry.get("collective_seq_id", entry.get("seq_id"))
        index = self.reader.number(number, "collective_seq_id", event.where)
        event.index = None if index is None else max(index - 1, 0)

    def events(self) -> Iterator[Event]:
        """Yield the collectives in the order of their entries."""
        yield from self._events


def _group_of(entry: dict[Any, Any]) -> str | None:
    group = entry.get("process_group", entry.get("pg_name"))
    if isinstance(group, (list, tuple)):
        group = group[0] if group else None
    return group if isinstance(group, str) and group else None


def _source(frames: Any) -> str:
    """The innermost line that is not torch's own; frames stand innermost first."""
    for frame in frames if isinstance(frames, (list, tuple)) else ():
        if isinstance(frame, dict) and isinstance(frame.get("filename"), str) and not _OWN.search(frame["filename"]):
            return f"{frame['filename'].removeprefix(os.getcwd() + os.sep)}:{frame.get('line', '?')}"
    return ""

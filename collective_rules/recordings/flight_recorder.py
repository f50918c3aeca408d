"""Flight Recorder dumps, JSON or pickle: one entry for each collective of the last few thousand.

Recorded are names, shapes, dtypes, sequence numbers, the lines of the program and, for NCCL, the groups' ranks. Not
recorded are reduce ops, roots, tags, split sizes, strides, and the rank, which only the file's name tells. gloo records
a reduce_scatter as the all_reduce that it carries out, and no sends and receives.

The buffer is a ring: once it is full, each entry overwrites the oldest. A dump then begins in the middle of the run, at
another place on each rank, and only the numbers tell which collectives belong together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from collective_rules.ops import lookup
from collective_rules.recordings.events import Event, is_number, name_known
from collective_rules.recordings.groups import Collector
from collective_rules.recordings.recording import Notes, short
from collective_rules.recordings.spellings import EVEN, SPELLINGS, SUMMARIES, dtype_of, spelled

_KNOWN = re.compile(r"2\.\d+")
_TORCHS_NAMES = 4
_PAIR = re.compile(r"(\d+)(->|<-)(\d+)$")
_OWN = re.compile(r"/torch/|/collective_rules/mode/|^<|/(runpy|threading|contextlib|typing_extensions)\.py$")
_DEFAULT = "default_pg"
_MESSAGES = frozenset(name for name, op in SPELLINGS.items() if lookup(op).rule.point_to_point)


class FlightRecorder(Collector):
    """Collects the entries of one dump."""

    name = "flight recorder"
    arrays = ("entries",)

    @classmethod
    def has_keys(cls, keys: set[str]) -> bool:
        """Return whether a file without entries is a dump."""
        own = {"pg_config", "pg_status", "nccl_comm_state", "comm_lib_version"}
        return bool(keys & own) or {"version", "entries"} <= keys

    def __init__(self, notes: Notes) -> None:
        super().__init__(notes)
        self._events: list[Event] = []
        self._number = 0
        self._records: dict[int, tuple[Any, ...]] = {}
        self._next: int | None = None
        self._overwritten = self._left_out = 0
        self._latest: dict[str, tuple[Any, ...]] = {}
        self._begins: dict[str, int] = {}
        self._reached: dict[str, int] = {}
        self._unnumbered: set[str] = set()
        self._launches: set[tuple[str, int]] = set()
        self._enqueued = False

    def value(self, key: str, value: Any) -> None:
        """Take in a value of the top level."""
        if key == "version":
            if not (isinstance(value, str) and _KNOWN.fullmatch(value)):
                self.notes.add("READ7", f"version={short(value)}")
            else:  # before torch 2.5, NCCL counted the groups that a process is in
                self.same_names = int(value.removeprefix("2.")) >= _TORCHS_NAMES
        elif key == "rank":
            self.rank = self.fields.number(value, "rank", "the top level")
        elif key == "world_size":
            self.world_size = self.fields.number(value, "world_size", "the top level", least=1)
        elif key == "pg_status" and isinstance(value, dict):
            counts = [told.get("last_enqueued_collective") for told in value.values() if isinstance(told, dict)]
            self._enqueued = any(str(count).isdecimal() and str(count).strip("0") for count in counts)
        elif key == "pg_config" and isinstance(value, dict):
            for name, told in value.items():
                if isinstance(name, str) and name and isinstance(told, dict):
                    ranks = self.fields.numbers(told.get("ranks"), "ranks", f"the group {name!r}")
                    self.groups.tell(name, None, ranks or None)
                    self._default(name, told.get("desc"))

    def _default(self, name: str, description: Any) -> None:
        if description == _DEFAULT:
            self.groups.default = name

    def item(self, entry: Any) -> None:
        """Take in one entry."""
        self._number += 1
        where = f"entry {self._number}"
        told = entry if isinstance(entry, dict) else {}
        self._count(told.get("record_id"))
        text, group = told.get("profiling_name"), _group_of(told)
        if not isinstance(text, str):
            self.notes.add_lost("READ2", f"the entry {short(entry)}", where, group)
            return
        _, name = spelled(text)
        numbers = tuple(told.get(key) for key in ("collective_seq_id", "seq_id", "p2p_seq_id"))
        is_message = told.get("is_p2p") is True or name in _MESSAGES
        self._reach(group or "", numbers, is_message)
        if name in SUMMARIES:
            self._sum_up(name, group or "", numbers, is_message, where)
            return
        if not name_known(name, self.notes, where):
            return
        if self._is_double(told, (text, *numbers, told.get("op_id")), where):
            return
        event = Event("recv_any_source" if name == "recv" and text.endswith("<-?") else name, where, self._number)
        if not self._group(event, told):
            return
        self._latest[event.group] = numbers
        self._tensors(event, told)
        event.bare = "input_sizes" not in told
        if event.name == "all_gather" and _is_unread(told, event):
            self.notes.lose(event.group)  # whether it is one gather, or several coalesced, only its tensors tell
            return
        if event.name in EVEN:
            event.read_splits = event.write_splits = ()
        self._order(event, told, text)
        event.source = _source(told.get("frames"))
        self._events.append(event)

    def _count(self, record: Any) -> None:
        """Count the missing records, by the numbers of those that are there."""
        if not is_number(record):
            self._next = None if self._next is None else self._next + 1
            return
        if self._next is None:
            self._overwritten = max(0, record - self._number + 1)
        elif record > self._next:
            self._left_out += record - self._next
        self._next = max(self._next or 0, record + 1)

    def _is_double(self, entry: dict[Any, Any], told: tuple[Any, ...], where: str) -> bool:
        record = entry.get("record_id")
        if type(record) is not int:
            return False
        if self._records.get(record) == told:
            self.notes.add("READ8", f"record {record}", where)
            return True
        if self._records.setdefault(record, told) != told:
            self.notes.add("READ2", f"record_id={record}, of another record", where)
        return False

    def _reach(self, group: str, numbers: tuple[Any, ...], is_message: bool) -> None:
        """Note how far a group's number has come, and whether messages advance it, too."""
        index = _index(numbers)
        self._begins.setdefault(group, index or 0)
        if index is not None:
            reached = self._reached.get(group, index if self._overwritten else -1)
            if (is_message and index > reached) or (self._overwritten and numbers[0] is None):
                self._unnumbered.add(group)  # of what was overwritten nobody knows whether it was a message
            self._reached[group] = max(index, reached)

    def _sum_up(self, name: str, group: str, numbers: tuple[Any, ...], is_message: bool, where: str) -> None:
        """Take in the row behind the members of a coalesced launch, which have its numbers; before 2.7, only sends did.

        Sources: torch, FlightRecorder.hpp and ProcessGroupNCCL.cpp (endCoalescing), pull request 151238.
        """
        index = _index(numbers)
        if self._latest.get(group) == numbers:
            if index is not None and not is_message:
                self._launches.add((group, index))
        elif group in self._latest or not self._overwritten:  # else its members may have been overwritten
            name_known(name, self.notes, where)

    def _group(self, event: Event, entry: dict[Any, Any]) -> bool:
        """Read the event's group; return whether it is known, without which nobody can compare the call."""
        group = entry.get("process_group", entry.get("pg_name"))
        event.group = _group_of(entry) or ""
        if isinstance(group, (list, tuple)) and len(group) > 1:
            self._default(event.group, group[1])
        if not event.group:
            self.notes.add_lost("READ2", f"process_group={short(group)}", event.where)
        return bool(event.group)

    def _tensors(self, event: Event, entry: dict[Any, Any]) -> None:
        sides = []
        for side in ("input", "output"):
            dtypes = entry.get(f"{side}_dtypes")
            known = [self._dtype(text, event.where) for text in dtypes] if isinstance(dtypes, (list, tuple)) else []
            sides.append(self.fields.specs(entry.get(f"{side}_sizes"), known, f"{side}_sizes", event.where))
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
        if event.name in _MESSAGES:
            pair = _PAIR.search(text)
            if pair is not None and max(len(pair[1]), len(pair[3])) <= 9:
                event.rank, event.peer = int(pair[1]), int(pair[3])
            return
        number = entry.get("collective_seq_id", entry.get("seq_id"))
        index = self.fields.number(number, "collective_seq_id", event.where)
        event.index = None if index is None else max(index - 1, 0)

    def events(self) -> Iterator[Event]:
        """Yield the collectives in the order of their entries.

        Where sends and receives advance a group's number, too, it is another one on each rank, and is left out: so does
        the older `seq_id`, and so did `collective_seq_id` with each batch, before torch's pull request 135132. Of a
        coalesced launch whose first members were overwritten, the others are left out, too: they share its number.
        """
        self._note_missing()
        first: dict[str, Event] = {}
        for event in self._events:
            first.setdefault(event.group, event)
        torn = {(event.group, event.index) for event in first.values()} & self._launches if self._overwritten else ()
        for event in self._events:
            if (event.group, event.index) in torn:
                continue
            if event.group in self._unnumbered:
                event.index = None
            yield event

    def _note_missing(self) -> None:
        """Note the missing records that the numbers of others show."""
        lost = self.notes.lost
        late = [name for name, index in self._begins.items() if index and not {None, name} & {*lost}]
        if self._overwritten:
            self.notes.add("READ13", "later ones overwrote the first ones", count=self._overwritten)
        elif late:
            missing = f"the first ones of the group {late[0]!r} are not there"
            self.notes.add("READ13", missing, count=self._begins[late[0]])
        if self._left_out:
            self.notes.add_lost("READ13", "some in the middle are not there", count=self._left_out)
        if self._enqueued and not self._number:
            self.notes.add_lost("READ13", "calls were made, and none is there")


def _index(numbers: tuple[Any, ...]) -> int | None:
    """Return the index that an entry's `collective_seq_id` or `seq_id` tells."""
    number = numbers[0] if numbers[0] is not None else numbers[1]
    return max(number - 1, 0) if is_number(number) else None


def _is_unread(entry: dict[Any, Any], event: Event) -> bool:
    """Return whether an entry has tensors that cannot be read."""
    sides = (("input_sizes", event.reads), ("output_sizes", event.writes))
    return any(tensors is None and entry.get(key) is not None for key, tensors in sides)


def _group_of(entry: dict[Any, Any]) -> str | None:
    group = entry.get("process_group", entry.get("pg_name"))
    if isinstance(group, (list, tuple)):
        group = group[0] if group else None
    return group if isinstance(group, str) and group else None


def _source(frames: Any) -> str:
    """Return the innermost line that is not torch's own; frames stand innermost first."""
    for frame in frames if isinstance(frames, (list, tuple)) else ():
        if isinstance(frame, dict) and isinstance(frame.get("filename"), str) and not _OWN.search(frame["filename"]):
            return f"{frame['filename'].removeprefix(os.getcwd() + os.sep)}:{frame.get('line', '?')}"
    return ""

"""Recognises a recording by its content, and reads it."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.finding import Finding
from collective_rules.recordings.byte_stream import ByteStream, TextStream, opened
from collective_rules.recordings.call_builder import built
from collective_rules.recordings.execution_trace import ExecutionTrace
from collective_rules.recordings.flight_recorder import FlightRecorder
from collective_rules.recordings.groups import Collector
from collective_rules.recordings.json_stream import BEGINS, JsonStream
from collective_rules.recordings.kineto import Kineto
from collective_rules.recordings.ledger_lines import FORMAT, LedgerLines
from collective_rules.recordings.plain_pickle import load_plain
from collective_rules.recordings.recording import Notes, Recording, SourceError, named, short

_FORMATS: tuple[type[Collector], ...] = (FlightRecorder, Kineto, ExecutionTrace)
"""The formats of other tools; the first that has a file's keys takes it."""

_ARRAYS: Mapping[str, type[Collector]] = {array: format_ for format_ in _FORMATS for array in format_.arrays}
_LARGEST_PICKLE = 1 << 30
_HEAD = 1 << 16
_IN_NAME = re.compile(
    r"rank[ _.-]?(\d{1,9})(?!\d)|(?:^|[ _.-])(?:fr|et|kineto|trace|ledger|dump)[_.-]?(\d{1,9})$|^(\d{1,9})$"
)


def read(path: str | os.PathLike[str], *, rank: int | None = None, world_size: int | None = None) -> Recording:
    """Read the recording at `path`, plain or gzip, whatever its name.

    `rank` and `world_size` (global) are what the caller knows; left out, they are what the file says, the rank else
    what its name says ("rank3.json"). What cannot be read or decided is a finding of the recording.

    Raises `SourceError` where nothing can be read: no file, no recording, or a pickle that holds more than plain data.
    """
    for name, value, least in (("rank", rank, 0), ("world_size", world_size, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise CallError(f"{name}={value!r}, but should be a number, {least} or more")
    with opened(path) as stream:
        shown = os.fspath(path)
        notes = Notes(Path(shown).name)
        head = stream.peek(_HEAD)
        if _is_ledger(head):
            return _read_ledger(shown, stream, notes, rank, world_size)
        if head[:1] == b"\x80" or head[:2] in (b"(d", b"(l", b"}q", b"]q"):
            source, records = _read_pickle(shown, stream, notes)
        else:
            source, records = _read_json(shown, stream, notes)
        return _recording(shown, source, records, notes, rank, world_size)


def same_ranks(recordings: Iterable[Recording]) -> tuple[Finding, ...]:
    """Return a finding for each rank of which there is more than one recording."""
    seen: dict[int, str] = {}
    found: list[Finding] = []
    for recording in recordings:
        if recording.rank is not None and seen.setdefault(recording.rank, recording.path) != recording.path:
            notes = Notes(recording.path)
            notes.add("READ8", f"rank {recording.rank} (by {seen[recording.rank]})")
            found += notes.findings(recording.rank)
    return tuple(found)


def _is_ledger(head: bytes) -> bool:
    line = head.split(b"\n", 1)[0].removeprefix(b"\xef\xbb\xbf")
    try:
        first = json.loads(line.decode())  # else json takes UTF-16 for text, too
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and (first.get("format") == FORMAT or {"op", "group", "arguments"} <= first.keys())


def _read_ledger(path: str, stream: ByteStream, notes: Notes, rank: int | None, world_size: int | None) -> Recording:
    lines, text = LedgerLines(notes), TextStream(stream)
    calls = tuple(lines.calls(text))
    if text.foreign:
        notes.add("READ2", "text that is no UTF-8")
    rank = _first(rank, lines.rank, _rank_in_name(path))
    for call in calls:
        if rank is not None and call.group.ranks and call.group.ranks[call.group.rank] != rank:
            notes.add("READ10", f"a call of rank {call.group.ranks[call.group.rank]} in the ledger of rank {rank}")
    counts = {"records": lines.records, "collectives": lines.records, "calls": len(calls)}
    size = _first(world_size, lines.world_size)
    found = (notes.findings(rank), counts, notes.lost, tuple(lines.told))
    return Recording(path, lines.name, rank, size, calls, *found, same_names=True)


def _read_pickle(path: str, stream: ByteStream, notes: Notes) -> tuple[Collector, int]:
    data = b"".join(iter(stream.read, b""))[: _LARGEST_PICKLE + 1]
    if len(data) > _LARGEST_PICKLE:
        raise SourceError(f"{named(path)} is a pickle of more than {_LARGEST_PICKLE} bytes")
    if stream.cut:
        raise SourceError(f"{named(path)} cannot be read: {stream.cut}")
    dump = load_plain(data, named(path))
    if not isinstance(dump, dict) or not isinstance(dump.get("entries"), list):
        raise SourceError(f"{named(path)} is a pickle, but no Flight Recorder dump: it has no entries")
    source = FlightRecorder(notes)
    for key, value in dump.items():
        if key != "entries":
            source.value(str(key), value)
    for entry in dump["entries"]:
        source.item(entry)
    return source, len(dump["entries"])


def _read_json(path: str, stream: ByteStream, notes: Notes) -> tuple[Collector, int]:
    text = TextStream(stream)
    document = JsonStream(text, _ARRAYS, functools.partial(notes.add_lost, "READ2"))
    source: Collector | None = None
    before: list[tuple[str, Any]] = []
    records = 0
    for key, is_item, value in document:
        if key in _ARRAYS and not is_item and value is not BEGINS:
            notes.add_lost("READ2", f"{key}={short(value)}, which should be a list")
        elif key in _ARRAYS and (key or (isinstance(value, dict) and "ph" in value)):
            source = _ARRAYS[key](notes) if source is None else source
        if is_item:
            if source is not None and isinstance(source, _ARRAYS[key]):
                records += 1
                source.item(value)
        else:
            before.append((key, value))
    if source is None:
        keys = {key for key, _ in before}
        source = next((format_(notes) for format_ in _FORMATS if format_.has_keys(keys)), None)
    if source is None:
        what = f" ({document.cut})" if document.cut else ""
        raise SourceError(
            f"{named(path)} is no recording that is known{what}: ledgers, Flight Recorder dumps, Kineto traces and "
            "execution traces are"
        )
    for key, value in before:
        source.value(key, value)
    if document.cut:
        notes.add("READ1", document.cut)
    if text.foreign:
        notes.add("READ2", "text that is no UTF-8")
    return source, records


def _recording(
    path: str, source: Collector, records: int, notes: Notes, rank: int | None, world_size: int | None
) -> Recording:
    events = list(source.events())
    rank, size = _first(rank, source.rank, _rank_in_name(path)), _first(world_size, source.world_size)
    groups = source.groups
    groups.world, groups.said = size, world_size
    for event in events:
        groups.tell(event.group, event.size, event.ranks, event.rank)
    if rank is None and len(groups.by_name) == 1:
        known = next(iter(groups.by_name.values()))
        rank = known.ranks[known.rank] if known.rank is not None and known.rank < len(known.ranks) else None
    calls: tuple[Call, ...] = tuple(built(events, groups, rank, notes))
    counts = {"records": records, "collectives": len(events), "calls": len(calls)}
    told = (path, source.name, rank, size, calls, notes.findings(rank), counts, notes.lost)
    return Recording(*told, same_names=source.same_names)


def _first(*numbers: int | None) -> int | None:
    return next((number for number in numbers if number is not None), None)


def _rank_in_name(path: str) -> int | None:
    """Return the rank that the file's name ends with, or that stands behind "rank" in it."""
    stem = Path(path).name
    while Path(stem).suffix and not Path(stem).suffix[1:].isdigit():
        stem = Path(stem).stem
    found = list(_IN_NAME.finditer(stem.lower()))
    if not found:
        return None
    return int(next(number for number in found[-1].groups() if number))

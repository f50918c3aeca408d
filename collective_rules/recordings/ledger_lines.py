"""Our own recordings: JSON Lines, one header and one line for each call.

    {"format": "collective_rules ledger", "version": 1, "rank": 0, "world_size": 8}
    {"op": "c10d::allreduce_", "group": {...}, "arguments": {...}, "source": "train.py:88", "index": 0, "at": 0.51}
    {"finding": {"id": "AR2", "severity": "error", "message": "...", "ranks": [1], ...}}

A line is whole or it is lost: what a crash leaves of the last one is passed over. Everything of a call is kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Self

import attrs
import torch.distributed as dist

from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.finding import Finding
from collective_rules.ledger import Entry, Ledger
from collective_rules.recordings.byte_stream import TextStream
from collective_rules.recordings.recording import Notes, SourceError, short
from collective_rules.records import from_finding_record, from_record, to_finding_record, to_record
from collective_rules.spec import is_size

FORMAT = "collective_rules ledger"
_VERSION = 1
_LONGEST = 1 << 26
_LARGEST = 2**63 - 1
_MOST_KNOWN = 100_000
_ENTRY = {"module": str, "phase": str, "step": int, "at": float}
"""What is written of an entry besides its call."""


class LedgerWriter(contextlib.AbstractContextManager["LedgerWriter"]):
    """Writes calls to a file as they are made, one line each; the file is readable at any time.

    `path` is made anew, `{rank}` in it is replaced by the rank. `rank` and `world_size` are torch.distributed's own
    where they are left out: then the file is opened with the first call, when the process group is there. Each line is
    flushed to the operating system, so that a process that dies loses at most the last one. May be called from several
    threads.

    >>> import tempfile, collective_rules as cr
    >>> from collective_rules.recordings import LedgerWriter, read
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     with LedgerWriter(f"{directory}/rank{{rank}}.jsonl", rank=1, world_size=2) as write:
    ...         write(cr.call("c10d::barrier", group=cr.Group(2, 1)))
    ...     read(write.path).calls
    (<c10d::barrier on rank 1 of 2, ...>,)
    """

    def __init__(self, path: str | os.PathLike[str], *, rank: int | None = None, world_size: int | None = None) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise CallError(f"path={path!r}, but should be a path such as 'ledger/rank{{rank}}.jsonl'")
        for name, value in (("rank", rank), ("world_size", world_size)):
            if value is not None and (not is_size(value) or value < 0):
                raise CallError(f"{name}={value!r}, but should be a number")
        self.path = os.fspath(path)
        self.count = 0
        self._rank, self._world_size = rank, world_size
        self._file: io.TextIOWrapper | None = None
        self._lock = threading.Lock()
        self._closed = False
        if rank is not None:
            self._open()

    def __call__(self, made: Call | Entry) -> None:
        """Write one call, or an entry of a ledger; a call whose sizes only the run knows is written as a fault."""
        self._write(_record(made))
        self.count += 1

    def find(self, finding: Finding) -> None:
        """Write a finding."""
        self._write({"finding": to_finding_record(finding)})

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":"))
        with self._lock:
            if self._closed:
                raise CallError(f"{self.path} is closed: write before the with block ends")
            if self._file is None:
                self._open()
            assert self._file is not None
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError as error:
                raise SourceError(f"{self.path} cannot be written: {error.strerror or error}") from None

    def follow(self, ledger: Ledger) -> Self:
        """Write each call that `ledger` takes in from now on, before it is carried out, until this is closed.

        Findings are written, too.

        >>> import tempfile, torch, torch.distributed as dist, collective_rules as cr
        >>> from torch.testing._internal.distributed.fake_pg import FakeStore
        >>> from collective_rules.recordings import LedgerWriter, read
        >>> dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
        >>> with tempfile.TemporaryDirectory() as directory, LedgerWriter(f"{directory}/rank{{rank}}.jsonl") as write:
        ...     with cr.RuleMode() as ledger:
        ...         write.follow(ledger)
        ...         dist.barrier()
        ...         read(write.path)
        <collective_rules.recordings.ledger_lines.LedgerWriter ...>
        <ledger ...rank0.jsonl: 1 calls of rank 0 of 8>
        >>> dist.destroy_process_group()
        """
        if not isinstance(ledger, Ledger):
            raise CallError(f"{short(ledger)} is no Ledger: pass what `with RuleMode() as ledger` gives")
        ledger.followers.append(self._take)
        ledger.finding_followers.append(self._take_finding)
        return self

    def _take(self, entry: Entry) -> None:
        if not self._closed:
            self(entry)

    def _take_finding(self, finding: Finding) -> None:
        if not self._closed:
            self.find(finding)

    def _open(self) -> None:
        rank, size = self._rank, self._world_size
        if rank is None and dist.is_available() and dist.is_initialized():
            rank, size = dist.get_rank(), size or dist.get_world_size()
        told = os.environ.get("RANK", "")
        rank = int(told) if rank is None and told.isdigit() else rank
        self.path = self.path.replace("{rank}", "0" if rank is None else str(rank))
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise SourceError(f"{self.path} cannot be written: {error.strerror or error}") from None
        header = {"format": FORMAT, "version": _VERSION, "rank": rank, "world_size": size}
        self._file.write(json.dumps(header) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Write no more. A ledger without a call is a file with a header only."""
        with self._lock:
            if self._file is None and not self._closed:
                self._open()
            self._closed = True
            if self._file is not None:
                self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def write_ledger(ledger: Ledger, path: str | os.PathLike[str], **more: Any) -> str:
    """Write what `ledger` kept to `path`, as `LedgerWriter` does; returns the file's path."""
    if not isinstance(ledger, Ledger):
        raise CallError(f"{short(ledger)} is no Ledger: pass what `with RuleMode() as ledger` gives")
    with LedgerWriter(path, **more) as write:
        for entry in ledger.entries:
            write(entry)
        for finding in ledger.findings:
            write.find(finding)
    return write.path


def _record(made: Call | Entry) -> dict[str, Any]:
    call = made.call if isinstance(made, Entry) else made
    try:
        record = to_record(call)
    except CallError as error:
        record = {"op": call.op, "fault": str(error)}
    if isinstance(made, Entry):
        told = {name: getattr(made, name) for name in _ENTRY}
        record |= {name: value for name, value in told.items() if value or name == "at"}
    return record


def _is_plain(name: str, value: Any) -> bool:
    """Return whether `value` fits the call's field `name`; every field may be None."""
    if name == "index" and value is not None:
        return is_size(value) and 0 <= value <= _LARGEST
    return value is None or type(value) is {"source": str, "index": int, "blocking": bool}[name]


class LedgerLines:
    """Reads such a file line by line."""

    name = "ledger"

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.rank: int | None = None
        self.world_size: int | None = None
        self.records = 0
        self.told: list[Finding] = []
        self._known: dict[str, Call] = {}
        self._seen: set[int] = set()

    def calls(self, text: TextStream) -> Iterator[Call]:
        """Yield the calls that can be read."""
        pending, line_number, header = "", 0, False
        while True:
            more = text.read()
            pending += more
            lines = pending.split("\n")
            pending = lines.pop()
            if not more and pending:
                lines.append(pending)
            for line in lines:
                line_number += 1
                last = not more and line is lines[-1] and bool(pending)
                record = self._line(line, f"line {line_number}", last)
                if isinstance(record, dict) and record.get("format") == FORMAT:
                    self._header(record, first=not header)
                    header = True
                elif isinstance(record, dict) and record.keys() == {"finding"}:
                    self._finding(record["finding"], f"line {line_number}")
                elif record is not None and not self._is_double(record, line, f"line {line_number}"):
                    self.records += 1
                    call = self._call(record, f"line {line_number}")
                    if call is not None:
                        yield call
            if not more:
                break
            if len(pending) > _LONGEST:
                self.notes.add("READ1", "a line is longer than any call's", f"line {line_number + 1}")
                break
        if text.bytes.cut:
            self.notes.add("READ1", text.bytes.cut)
        if not header:
            self.notes.add("READ2", "it has no header, which names the rank")

    def _is_double(self, record: Any, line: str, where: str) -> bool:
        """Return whether the line was there before; its time or its index makes a line unique."""
        if not isinstance(record, dict) or not ({"at", "index"} & record.keys()):
            return False
        key = hash(line)
        if key in self._seen:
            self.notes.add("READ8", "a line", where)
            return True
        self._seen.add(key)
        return False

    def _line(self, line: str, where: str, last: bool) -> Any:
        if not line.strip():
            return None
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            if last:
                self.notes.add("READ1", "its last line is not whole", where)
            else:
                self.notes.add_lost("READ2", f"the line {short(line)}", where)
            return None

    def _header(self, header: Mapping[str, Any], *, first: bool) -> None:
        if not first:
            self.notes.add("READ8", "a header")
            return
        if header.get("version") != _VERSION:
            self.notes.add("READ7", f"version={short(header.get('version'))}")
        for name in ("rank", "world_size"):
            value = header.get(name)
            if value is not None and (type(value) is not int or value < 0):
                self.notes.add("READ2", f"{name}={short(value)}, which should be a number", "line 1")
            else:
                setattr(self, name, value)

    def _finding(self, record: Any, where: str) -> None:
        try:
            self.told.append(from_finding_record(record))
        except (CallError, TypeError, RecursionError) as error:
            self.notes.add("READ2", f"a finding: {str(error).splitlines()[0][:200]}", where)

    def _call(self, record: Any, where: str) -> Call | None:
        own: dict[str, Any] = {}
        if isinstance(record, dict):
            if "fault" in record:
                self.notes.add_lost("READ2", str(record["fault"])[:200], where)
                return None
            own = {name: record.pop(name) for name in ("source", "index", "blocking") if name in record}
            for name in [name for name, value in own.items() if not _is_plain(name, value)]:
                self.notes.add("READ2", f"{name}={short(own.pop(name))}", where)
            record = {name: value for name, value in record.items() if name not in _ENTRY}
        return self._alike(record, own, where)

    def _alike(self, record: Any, own: dict[str, Any], where: str) -> Call | None:
        """Return the call of `record` and `own`; calls that differ in `own` alone share their arguments."""
        key = json.dumps(record)
        known = self._known.get(key)
        try:
            if known is None:
                made = from_record({**record, **own} if isinstance(record, dict) else record)
                if len(self._known) < _MOST_KNOWN:
                    self._known[key] = made
                return made
            return attrs.evolve(known, **{"source": "", "index": None, "blocking": None, **own})
        except CallError as error:
            self.notes.add_lost("READ2", str(error).splitlines()[0][:200], where)
            return None

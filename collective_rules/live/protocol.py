"""The ranks' messages to each other as bytes: calls, findings, and last calls. Only this library writes them."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import attrs

from collective_rules.agreement.collective import common_values
from collective_rules.call import Call
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.finding import Finding
from collective_rules.ledger import CallFacts, Entry
from collective_rules.messages import call_text
from collective_rules.records import from_finding_record, from_record, to_finding_record, to_record
from collective_rules.spec import Group

_MOST = 10_000
_HEAD = struct.Struct("<IHI?")


class UnreadableError(CollectiveRulesError):
    """A value in the store is not one that a rank wrote."""


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _reads(unpack: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return `unpack`, but with `UnreadableError` for all that a value which no rank wrote may lead to."""

    @functools.wraps(unpack)
    def unpack_or_say_so(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return unpack(*args, **kwargs)
        except _UNREADABLE as error:
            raise UnreadableError(f"{type(error).__name__}: {error}"[:200]) from error

    return unpack_or_say_so


_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    CollectiveRulesError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@attrs.frozen(eq=False)
class EncodedCall:
    """The bytes and texts of a call, shared by calls that are alike.

    - `record`: the op and its arguments, without group and source; empty where they cannot be written down.
    - `text`: for people. `code`: a hash of the values that every rank has to pass alike. `varies`: whether the call
      has other values, too.
    """

    record: bytes
    text: str
    code: int
    varies: bool


class CallEncoder:
    """Encodes calls, those that are alike once."""

    def __init__(self) -> None:
        self._encoded: dict[int, tuple[CallFacts, EncodedCall]] = {}

    def of(self, facts: CallFacts) -> EncodedCall:
        """Return the encoding of calls with these facts."""
        pair = self._encoded.get(id(facts))
        if pair is None:
            if len(self._encoded) >= _MOST:
                self._encoded.clear()
            pair = self._encoded[id(facts)] = (facts, encode(facts.call, facts.sizes))
        return pair[1]


def encode(call: Call, sizes: str = "") -> EncodedCall:
    """Return the encoding of a call; `sizes` is the text of its sizes."""
    try:
        record = to_record(call)
        text = json.dumps({"op": record["op"], "arguments": record["arguments"]}, separators=(",", ":")).encode()
    except (CallError, TypeError):  # a size that only the run knows, an argument that is no data
        text = b""
    try:
        values, varies = common_values(call)
    except (CallError, TypeError, ValueError):  # illegal: `check` says why
        values, varies = [call.row.rule.name], True
    code = int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), "little")
    about = call_text(call) if call.row.rule.makes_groups else f"{call.op} {sizes}".rstrip()
    return EncodedCall(text, about, code, varies)


@attrs.frozen
class Arrival:
    """One rank's arrival at a meeting: its rank in the group, and the record of its call."""

    rank: int
    blocking: bool
    source: str
    record: bytes

    def pack(self) -> bytes:
        """Return bytes that can be appended to those of other arrivals."""
        source = self.source.encode(errors="backslashreplace")[:2000]
        return _HEAD.pack(self.rank, len(source), len(self.record), self.blocking) + source + self.record

    @staticmethod
    @_reads
    def unpack(text: bytes) -> list[Arrival]:
        """Return the arrivals that were appended to a key."""
        start, arrivals = 0, []
        while start < len(text):
            rank, source, record, blocking = _HEAD.unpack_from(text, start)
            middle = start + _HEAD.size + source
            start_of_next = middle + record
            if start_of_next > len(text):
                raise UnreadableError("it ends in the middle of a rank's arrival")
            words = text[start + _HEAD.size : middle].decode(errors="replace")
            arrivals.append(Arrival(rank, blocking, words, text[middle:start_of_next]))
            start = start_of_next
        return arrivals


@attrs.frozen
class Departure:
    """What a rank says as it leaves the block: `how` it leaves, whether it `failed`, and the data of its hashes.

    A rank that has not failed stays until all ranks have come, and answers what it is asked.
    """

    rank: int
    how: str
    failed: bool
    totals: list[list[Any]]

    def pack(self) -> bytes:
        """Return this departure as bytes."""
        return json.dumps(attrs.asdict(self)).encode()

    @staticmethod
    @_reads
    def unpack(text: bytes) -> Departure:
        """Return the departure that `pack` packed."""
        return Departure(**json.loads(text))


class CallDecoder:
    """Makes calls from records, those that are alike once."""

    def __init__(self) -> None:
        self._decoded: dict[tuple[bytes, Group], Call] = {}

    @_reads
    def call(self, arrival: Arrival, group: Group, index: int | None) -> Call:
        """Return the call of another rank of `group`."""
        theirs = attrs.evolve(group, rank=arrival.rank)
        call = self._decoded.get((arrival.record, theirs))
        if call is None:
            if len(self._decoded) >= _MOST:
                self._decoded.clear()
            record = {**json.loads(arrival.record), "group": {"size": group.size, "rank": arrival.rank}}
            call = self._decoded[arrival.record, theirs] = attrs.evolve(from_record(record), group=theirs)
        return Call(call.row, theirs, call.arguments, arrival.source, index, arrival.blocking)


def pack_findings(findings: Iterable[Finding]) -> str:
    """Return findings as JSON; the values of their names become plain data."""
    return json.dumps([to_finding_record(each) for each in findings])


@_reads
def unpack_findings(text: str) -> tuple[Finding, ...]:
    """Return the findings that `pack_findings` packed."""
    return tuple(map(from_finding_record, json.loads(text)))


def pack_tail(tail: Sequence[tuple[Entry, int]], encoder: CallEncoder) -> bytes:
    """Return the last calls of a rank, each with its index in its group, as bytes; alike calls are written once."""
    groups: dict[Group, int] = {}
    records: dict[bytes, int] = {}
    sources: dict[str, int] = {}
    calls = []
    for entry, index in tail:
        record = encoder.of(entry.facts).record
        if record:
            group = groups.setdefault(entry.facts.call.group, len(groups))
            number = records.setdefault(record, len(records))
            source = sources.setdefault(entry.source, len(sources))
            calls.append((group, number, source, index, not entry.asynchronous))
    named = [(group.size, group.rank, group.name, group.ranks) for group in groups]
    data = {"groups": named, "records": [*map(bytes.decode, records)], "sources": [*sources], "calls": calls}
    return zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 1)


@_reads
def unpack_tail(text: bytes, decoder: CallDecoder) -> list[Call]:
    """Return the calls that `pack_tail` packed."""
    data = json.loads(zlib.decompress(text))
    groups = [Group(size, rank, name, tuple(ranks)) for size, rank, name, ranks in data["groups"]]
    records = [record.encode() for record in data["records"]]
    return [
        decoder.call(
            Arrival(groups[group].rank, blocking, data["sources"][source], records[number]), groups[group], index
        )
        for group, number, source, index, blocking in data["calls"]
    ]

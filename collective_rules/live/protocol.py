"""What ranks tell each other, as bytes: calls, findings, and who did what. What is read was written by this library."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from collective_rules.binding.binder import bind
from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.finding import Finding
from collective_rules.records import from_record, to_record
from collective_rules.spec import Group

if TYPE_CHECKING:
    from collective_rules.ledger import CallFacts, Entry

__all__ = [
    "Arrival",
    "CallDecoder",
    "CallEncoder",
    "EncodedCall",
    "pack_findings",
    "pack_tail",
    "unpack_findings",
    "unpack_tail",
]

_MOST = 10_000
_HEAD = struct.Struct("<IHI?")


@attrs.frozen(eq=False)
class EncodedCall:
    """A call, as others are told of it: alike calls share one.

    - `record`: the op and its arguments, without group and source; empty where they cannot be written down.
    - `text`: for people. `code`: a number of what every rank has to pass alike. `varies`: whether there is more to it.
    """

    record: bytes
    text: str
    code: int
    varies: bool


class CallEncoder:
    """Describes calls, alike ones once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[CallFacts, EncodedCall]] = {}

    def of(self, known: CallFacts) -> EncodedCall:
        """Describe what is known of a call."""
        found = self._known.get(id(known))
        if found is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            found = self._known[id(known)] = (known, encode(known.call, known.sizes))
        return found[1]


def encode(call: Call, sizes: str = "") -> EncodedCall:
    """Describe a call."""
    try:
        record = to_record(call)
        text = json.dumps({"op": record["op"], "arguments": record["arguments"]}, separators=(",", ":")).encode()
    except (CallError, TypeError):  # a size that only the run knows, an argument that is no data
        text = b""
    agreed, varies = _agreed(call)
    code = int.from_bytes(hashlib.blake2b(repr(agreed).encode(), digest_size=8).digest(), "little")
    return EncodedCall(text, f"{call.op} {sizes}".rstrip(), code, varies)


def _agreed(call: Call) -> tuple[list[Any], bool]:
    """Return what every rank of the group binds alike, and whether there are names that are a rank's or a pair's."""
    rule = call.row.rule
    try:
        bound = bind(call)
    except (CallError, TypeError, ValueError):  # illegal: `check` says why
        return [rule.name], True
    alike = [(key, value) for key, value in bound.names.items() if len(key) <= 2 and key[0] not in rule.derived]
    pairs = len(alike) < len(bound.names) or rule.point_to_point
    values = sorted(f"{key[0]}={value}" for key, value in alike if key[-1] in (None, 0) or len(key) == 1)
    return [rule.name, values, [str(call.attribute(name)) for name in rule.agreed]], pairs


@attrs.frozen
class Arrival:
    """One rank's call in a meeting: its rank in the group, and what it encoded."""

    rank: int
    blocking: bool
    source: str
    record: bytes

    def pack(self) -> bytes:
        """Return it as bytes that can be told from the next post's."""
        source = self.source.encode()[:2000]
        return _HEAD.pack(self.rank, len(source), len(self.record), self.blocking) + source + self.record

    @staticmethod
    def unpack(text: bytes) -> Iterator[Arrival]:
        """Yield the posts that were appended to a key."""
        start = 0
        while start < len(text):
            rank, source, record, blocking = _HEAD.unpack_from(text, start)
            middle = start + _HEAD.size + source
            yield Arrival(rank, blocking, text[start + _HEAD.size : middle].decode(), text[middle : middle + record])
            start = middle + record


class CallDecoder:
    """From records back to calls, alike ones once."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, Group], Call] = {}

    def call(self, post: Arrival, group: Group, index: int | None) -> Call:
        """Return the call of another rank of `group`."""
        theirs = attrs.evolve(group, rank=post.rank)
        found = self._known.get((post.record, theirs))
        if found is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            record = {**json.loads(post.record), "group": {"size": group.size, "rank": post.rank}}
            found = self._known[post.record, theirs] = attrs.evolve(from_record(record), group=theirs)
        return Call(found.row, theirs, found.arguments, post.source, index, post.blocking)


def pack_findings(findings: Iterable[Finding]) -> str:
    """Return findings as text; the values of their names become plain data."""
    return json.dumps([attrs.asdict(found, recurse=False) | {"names": _plain(found.names)} for found in findings])


def unpack_findings(text: str) -> tuple[Finding, ...]:
    """Undo `pack_findings`."""
    fields = ({**found, "ranks": tuple(found["ranks"]), "names": _rich(found["names"])} for found in json.loads(text))
    return tuple(Finding(**each) for each in fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {"pairs": [[_plain(name), _plain(item)] for name, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        return {_rich(name): _rich(item) for name, item in value["pairs"]}
    return tuple(_rich(item) for item in value) if isinstance(value, list) else value


def pack_tail(tail: Sequence[tuple[Entry, int]], encoder: CallEncoder) -> bytes:
    """Return the last calls of a rank, each with its place among its group's; those that are alike are written once."""
    groups: dict[Group, int] = {}
    records: dict[bytes, int] = {}
    sources: dict[str, int] = {}
    calls = []
    for entry, index in tail:
        record = encoder.of(entry.facts).record
        if record:
            group = groups.setdefault(entry.facts.call.group, len(groups))
            kind = records.setdefault(record, len(records))
            source = sources.setdefault(entry.source, len(sources))
            calls.append((group, kind, source, index, not entry.asynchronous))
    named = [(group.size, group.rank, group.name, group.ranks) for group in groups]
    told = {"groups": named, "records": [*map(bytes.decode, records)], "sources": [*sources], "calls": calls}
    return zlib.compress(json.dumps(told, separators=(",", ":")).encode(), 1)


def unpack_tail(text: bytes, decoder: CallDecoder) -> list[Call]:
    """Undo `pack_tail`."""
    told = json.loads(zlib.decompress(text))
    groups = [Group(size, rank, name, tuple(ranks)) for size, rank, name, ranks in told["groups"]]
    records = [record.encode() for record in told["records"]]
    return [
        decoder.call(
            Arrival(groups[group].rank, blocking, told["sources"][source], records[kind]), groups[group], index
        )
        for group, kind, source, index, blocking in told["calls"]
    ]

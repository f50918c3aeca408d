"""Point-to-point calls of several ranks: each send finds its receive, and the pairs are compared.

A backend matches by source and tag, in order. Receives from any source are matched last, with a send of the same
shape if there is one: in which order they arrive only the run tells.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from collective_rules.agreement.streams import GroupCalls, Kinds, Stream
from collective_rules.agreement.unify import Binding, disagreement, unify
from collective_rules.binding.binder import bind
from collective_rules.call import UNKNOWN, Call
from collective_rules.finding import UNDECIDABLE, Finding
from collective_rules.messages import ranks_text

__all__ = ["Message", "Partners"]

Message = tuple[int, int]
"""A send or a receive: the group rank, and its place among the rank's messages of the group."""

_Pending = deque[Message]


class _Sent:
    """The messages to one rank that nobody has received yet: by source and tag, in order."""

    def __init__(self) -> None:
        self._by: dict[Any, dict[Any, _Pending]] = {}
        self._sources: dict[Any, dict[Any, None]] = {}

    def add(self, message: Message, tag: Any) -> None:
        """Add a message."""
        self._by.setdefault(message[0], {}).setdefault(tag, deque()).append(message)
        self._sources.setdefault(tag, {})[message[0]] = None

    def take(self, source: Any, tag: Any) -> Message:
        """Take the next message of a source with this tag; the source is the last to be asked for another one."""
        message = self._by[source][tag].popleft()
        del self._sources[tag][source]
        if self._by[source][tag]:
            self._sources[tag][source] = None
        else:
            del self._by[source][tag]
        return message

    def take_all(self, source: Any, tag: Any) -> list[Message]:
        """Take all messages of a source with this tag."""
        pending = self._by.get(source, {}).pop(tag, None)
        if not pending:
            return []
        del self._sources[tag][source]
        return [*pending]

    def sources(self, tag: Any) -> Iterable[Any]:
        """Return the sources that have messages with this tag, the one that has waited longest first."""
        return self._sources.get(tag, ())

    def next(self, source: Any, tag: Any) -> Message:
        """Return the next message of a source with this tag."""
        return self._by[source][tag][0]

    def count(self, source: Any, tag: Any) -> int:
        """Return how many messages of a source with this tag there are."""
        return len(self._by.get(source, {}).get(tag, ()))

    def take_any(self, source: int | None) -> Message | None:
        """Take a message of a source (None: of any), whatever its tag."""
        for each in [*self._by] if source is None else [source]:
            for tag in self._by.get(each, ()):
                return self.take(each, tag)
            self._by.pop(each, None)
        return None

    def rest(self) -> list[Message]:
        """Return all that nobody received."""
        return [message for by in self._by.values() for pending in by.values() for message in pending]


class Partners:
    """The messages of one group, matched. `pairs`: each matched message's partner, in both directions."""

    def __init__(self, group: GroupCalls, kinds: Kinds, expected: frozenset[int]) -> None:
        self.pairs: dict[Message, Message] = {}
        self._group, self._kinds, self._expected = group, kinds, expected
        self._alone: list[Message] = []
        self._known_looks: dict[int, Any] = {}
        self._known_sure: dict[Any, bool] = {}
        self._from_any: set[tuple[int, Any]] = set()
        if not group.malformed:
            self._match()

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong between the two ends of each message, and the messages that have one end only."""
        for call, error in self._group.malformed[:1]:
            rank = call.group.rank
            verdict = f"rank {rank}'s partners are not known: {error}"
            yield disagreement(bind(call), error.kind, verdict, rows=[], names={}, ranks=(rank,), severity=UNDECIDABLE)
        found: dict[Any, Finding] = {}
        for what, each in self._faults():
            known = found.get(what)
            found[what] = each if known is None else attrs.evolve(known, count=known.count + 1)
        yield from found.values()

    def call(self, message: Message) -> Call:
        """Return the call that is one end of a message."""
        rank, place = message
        return self._group.messages[rank].call(place, self._kinds)

    def is_open(self, message: Message) -> bool:
        """Whether a message is a receive from any source."""
        call = self._alike(message)
        return call.row.rule.direction == "receive" and call.attribute("peer") is None

    def _alike(self, message: Message) -> Call:
        """A call of the same kind, maybe another rank's."""
        rank, place = message
        return self._kinds.calls[self._group.messages[rank].kinds[place]]

    def _match(self) -> None:
        waiting: dict[int, _Sent] = {}
        for rank, stream in sorted(self._group.messages.items()):
            for place, kind in enumerate(stream.kinds):
                call = self._kinds.calls[kind]
                if call.row.rule.direction == "send":
                    waiting.setdefault(call.attribute("peer"), _Sent()).add((rank, place), call.attribute("tag"))
        left: list[Message] = []
        for rank, stream in sorted(self._group.messages.items()):
            left += self._receive(rank, stream, waiting.get(rank, _Sent()))
        for receive in left:
            call = self._alike(receive)
            send = waiting.get(receive[0], _Sent()).take_any(call.attribute("peer"))
            if send is None:
                self._alone.append(receive)
            else:
                self._pair(send, receive)
        self._alone += sorted(send for sent in waiting.values() for send in sent.rest())

    def _receive(self, rank: int, stream: Stream, sent: _Sent) -> Iterator[Message]:
        """Pair the receives of one rank with what was sent to it; yield those that get nothing."""
        receives: dict[Any, list[tuple[int, Any]]] = {}
        for place, kind in enumerate(stream.kinds):
            call = self._kinds.calls[kind]
            if call.row.rule.direction != "send":
                receives.setdefault(call.attribute("tag"), []).append((place, call.attribute("peer")))
        for tag, known in receives.items():
            named: dict[Any, list[Message]] = {}
            for place, source in known:
                named.setdefault(source, []).append((rank, place))
            if None in named:
                self._from_any.add((rank, tag))
                yield from self._receive_any(rank, known, tag, sent)
                continue
            for source, mine in named.items():
                theirs = sent.take_all(source, tag)
                sends, unheard = self._beside(theirs, mine)
                received, alone = self._beside(mine, theirs)
                for message in unheard:
                    sent.add(message, tag)
                for send, receive in zip(sends, received, strict=True):
                    self._pair(send, receive)
                yield from alone

    def _beside(self, own: list[Message], others: list[Message]) -> tuple[list[Message], list[Message]]:
        """Return as many of `own` as there are others, and those that are too many.

        The latter are those without which all look alike; the last ones, if none are.
        """
        spare = len(own) - len(others)
        if spare <= 0:
            return own, []
        looks, wanted = [*map(self._looks, own)], [*map(self._looks, others)]
        at = next((place for place, look in enumerate(wanted) if looks[place] != look), len(wanted))
        if looks[at + spare :] != wanted[at:]:
            at = len(wanted)
        return own[:at] + own[at + spare :], own[at : at + spare]

    def _receive_any(self, rank: int, known: list[tuple[int, Any]], tag: Any, sent: _Sent) -> Iterator[Message]:
        """Pair the receives with one tag, of which some are from any source; yield those that get nothing."""
        named = Counter(source for _, source in known)
        for place, source in known:
            named[source] -= 1
            chosen = source if source is not None else self._of_any(sent, (rank, place), tag, named)
            if sent.count(chosen, tag):
                self._pair(sent.take(chosen, tag), (rank, place))
            else:
                yield rank, place

    def _of_any(self, sent: _Sent, receive: Message, tag: Any, named: Counter[Any]) -> Any:
        """Of the sources with a message to spare, the first whose next one fits, else the first."""
        wanted = self._looks(receive)
        first = spare = None
        for source in sent.sources(tag):
            first = source if first is None else first
            if sent.count(source, tag) > named[source]:
                if self._looks(sent.next(source, tag)) == wanted:
                    return source
                spare = source if spare is None else spare
        return first if spare is None else spare

    def _looks(self, message: Message) -> Any:
        kind = self._group.messages[message[0]].kinds[message[1]]
        if kind not in self._known_looks:
            slots = bind(self._kinds.calls[kind]).slots
            self._known_looks[kind] = frozenset((slot.spec.shape, slot.spec.dtype) for slot in slots)
        return self._known_looks[kind]

    def _pair(self, send: Message, receive: Message) -> None:
        self.pairs[send], self.pairs[receive] = receive, send

    def _faults(self) -> Iterator[tuple[Any, Finding]]:
        """Yield each fault with what is equal for alike ones."""
        clean: set[tuple[int, int]] = set()
        streams = self._group.messages
        for receive, send in self.pairs.items():
            if self._alike(send).row.rule.direction != "send":
                continue  # the same pair from its other end
            kinds = (streams[send[0]].kinds[send[1]], streams[receive[0]].kinds[receive[1]])
            if kinds in clean:
                continue
            found = list(unify(_bindings(self.call(send), self.call(receive)), frozenset({send[0], receive[0]})))
            if found and not self._is_sure(send, receive):
                found = [attrs.evolve(each, severity=UNDECIDABLE) for each in found]  # another may be its partner
            if not found:
                clean.add(kinds)
            lines = (streams[send[0]].sources[send[1]], streams[receive[0]].sources[receive[1]])
            for each in found:
                what = (send[0], receive[0], each.id, each.severity, tuple(each.names), lines)
                yield what, self._placed(each, send)
        unsure = any(self._peer_unknown(message) for message in self._alone)
        for message in self._alone if not unsure else ():
            call = self.call(message)
            peer = call.attribute("peer")
            partners = self._expected if peer is None else {peer}
            if partners <= self._expected and (peer is not None or len(self._expected) == self._group.size):
                yield (message[0], call.row.rule.name, peer, call.source), self._placed(_alone(call), message)

    def _is_sure(self, send: Message, receive: Message) -> bool:
        """Whether the two belong together, or no other order of the messages makes them all fit.

        A record may not tell tags, by which messages overtake each other; and whose message a receive from any source
        takes, only the run tells.
        """
        tags = [call.arguments.get(call.row.tag) for call in map(self._alike, (send, receive))]
        if UNKNOWN in tags:
            return self._never_fit(send[0], receive[0], ...)
        if tags[0] != tags[1] or (receive[0], tags[1]) not in self._from_any:
            return True
        return self._never_fit(None, receive[0], tags[1])

    def _never_fit(self, source: int | None, target: int, tag: Any) -> bool:
        """Whether what is sent and what is received differ in any order; of any source for None, of any tag for `...`.

        False where not all of it is known.
        """
        key = (source, target, tag)
        if key not in self._known_sure:
            sources = self._group.messages if source is None else (source,)
            sent = sum((self._between(rank, target, "send", tag) for rank in sources), Counter[Any]())
            received = self._between(target, source, "receive", tag)
            known = all(None not in look for looks in (*sent, *received) for look in looks)
            there = {target, *(range(self._group.size) if source is None else (source,))} <= self._expected
            self._known_sure[key] = known and there and not (sent <= received or received <= sent)
        return self._known_sure[key]

    def _between(self, rank: int, peer: int | None, direction: str, tag: Any) -> Counter[Any]:
        """What the messages of one kind between two ranks look like; a receive from any source may be one of them."""
        looks: Counter[Any] = Counter()
        for place, kind in enumerate(self._group.messages[rank].kinds):
            call = self._kinds.calls[kind]
            other = call.attribute("peer")
            if call.row.rule.direction != direction or tag not in (..., call.attribute("tag")):
                continue
            if peer in (other, None):
                looks[self._looks((rank, place))] += 1
            elif other is None:
                looks[frozenset({(None, None)})] += 1
        return looks

    def _peer_unknown(self, message: Message) -> bool:
        call = self._alike(message)
        return call.arguments.get(call.row.peer) is UNKNOWN if call.row.peer else False

    def _placed(self, found: Finding, message: Message) -> Finding:
        rank, place = message
        known = self._group.messages[rank]
        text = found.message
        if len(known.kinds) > 1:
            text += f"\nIt is message {place} that rank {rank} sends or receives in this group, counted from 0."
        return attrs.evolve(found, message=text, group=self._group.name)


def _bindings(send: Call, receive: Call) -> Iterator[Binding]:
    """What both ends bind: the receiver's unknown source is the sender."""
    for call in (send, receive):
        bound, rank = bind(call), call.group.rank
        for key, value in bound.names.items():
            pair = (*key[:2], send.group.rank, receive.group.rank) if len(key) > 2 else key
            yield Binding(pair, value, rank, bound, bound.origins.get(key))
        yield Binding(("tag",), call.arguments.get(call.row.tag), rank, bound, None)


def _alone(call: Call) -> Finding:
    rank, peer = call.group.rank, call.attribute("peer")
    receives = call.row.rule.direction == "receive"
    does = "waits for" if receives else "sends to"
    if peer is None:
        fails = f"any rank, and none {'sends it anything' if receives else 'receives it'}"
    else:
        fails = f"rank {peer}, which {'sends it nothing' if receives else 'receives nothing from it'}"
    return disagreement(
        bind(call),
        "partner",
        f"rank {rank} {does} {fails}",
        rows=[("tag", str(call.attribute("tag")), ranks_text([rank]))],
        names={"tag": {rank: call.attribute("tag")}},
        ranks=(rank,),
    )

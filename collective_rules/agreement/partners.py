"""Point-to-point calls of several ranks: each send finds its receive, and the pairs are compared.

A backend matches by source and tag, in order. Receives from any source are matched last, with a send of the same
shape if there is one: in which order they arrive only the run tells.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import attrs

from collective_rules.agreement.streams import GroupCalls, Kinds
from collective_rules.agreement.unify import Binding, disagreement, unify
from collective_rules.bind import bind
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
        self._by: dict[Any, dict[int, _Pending]] = {}

    def add(self, message: Message, tag: Any) -> None:
        """Add a message."""
        self._by.setdefault(tag, {}).setdefault(message[0], deque()).append(message)

    def take(self, source: int, tag: Any) -> Message | None:
        """Take the next message of a source with this tag, if there is one."""
        pending = self._by.get(tag, {}).get(source)
        if not pending:
            return None
        message = pending.popleft()
        if not pending:
            del self._by[tag][source]
        return message

    def counts(self, tag: Any) -> dict[int, int]:
        """Return how many messages with this tag each source has."""
        return {source: len(pending) for source, pending in self._by.get(tag, {}).items()}

    def next(self, source: int, tag: Any) -> Message:
        """Return the next message of a source with this tag."""
        return self._by[tag][source][0]

    def take_any(self, source: int | None) -> Message | None:
        """Take a message of a source (None: of any), whatever its tag."""
        for tag, by in self._by.items():
            for each in by if source is None else (source,) if source in by else ():
                return self.take(each, tag)
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
        self._known_sure: dict[tuple[int, int], bool] = {}
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
        return call.row.rule.name == "recv" and call.attribute("peer") is None

    def _alike(self, message: Message) -> Call:
        """A call of the same kind, maybe another rank's."""
        rank, place = message
        return self._kinds.calls[self._group.messages[rank].kinds[place]]

    def _match(self) -> None:
        waiting: dict[int, _Sent] = {}
        for rank, stream in sorted(self._group.messages.items()):
            for place, kind in enumerate(stream.kinds):
                call = self._kinds.calls[kind]
                if call.row.rule.name == "send":
                    waiting.setdefault(call.attribute("peer"), _Sent()).add((rank, place), call.attribute("tag"))
        left: list[Message] = []
        for rank, stream in sorted(self._group.messages.items()):
            sent = waiting.get(rank, _Sent())
            named: Counter[Any] = Counter()
            receives = []
            for place, kind in enumerate(stream.kinds):
                call = self._kinds.calls[kind]
                if call.row.rule.name != "send":
                    source, tag = call.attribute("peer"), call.attribute("tag")
                    receives.append(((rank, place), source, tag))
                    named[source, tag] += 1
            for receive, source, tag in receives:
                named[source, tag] -= 1
                send = sent.take(source, tag) if source is not None else self._of_any(sent, receive, tag, named)
                if send is None:
                    left.append(receive)
                else:
                    self._pair(send, receive)
        for receive in left:
            call = self._alike(receive)
            send = waiting.get(receive[0], _Sent()).take_any(call.attribute("peer"))
            if send is None:
                self._alone.append(receive)
            else:
                self._pair(send, receive)
        self._alone += sorted(send for sent in waiting.values() for send in sent.rest())

    def _of_any(self, sent: _Sent, receive: Message, tag: Any, named: Counter[Any]) -> Message | None:
        """Of the sources with a message to spare, the first whose next one fits, else the first."""
        counts = sent.counts(tag)
        spare = [source for source, count in counts.items() if count > named[source, tag]] or list(counts)
        wanted = self._looks(receive)
        fits = [source for source in spare if self._looks(sent.next(source, tag)) == wanted] or spare
        return sent.take(fits[0], tag) if fits else None

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
            if self._alike(send).row.rule.name != "send":
                continue  # the same pair from its other end
            kinds = (streams[send[0]].kinds[send[1]], streams[receive[0]].kinds[receive[1]])
            if kinds in clean:
                continue
            found = list(unify(_bindings(self.call(send), self.call(receive)), frozenset({send[0], receive[0]})))
            if found and not self._is_sure(send, receive):
                found = [attrs.evolve(each, severity=UNDECIDABLE) for each in found]  # another may be its partner
            if not found:
                clean.add(kinds)
            for place, each in enumerate(found):
                yield (send[0], receive[0], *kinds, place), self._placed(each, send)
        unsure = any(self._peer_unknown(message) for message in self._alone)
        for message in self._alone if not unsure else ():
            call = self.call(message)
            peer = call.attribute("peer")
            partners = self._expected if peer is None else {peer}
            if partners <= self._expected and (peer is not None or len(self._expected) == self._group.size):
                yield (message[0], call.row.rule.name, peer, call.attribute("tag")), self._placed(_alone(call), message)

    def _is_sure(self, send: Message, receive: Message) -> bool:
        """Whether the two belong together, or no other order of these ranks' messages makes them all fit.

        A record may not tell tags, by which messages overtake each other.
        """
        if UNKNOWN not in [call.arguments.get(call.row.tag) for call in map(self._alike, (send, receive))]:
            return True
        pair = (send[0], receive[0])
        if pair not in self._known_sure:
            self._known_sure[pair] = self._never_fit(*pair)
        return self._known_sure[pair]

    def _never_fit(self, source: int, target: int) -> bool:
        sent, received = self._between(source, target, "send"), self._between(target, source, "recv")
        known = all(None not in look for looks in (*sent, *received) for look in looks)
        return known and {source, target} <= self._expected and not (sent <= received or received <= sent)

    def _between(self, rank: int, peer: int, rule: str) -> Counter[Any]:
        """What the messages of one kind between two ranks look like; a receive from any source may be one of them."""
        looks: Counter[Any] = Counter()
        for place, kind in enumerate(self._group.messages[rank].kinds):
            call = self._kinds.calls[kind]
            if call.row.rule.name == rule and call.attribute("peer") in (peer, None):
                looks[self._looks((rank, place)) if call.attribute("peer") == peer else frozenset({(None, None)})] += 1
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
    receives = call.row.rule.name == "recv"
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

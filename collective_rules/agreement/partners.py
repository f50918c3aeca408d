"""Point-to-point calls of several ranks: each send finds its receive, and the pairs are compared.

A backend matches by source and tag, in order. Receives from any source are matched last, with a send of the same
shape if there is one: in which order they arrive only the run tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from collective_rules.agreement.streams import GroupCalls, Kinds
from collective_rules.agreement.unify import Binding, disagreement, unify
from collective_rules.bind import bind
from collective_rules.call import Call
from collective_rules.finding import UNDECIDABLE, Finding
from collective_rules.messages import ranks_text

__all__ = ["Message", "Partners"]

Message = tuple[int, int]
"""A send or a receive: the group rank, and its place among the rank's messages of the group."""

_Pending = deque[Message]


class Partners:
    """The messages of one group, matched. `pairs`: each matched message's partner, in both directions."""

    def __init__(self, group: GroupCalls, kinds: Kinds, expected: frozenset[int]) -> None:
        self.pairs: dict[Message, Message] = {}
        self._group, self._kinds, self._expected = group, kinds, expected
        self._alone: list[Message] = []
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

    def _alike(self, message: Message) -> Call:
        """A call of the same kind, maybe another rank's."""
        rank, place = message
        return self._kinds.calls[self._group.messages[rank].kinds[place]]

    def _match(self) -> None:
        sends: dict[tuple[int, Any, Any], _Pending] = {}
        receives: list[Message] = []
        for rank, stream in sorted(self._group.messages.items()):
            for place in range(len(stream.kinds)):
                call = self._alike((rank, place))
                if call.row.rule.name == "send":
                    key = (rank, call.attribute("peer"), call.attribute("tag"))
                    sends.setdefault(key, deque()).append((rank, place))
                else:
                    receives.append((rank, place))
        left: list[Message] = []
        for receive in receives:
            call = self._alike(receive)
            pending = sends.get((call.attribute("peer"), receive[0], call.attribute("tag")))
            if pending:
                self._pair(pending.popleft(), receive)
            else:
                left.append(receive)
        to: dict[Any, list[Message]] = {}
        for (_, peer, _), pending in sends.items():
            to.setdefault(peer, []).extend(pending)
        for fits in (_any_source_alike, _tags_match, _other_tag):
            left = [receive for receive in left if not self._take(receive, to.get(receive[0], []), fits)]
        self._alone = left + [send for pending in to.values() for send in pending]

    def _take(self, receive: Message, sends: list[Message], fits: Callable[[Call, Call], bool]) -> bool:
        """Whether one of the sends to this rank is the receive's; then it is taken."""
        call = self._alike(receive)
        source = call.attribute("peer")
        for place, send in enumerate(sends):
            if source in (None, send[0]) and fits(self._alike(send), call):
                del sends[place]
                self._pair(send, receive)
                return True
        return False

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
            if not found:
                clean.add(kinds)
            for place, each in enumerate(found):
                yield (send[0], receive[0], *kinds, place), self._placed(each)
        for message in self._alone:
            call = self.call(message)
            peer = call.attribute("peer")
            partners = self._expected if peer is None else {peer}
            if partners <= self._expected and (peer is not None or len(self._expected) == self._group.size):
                yield (message[0], call.row.rule.name, peer, call.attribute("tag")), self._placed(_alone(call))

    def _placed(self, found: Finding) -> Finding:
        return attrs.evolve(found, group=self._group.name)


def _any_source_alike(send: Call, receive: Call) -> bool:
    if receive.attribute("peer") is not None or not _tags_match(send, receive):
        return False
    shapes = [{slot.spec.shape for slot in bind(call).slots} for call in (send, receive)]
    return shapes[0] == shapes[1]


def _tags_match(send: Call, receive: Call) -> bool:
    return bool(send.attribute("tag") == receive.attribute("tag"))


def _other_tag(send: Call, receive: Call) -> bool:
    return True


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
    whom = "any rank" if peer is None else f"rank {peer}"
    fails = "sends it nothing" if call.row.rule.name == "recv" else "receives nothing from it"
    does = "waits for" if call.row.rule.name == "recv" else "sends to"
    subject = "none of which" if peer is None else "which"
    return disagreement(
        bind(call),
        "partner",
        f"rank {rank} {does} {whom}, {subject} {fails}",
        rows=[("tag", str(call.attribute("tag")), ranks_text([rank]))],
        names={"tag": {rank: call.attribute("tag")}},
        ranks=(rank,),
    )

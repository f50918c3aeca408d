"""Point-to-point messages of one group: each send is matched with its receive, and the pairs are compared.

A backend matches by source and tag, in the order of the program, and so does `MatchedMessages`; by the source alone
where the backend's `Matching` says so. If one end makes more
messages than the other, those are left over without which the rest look alike. A receive from any source takes, of the
sources with a send to spare, the first whose send looks like it. What is left over is then matched whatever its tag,
and the rest has no partner. A disagreement within a pair is undecidable if another order of the messages may fit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from collective_rules.agreement.sequences import CallSequence, GroupCalls, Signatures
from collective_rules.agreement.unify import Binding, disagreement, unify
from collective_rules.binding.binder import bind
from collective_rules.binding.bound import Bound, Key
from collective_rules.binding.memory import memory_order, same_order
from collective_rules.call import UNKNOWN, Call
from collective_rules.finding import ERROR, UNDECIDABLE, WARNING, Finding
from collective_rules.messages import call_text, group_text, where_text
from collective_rules.spec import Spec, is_size

Message = tuple[int, int]
"""A send or a receive: the group rank, and its place among the rank's messages of the group."""


class _UnreceivedSends:
    """The sends to one rank that no receive has taken yet: by source and tag, in order."""

    def __init__(self) -> None:
        self._by: dict[Any, dict[Any, deque[Message]]] = {}
        self._sources: dict[Any, dict[Any, None]] = {}

    def add(self, message: Message, tag: Any) -> None:
        """Add a send."""
        self._by.setdefault(message[0], {}).setdefault(tag, deque()).append(message)
        self._sources.setdefault(tag, {})[message[0]] = None

    def take(self, source: Any, tag: Any) -> Message:
        """Take the next send of a source with this tag; the source is then the last in `sources`."""
        message = self._by[source][tag].popleft()
        del self._sources[tag][source]
        if self._by[source][tag]:
            self._sources[tag][source] = None
        else:
            del self._by[source][tag]
        return message

    def take_all(self, source: Any, tag: Any) -> list[Message]:
        """Take all sends of a source with this tag."""
        pending = self._by.get(source, {}).pop(tag, None)
        if not pending:
            return []
        del self._sources[tag][source]
        return [*pending]

    def sources(self, tag: Any) -> Iterable[Any]:
        """Return the sources that have sends with this tag, first the one that has waited longest."""
        return self._sources.get(tag, ())

    def next(self, source: Any, tag: Any) -> Message:
        """Return the next send of a source with this tag."""
        return self._by[source][tag][0]

    def count(self, source: Any, tag: Any) -> int:
        """Return the number of sends of a source with this tag."""
        return len(self._by.get(source, {}).get(tag, ()))

    def take_any(self, source: int | None) -> Message | None:
        """Take a send of a source (None: of any), whatever its tag."""
        for each in [*self._by] if source is None else [source]:
            for tag in self._by.get(each, ()):
                return self.take(each, tag)
            self._by.pop(each, None)
        return None

    def rest(self) -> list[Message]:
        """Return all sends that are left."""
        return [message for by_tag in self._by.values() for pending in by_tag.values() for message in pending]


class MatchedMessages:
    """The messages of one group, matched. `partner_of`: the other end of each send and receive that has one.

    What is called a tag here is a constant for a backend that does not look at tags.
    """

    def __init__(self, group: GroupCalls, signatures: Signatures, expected: frozenset[int]) -> None:
        self.partner_of: dict[Message, Message] = {}
        self._group, self._signatures, self._expected = group, signatures, expected
        self._by_tag = signatures.matching.tags
        self._without_partner: list[Message] = []
        self._looks_of: dict[int, Any] = {}
        self._never_fitting: dict[Any, bool] = {}
        self._from_any: set[tuple[int, Any]] = set()
        self._awaited: dict[tuple[int, int], frozenset[Any]] = {}
        if not group.malformed:
            self._match()

    def without_partner(self) -> Iterator[Call]:
        """Yield the sends and receives without a second end."""
        yield from map(self.call, self._without_partner)

    def findings(self, alone: AloneMessages) -> Iterator[Finding]:
        """Yield the disagreements between the two ends of messages, and the messages without a second end.

        `alone`: those of all groups, for the second end may be in another one.
        """
        for call, error in self._group.malformed[:1]:
            rank = call.group.global_rank
            verdict = f"rank {rank}'s partners are not known: {error}"
            yield disagreement(bind(call), error.kind, verdict, rows=[], names={}, ranks=(rank,), severity=UNDECIDABLE)
        merged: dict[Any, Finding] = {}
        for key, finding in self._disagreements(alone):
            first = merged.get(key)
            merged[key] = finding if first is None else attrs.evolve(first, count=first.count + 1)
        yield from merged.values()

    def call(self, message: Message) -> Call:
        """Return the call that is one end of a message."""
        rank, place = message
        return self._group.messages[rank].call(place, self._signatures)

    def is_from_any(self, message: Message) -> bool:
        """Return whether a message is a receive from any source."""
        call = self._alike(message)
        return call.row.rule.direction == "receive" and call.attribute("peer") is None

    # -- matching

    def _number(self, message: Message) -> int:
        return self._group.messages[message[0]].numbers[message[1]]

    def _alike(self, message: Message) -> Call:
        """Return a call of the same signature, maybe another rank's."""
        return self._signatures.calls[self._number(message)]

    def _tag(self, call: Call) -> Any:
        return call.attribute("tag") if self._by_tag else None

    def _match(self) -> None:
        unreceived: dict[int, _UnreceivedSends] = {}
        for rank, sequence in sorted(self._group.messages.items()):
            for place, number in enumerate(sequence.numbers):
                call = self._signatures.calls[number]
                if call.row.rule.direction == "send":
                    sends = unreceived.setdefault(call.attribute("peer"), _UnreceivedSends())
                    sends.add((rank, place), self._tag(call))
        left: list[Message] = []
        for rank, sequence in sorted(self._group.messages.items()):
            left += self._receive(rank, sequence, unreceived.get(rank, _UnreceivedSends()))
        for receive in left:
            sends = unreceived.get(receive[0], _UnreceivedSends())
            send = sends.take_any(self._alike(receive).attribute("peer"))
            if send is None:
                self._without_partner.append(receive)
            else:
                self._pair(send, receive)
        self._without_partner += sorted(send for sends in unreceived.values() for send in sends.rest())

    def _receive(self, rank: int, sequence: CallSequence, sends: _UnreceivedSends) -> Iterator[Message]:
        """Pair the receives of one rank with the sends to it; yield the receives that are left over."""
        receives: dict[Any, list[tuple[int, Any]]] = {}
        for place, number in enumerate(sequence.numbers):
            call = self._signatures.calls[number]
            if call.row.rule.direction != "send":
                receives.setdefault(self._tag(call), []).append((place, call.attribute("peer")))
        for tag, of_tag in receives.items():
            by_source: dict[Any, list[Message]] = {}
            for place, source in of_tag:
                by_source.setdefault(source, []).append((rank, place))
            if None in by_source:
                self._from_any.add((rank, tag))
                yield from self._receive_any(rank, of_tag, tag, sends)
                continue
            for source, mine in by_source.items():
                theirs = sends.take_all(source, tag)
                matched_sends, surplus_sends = self._split_surplus(theirs, mine)
                matched_receives, surplus_receives = self._split_surplus(mine, theirs)
                for message in surplus_sends:
                    sends.add(message, tag)
                for send, receive in zip(matched_sends, matched_receives, strict=True):
                    self._pair(send, receive)
                yield from surplus_receives

    def _split_surplus(self, own: list[Message], others: list[Message]) -> tuple[list[Message], list[Message]]:
        """Return as many of `own` as there are others, and the surplus.

        The surplus are the messages without which all look like the others; the last ones, if there are none.
        """
        spare = len(own) - len(others)
        if spare <= 0:
            return own, []
        looks, wanted = [*map(self._looks, own)], [*map(self._looks, others)]
        at = next((place for place, look in enumerate(wanted) if looks[place] != look), len(wanted))
        if looks[at + spare :] != wanted[at:]:
            at = len(wanted)
        return own[:at] + own[at + spare :], own[at : at + spare]

    def _receive_any(
        self, rank: int, receives: list[tuple[int, Any]], tag: Any, sends: _UnreceivedSends
    ) -> Iterator[Message]:
        """Pair the receives with one tag, some of which are from any source; yield those that are left over."""
        reserved = Counter(source for _, source in receives)
        for place, source in receives:
            reserved[source] -= 1
            chosen = source if source is not None else self._any_source(sends, (rank, place), tag, reserved)
            if sends.count(chosen, tag):
                self._pair(sends.take(chosen, tag), (rank, place))
            else:
                yield rank, place

    def _any_source(self, sends: _UnreceivedSends, receive: Message, tag: Any, reserved: Counter[Any]) -> Any:
        """Return the first source with a send to spare that looks like the receive; else the first source."""
        wanted = self._looks(receive)
        first = spare = None
        for source in sends.sources(tag):
            first = source if first is None else first
            if sends.count(source, tag) > reserved[source]:
                if self._looks(sends.next(source, tag)) == wanted:
                    return source
                spare = source if spare is None else spare
        return first if spare is None else spare

    def _looks(self, message: Message) -> Any:
        """Return the shapes, dtypes and orders of dims of the message's tensors."""
        number = self._number(message)
        if number not in self._looks_of:
            slots = bind(self._signatures.calls[number]).slots
            self._looks_of[number] = frozenset((slot.spec.shape, slot.spec.dtype, _order(slot.spec)) for slot in slots)
        return self._looks_of[number]

    def _pair(self, send: Message, receive: Message) -> None:
        self.partner_of[send], self.partner_of[receive] = receive, send

    # -- comparing

    def _disagreements(self, alone: AloneMessages) -> Iterator[tuple[Any, Finding]]:
        """Yield each finding with a key that is equal for alike findings."""
        clean: set[tuple[int, int]] = set()
        for receive, send in self.partner_of.items():
            if self._alike(send).row.rule.direction != "send":
                continue  # the same pair from its other end
            numbers = (self._number(send), self._number(receive))
            if numbers in clean:
                continue
            ends = self.call(send), self.call(receive)
            ranks = frozenset(call.group.global_rank for call in ends)
            findings = list(unify(_bindings(*ends, by_tag=self._by_tag), ranks))
            if not self._by_tag:
                findings += self._other_tags(*ends)
            if not findings:
                clean.add(numbers)
            elif not self._is_sure(send, receive):  # another message may be the partner
                findings = [attrs.evolve(each, severity=UNDECIDABLE) for each in findings]
            lines = tuple(self.call(message).source for message in (send, receive)) if findings else ()
            for each in findings:
                key = (send[0], receive[0], each.id, each.severity, tuple(each.names), lines)
                yield key, self._placed(each, send)
        if any(map(self._peer_unknown, self._without_partner)):
            return
        for message in self._without_partner:
            call = self.call(message)
            peer = call.attribute("peer")
            partners = self._expected if peer is None else {peer}
            if partners <= self._expected and (peer is not None or len(self._expected) == self._group.size):
                yield (
                    (message[0], call.row.rule.name, peer, call.source),
                    self._placed(_no_partner(call, alone.in_another_group(call)), message),
                )

    def _is_sure(self, send: Message, receive: Message) -> bool:
        """Return whether the two belong together, or no order of the messages makes all of them fit.

        A record may leave out tags, by which messages overtake each other. Only the run tells whose message a receive
        from any source takes.
        """
        tags = [self._tag(call) for call in map(self._alike, (send, receive))]
        if self._by_tag and self._tag_unknown(send, receive):
            return self._never_fit(send[0], receive[0], ...)
        if tags[0] != tags[1] or (receive[0], tags[1]) not in self._from_any:
            return True
        return self._never_fit(None, receive[0], tags[1])

    def _never_fit(self, source: int | None, target: int, tag: Any) -> bool:
        """Return whether sends and receives differ in any order; None is any source, `...` any tag.

        False if some of them are not known.
        """
        key = (source, target, tag)
        if key not in self._never_fitting:
            sources = self._group.messages if source is None else (source,)
            sent = sum((self._looks_between(rank, target, "send", tag) for rank in sources), Counter[Any]())
            received = self._looks_between(target, source, "receive", tag)
            complete = all(None not in look for looks in (*sent, *received) for look in looks)
            there = {target, *(range(self._group.size) if source is None else (source,))} <= self._expected
            self._never_fitting[key] = complete and there and not (sent <= received or received <= sent)
        return self._never_fitting[key]

    def _looks_between(self, rank: int, peer: int | None, direction: str, tag: Any) -> Counter[Any]:
        """Count the looks of one rank's sends, or receives, with a peer; a receive from any source may be one."""
        looks: Counter[Any] = Counter()
        for place, number in enumerate(self._group.messages[rank].numbers):
            call = self._signatures.calls[number]
            other = call.attribute("peer")
            if call.row.rule.direction != direction or tag not in (..., self._tag(call)):
                continue
            if peer in (other, None):
                looks[self._looks((rank, place))] += 1
            elif other is None:
                looks[frozenset({(None, None, ())})] += 1
        return looks

    def _tag_unknown(self, *ends: Message) -> bool:
        return any(call.arguments.get(call.row.tag) is UNKNOWN for call in map(self._alike, ends))

    def _other_tags(self, send: Call, receive: Call) -> Iterator[Finding]:
        """Yield the finding that a receive gets a message with another tag; an error if that is another's message."""
        ends = (send, receive)
        tags = [call.arguments.get(call.row.tag) for call in ends]
        if tags[0] == tags[1] or UNKNOWN in tags:
            return
        sender, receiver = (call.group.global_rank for call in ends)
        who = f"rank {receiver} receives with tag {tags[1]} what rank {sender} sends with tag {tags[0]}"
        yield disagreement(
            bind(receive),
            "tag",
            f"{who}: messages are matched in order, whatever their tags",
            rows=[("tag", str(tag), where_text([call])) for tag, call in zip(tags, ends, strict=True)],
            names={"tag": {call.group.global_rank: tag for tag, call in zip(tags, ends, strict=True)}},
            ranks=tuple(sorted(call.group.global_rank for call in ends)),
            severity=ERROR if tags[0] in self._tags_awaited(receive.group.rank, send.group.rank) else WARNING,
        )

    def _tags_awaited(self, receiver: int, sender: int) -> frozenset[Any]:
        """Return the tags with which one rank receives from another."""
        if (receiver, sender) not in self._awaited:
            calls = [self._signatures.calls[number] for number in {*self._group.messages[receiver].numbers}]
            receives = [call for call in calls if call.row.rule.direction == "receive"]
            tags = frozenset(call.attribute("tag") for call in receives if call.attribute("peer") == sender)
            self._awaited[receiver, sender] = tags
        return self._awaited[receiver, sender]

    def _peer_unknown(self, message: Message) -> bool:
        call = self._alike(message)
        return call.arguments.get(call.row.peer) is UNKNOWN if call.row.peer else False

    def _placed(self, finding: Finding, message: Message) -> Finding:
        """Return the finding with the group's name, and the place of the message among the rank's messages."""
        rank, place = message
        text, where = finding.message, group_text(self._group.name, self._group.ranks)
        if len(self._group.messages[rank].numbers) > 1:
            who = self._group.global_rank(rank)
            where = where or "this group"
            text += f"\nIt is message {place} that rank {who} sends or receives in {where}, counted from 0."
        elif where:
            text += f"\nIn {where}."
        return attrs.evolve(finding, message=text, group=self._group.name)


def _bindings(send: Call, receive: Call, *, by_tag: bool) -> Iterator[Binding]:
    """Yield the names that both ends bind; the sender is the receiver's source."""
    ends = [(call, bind(call)) for call in (send, receive)]
    orders = _orders(*(bound for _, bound in ends))
    for call, bound in ends:
        rank = call.group.global_rank
        for key, value in bound.names.items():
            same = key if key.is_shared else key._replace(ranks=(send.group.global_rank, receive.group.global_rank))
            yield Binding(same, value, rank, bound, bound.origins.get(key))
        if by_tag:
            yield Binding(Key("tag"), call.arguments.get(call.row.tag), rank, bound, None)
        yield from orders.get(rank, ())


def _order(spec: Spec) -> tuple[int, ...]:
    return () if spec.shape is None or spec.has_one_order else spec.order or ()


def _orders(*ends: Bound) -> Mapping[int, list[Binding]]:
    """Return, by rank, the memory orders that the two ends bind: those of tensors that differ in the order of dims."""
    orders = [(bound, *each) for bound in ends for each in memory_order(bound)]
    specs = [slot.spec for _, _, slot, _ in orders]
    if len(specs) < 2 or len(specs[0].shape) != len(specs[1].shape) or same_order(*specs):
        return {}
    return {
        bound.call.group.global_rank: [Binding(Key("order"), order, bound.call.group.global_rank, bound, slot)]
        for bound, _, slot, order in orders
    }


class AloneMessages:
    """The messages without a second end of all groups of a job, by the global ranks of both ends."""

    def __init__(self, matched: Iterable[MatchedMessages]) -> None:
        self._by_ends: dict[Any, list[Call]] = {}
        for messages in matched:
            for call in messages.without_partner():
                if is_size(call.attribute("peer")):
                    self._by_ends.setdefault((call.row.rule.direction, *self._ends(call)), []).append(call)

    def in_another_group(self, call: Call) -> Call | None:
        """Return the second end of a message, if it is there in another group."""
        if not is_size(call.attribute("peer")):
            return None
        other = "receive" if call.row.rule.direction == "send" else "send"
        theirs = self._by_ends.get((other, *reversed(self._ends(call))), ())
        return next((each for each in theirs if each.group.name != call.group.name), None)

    def _ends(self, call: Call) -> tuple[int, int]:
        return call.group.global_rank, call.group.to_global(call.attribute("peer"))


def _no_partner(call: Call, elsewhere: Call | None) -> Finding:
    rank, peer, tag = call.group.global_rank, call.attribute("peer"), call.attribute("tag")
    receives = call.row.rule.direction == "receive"
    if peer is None:
        fails = f"any rank, and none {'sends it anything' if receives else 'receives it'}"
    else:
        partner = call.group.to_global(peer)
        fails = f"rank {partner}, which {'sends it nothing' if receives else 'receives nothing from it'}"
    rows = [("tag", str(tag), where_text([call]))]
    advice = ""
    if elsewhere is not None:
        where = group_text(elsewhere.group.name, elsewhere.group.ranks)
        rows.append(("", f"{call_text(elsewhere)} in {where}", where_text([elsewhere])))
        advice = "Both sides must be in one group: a message of one group never meets one of another."
    return disagreement(
        bind(call),
        "partner",
        f"rank {rank} {'waits for' if receives else 'sends to'} {fails}",
        rows=rows,
        names={"tag": {rank: tag}},
        ranks=(rank,),
        advice=advice,
    )

"""Point-to-point ops of several ranks: each send finds its receive, and the pairs are compared.

A backend matches by source and tag, in order. Receives from any source are matched last, with a send of the same
shape if there is one: in which order they arrive only the run tells.
"""

from __future__ import annotations

from collections.abc import Iterator

from collective_rules.batch import members
from collective_rules.bind import bind
from collective_rules.call import Call
from collective_rules.finding import UNDECIDABLE, Finding
from collective_rules.messages import ranks_text
from collective_rules.rules import Unsolvable
from collective_rules.unify import Binding, disagreement, unify

__all__ = ["point_to_point"]


def point_to_point(calls: list[Call]) -> Iterator[Finding]:
    """Yield what is wrong between the sends and receives of all ranks."""
    singles: list[Call] = []
    for call in calls:
        try:
            singles += members(call)
        except Unsolvable as error:
            rank = call.group.rank
            verdict = f"rank {rank}'s partners are not known: {error}"
            yield disagreement(bind(call), error.kind, verdict, rows=[], names={}, ranks=(rank,), severity=UNDECIDABLE)
            return
    sends = [call for call in singles if call.row.rule.name == "send"]
    receives = [call for call in singles if call.row.rule.name == "recv"]
    for fits in (_same_tag, _any_source_alike, _tags_match, _other_tag):
        for receive in list(receives):
            send = next((send for send in sends if _meets(send, receive) and fits(send, receive)), None)
            if send is not None:
                sends.remove(send)
                receives.remove(receive)
                yield from unify(_pair(send, receive), frozenset({send.group.rank, receive.group.rank}))
    for call in receives + sends:
        yield _alone(call)


def _meets(send: Call, receive: Call) -> bool:
    """Whether the send goes to the receiver, which waits for it or for anyone."""
    source = receive.attribute("peer")
    return bool(send.attribute("peer") == receive.group.rank and source in (None, send.group.rank))


def _same_tag(send: Call, receive: Call) -> bool:
    return receive.attribute("peer") is not None and _tags_match(send, receive)


def _tags_match(send: Call, receive: Call) -> bool:
    return bool(send.attribute("tag") == receive.attribute("tag"))


def _any_source_alike(send: Call, receive: Call) -> bool:
    shapes = [{slot.spec.shape for slot in bind(call).slots} for call in (send, receive)]
    return shapes[0] == shapes[1] and _tags_match(send, receive)


def _other_tag(send: Call, receive: Call) -> bool:
    return True


def _pair(send: Call, receive: Call) -> Iterator[Binding]:
    """What both ends bind: the receiver's unknown source is the sender."""
    for call in (send, receive):
        bound, rank = bind(call), call.group.rank
        for key, value in bound.names.items():
            pair = (*key[:2], send.group.rank, receive.group.rank) if len(key) > 2 else key
            yield Binding(pair, value, rank, bound, bound.origins.get(key))
        yield Binding(("tag",), call.attribute("tag"), rank, bound, None)


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

"""Who is at fault where ranks do not go on: every rank is asked what it did last, and what it does now.

A rank's watch answers for it, whatever the rank itself is stuck in; one that was stopped or has ended does not answer.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import attrs
import torch

from collective_rules.agree import agree
from collective_rules.agreement.unify import odd_ones
from collective_rules.call import Call
from collective_rules.finding import ERROR, Finding
from collective_rules.live.protocol import Arrival, pack_tail, unpack_tail
from collective_rules.live.session import MISSING, Session, Waiting
from collective_rules.messages import ranks_text, worst_first

__all__ = [
    "RankState",
    "answer",
    "ask",
    "by_cause",
    "departed",
    "in_order",
    "is_in_collective",
    "last_calls",
    "missing_of",
    "not_come",
    "silent",
    "tails",
]

_LAST, _SHOWN = 2_000, 5
_OWN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_TORCH = os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), "")
_DISTRIBUTED = os.path.join(_TORCH, "distributed", "")
_WORKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "timed_work.py")
_LIBRARY = (_OWN, _TORCH, os.path.abspath(threading.__file__), "<frozen")


@attrs.frozen
class RankState:
    """What a rank says of itself: what it does, what it waits in, if anything, and its last calls.

    `whole`: whether these are all that it made. `waits`: a meeting's key, what it is, and who comes to it.
    """

    rank: int
    does: str
    waits: tuple[str, str, Mapping[int, int]] | None
    whole: bool
    calls: tuple[Call, ...]


def answer(session: Session) -> bytes:
    """Return what this rank says when it is asked."""
    waits = next(((each.key, each.text, [*each.members.items()]) for each in [*session.waits.values()]), None)
    tail = last_calls(session, _LAST)
    whole = len(tail) < _LAST and len(session.tail) == len(tail)
    told = {"does": _doing_now(session), "waits": waits, "whole": whole}
    return json.dumps(told).encode() + b"\n" + pack_tail(tail, session.encoder)


def _doing_now(session: Session) -> str:
    (line, inside), last = _line(session.thread), session.last()
    if session.failure:
        return f"failed in {last}: {session.failure}"
    if inside:
        return f"is in {last}"
    return f"{f'is at {line}; ' if line else ''}its last call: {last}"


def last_calls(session: Session, most: int) -> list[Any]:
    """Return up to `most` of the last calls, while another thread may be adding to them."""
    while True:
        try:
            return [*session.tail][-most:]
        except RuntimeError:  # it grew meanwhile
            continue


def ask(session: Session) -> dict[int, RankState]:
    """Ask all ranks, and return what those said who answered in time, this one too."""
    store, answers = session.store, {session.rank: _read(session, session.rank, answer(session))}
    others = [rank for rank in session.ranks if rank != session.rank]
    for rank in others:
        store.delete(f"answer/{rank}")
        store.set(f"wake/{rank}", b"ask")
    until = time.monotonic() + session.patience
    while len(answers) < len(session.ranks) and time.monotonic() < until:
        for rank in others:
            text = None if rank in answers else store.find(f"answer/{rank}")
            if text is not None:
                answers[rank] = _read(session, rank, text)
        time.sleep(0.01)
    return answers


def _read(session: Session, rank: int, text: bytes) -> RankState:
    head, _, tail = text.partition(b"\n")
    told = json.loads(head)
    waits = told["waits"] and (told["waits"][0], told["waits"][1], dict(told["waits"][2]))
    calls = tuple(unpack_tail(tail, session.decoder))
    return RankState(rank, told["does"], waits, told["whole"], calls)


def departed(session: Session) -> dict[int, str]:
    """Return the ranks that have left the block, and how."""
    text = session.store.find("left") or b""
    return {left["rank"]: left["how"] for left in map(json.loads, text.splitlines())}


def missing_of(session: Session, key: str, members: Mapping[int, int]) -> tuple[int, ...]:
    """Return the global ranks that have not come to the meeting at `key`; none where it is over."""
    text = session.store.find(key + "p")
    if text is None:
        return ()
    here = {members[post.rank] for post in Arrival.unpack(text)}
    return tuple(rank for rank in members.values() if rank not in here)


def not_come(session: Session, waiting: Waiting, answers: Mapping[int, RankState]) -> tuple[Finding, ...]:
    """Return who does not come to where this rank waits, and what those ranks do instead; nothing if all have come."""
    left = departed(session)
    missing = missing_of(session, waiting.key, waiting.members)
    if not missing:
        return ()
    call = waiting.call
    if call is None:
        found = [one for one in in_order(answers.values()) if one.severity == ERROR]
        if found:
            return by_cause((*found, *silent(session, answers)))
    elif call.row.rule.point_to_point:
        both = [answers[rank] for rank in waiting.members.values() if rank in answers]
        found = [one for one in in_order(both) if one.severity == ERROR] if len(both) == 2 else []
        if found:
            return tuple(found)
    faulty = sorted(_at_fault(session, waiting, missing, left, answers))
    others = {*missing, *faulty} - ({*waiting.members.values()} - {*missing})
    lines = [f"  {_who(waiting, missing)}"]
    lines += [
        f"  rank {rank} {_doing(session, rank, left, answers)}"
        for rank in dict.fromkeys((*missing, *faulty))
        if rank in others
    ]
    has = "has" if len(missing) == 1 else "have"
    group = call.group if call is not None else None
    place = {rank: number for number, rank in waiting.members.items()}
    ranks = tuple(place[rank] for rank in faulty if rank in place) or tuple(place[rank] for rank in missing)
    names = {"missing": missing, "at fault": tuple(faulty)}
    advice = "Every rank of the group must come to it: look at what those that do not are doing."
    if call is None or group is None:
        verdict = f"{ranks_text(missing)} {has} not come to the end of the block   [{MISSING}]"
        return (Finding(MISSING, ERROR, "\n".join([verdict, *lines, advice]), ranks, names),)
    verdict = f"{ranks_text(missing)} {has} not come, within {session.deadline:g} s"
    if left.keys() & {*faulty}:
        verdict = f"{ranks_text(missing)} {has} not come, and will not"
    message = "\n".join([f"{call.op}: {verdict}   [{MISSING}]", f"    {call.row.notation}", *lines, advice])
    return (Finding(MISSING, ERROR, message, ranks, names, group.name, waiting.index),)


def _who(waiting: Waiting, missing: tuple[int, ...]) -> str:
    here = [rank for rank in waiting.members.values() if rank not in missing]
    return f"{ranks_text(here)} {'waits' if len(here) == 1 else 'wait'} in {waiting.text}"


def _at_fault(
    session: Session,
    waiting: Waiting,
    missing: tuple[int, ...],
    left: Mapping[int, str],
    answers: Mapping[int, RankState],
) -> set[int]:
    """Return the ranks for which all others wait: those that wait for nobody themselves.

    Where each waits for another one, they are those outside the meeting that most have come to.
    """
    parties = {waiting.key: [rank for rank in waiting.members.values() if rank not in missing]}
    free, seen, todo = set[int](), set[int](), [*missing]
    while todo:
        rank = todo.pop()
        if rank in seen:
            continue
        seen.add(rank)
        waits = answers[rank].waits if rank in answers and rank not in left else None
        if waits is None:
            free.add(rank)
            continue
        parties.setdefault(waits[0], []).append(rank)
        others = missing_of(session, waits[0], waits[2])
        todo += [other for other in others if other not in parties[waiting.key] or other in left]
    if free:
        return free
    return set(odd_ones(sorted((sorted({*ranks}) for ranks in parties.values()), key=lambda ranks: -len(ranks))))


def _doing(session: Session, rank: int, left: Mapping[int, str], answers: Mapping[int, RankState]) -> str:
    known = answers.get(rank)
    if rank in left:
        return left[rank]
    if known is None:
        last = session.store.find(f"last/{rank}")
        if last is None:
            return "enters the block" if session.is_connecting(rank) else "has not entered the block"
        return f"does not answer: it was stopped, has ended, or is cut off; its last call: {last.decode()}"
    if known.waits is not None:
        return f"waits in {known.waits[1]}"
    return known.does


def in_order(answers: Iterable[RankState], only: str = "", stop: int | None = None) -> tuple[Finding, ...]:
    """Return what the last calls of ranks disagree on, from where all of them tell.

    That a rank goes no further in one group may be the consequence of what it is stuck in, and comes last.
    `only` names the one group to be looked at, and `stop` the number of its collectives.
    """
    known = list(answers)
    starts: dict[Any, int] = {}
    for each in known:
        if not each.whole:
            for call in reversed(each.calls):
                starts[_group(call), each.rank] = call.index or 0
    firsts: dict[Any, int] = {}
    for (group, _), start in starts.items():
        firsts[group] = max(firsts.get(group, 0), start)
    whole = all(each.whole for each in known)
    calls = [
        call
        for each in known
        for call in each.calls
        if (not only or call.group.name == only)
        and (
            (whole and stop is None)
            if call.row.rule.point_to_point
            else firsts.get(_group(call), 0) <= (call.index or 0) and (stop is None or (call.index or 0) < stop)
        )
    ]
    return worst_first(by_cause(agree(calls, ranks=[each.rank for each in known])))


def _group(call: Call) -> tuple[str, tuple[int, ...]]:
    return call.group.name, call.group.ranks


def silent(session: Session, answers: Mapping[int, RankState]) -> tuple[Finding, ...]:
    """Return the finding that ranks do not answer, or have left the block, while others are in a collective."""
    left = departed(session)
    missing = [rank for rank in session.ranks if rank not in answers]
    if not missing:
        return ()
    does = "does not answer" if len(missing) == 1 else "do not answer"
    if all(rank in left for rank in missing):
        does = "has left the block" if len(missing) == 1 else "have left the block"
    lines = [f"{ranks_text(missing)} {does}, while others are in a collective   [{MISSING}]"]
    lines += [f"  rank {rank} {_doing(session, rank, left, answers)}" for rank in session.ranks[:32]]
    lines.append("Look at what those ranks put out last.")
    return (Finding(MISSING, ERROR, "\n".join(lines), tuple(missing), {"missing": tuple(missing)}),)


def by_cause(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings with the causes first: calls that differ, ranks that are gone, and then those left waiting."""
    return tuple(sorted(findings, key=lambda found: "missing" in found.names and found.id != MISSING))


def tails(answers: Mapping[int, RankState]) -> str:
    """Return what the ranks that answered are at, and their last calls, for people."""
    lines = []
    for rank, known in sorted(answers.items()):
        lines.append(f"rank {rank} {known.does}; its last calls:")
        lines += [f"    {call.index} {call!r} {call.source}" for call in known.calls[-_SHOWN:]] or ["    none"]
    return "\n".join(lines)


def is_in_collective(thread: int) -> bool:
    """Whether a thread is at work in torch.distributed."""
    return _line(thread)[1]


def _line(thread: int) -> tuple[str, bool]:
    """Return the innermost line of a thread outside of libraries, and whether torch.distributed lies further in."""
    frame: FrameType | None = sys._current_frames().get(thread)
    inside = False
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARY):
            return f"{file.removeprefix(os.getcwd() + os.sep)}:{frame.f_lineno}", inside
        inside = inside or file.startswith((_DISTRIBUTED, _WORKS))
        frame = frame.f_back
    return "", inside

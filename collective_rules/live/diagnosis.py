"""Finds the ranks at fault where ranks do not go on: asks every rank for its last calls, and for what it does now.

A rank's watchdog answers for it, even while the rank is stuck. A rank that was stopped or has ended does not answer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import attrs
import torch

from collective_rules.agreement.agree import agree
from collective_rules.agreement.unify import odd_ones
from collective_rules.agreement.wait_cycle import IN_ONE_ORDER, WITHOUT_WAITING, Wait, cycle_finding, cycle_of
from collective_rules.call import Call
from collective_rules.finding import ERROR, Finding
from collective_rules.live import keys, timed_work
from collective_rules.live.circles import waits_by_last_calls
from collective_rules.live.protocol import Arrival, Departure, UnreadableError, pack_tail, unpack_tail
from collective_rules.live.session import MISSING, OTHER_SETTINGS, Meeting, Session
from collective_rules.messages import ranks_text, ranks_verb, worst_first
from collective_rules.mode.call_sites import is_program, place_text
from collective_rules.ops import lookup

_LAST, _SHOWN, _MOST_RANKS = 2_000, 5, 8
_IN_CIRCLE = (
    f"{IN_ONE_ORDER}, or {WITHOUT_WAITING}. "
    "If one of these ranks never makes the call for which another waits, make it there, or leave it out on both."
)
_LATE = (
    "Every rank of the group must make this call: look at what the ranks that have not come are doing. "
    "If they only take longer, give them more time by deadline=."
)
_AT_WORK = (os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), "distributed", ""), timed_work.__file__)
"""The files whose functions are at work while a thread is in a collective."""
_DECORATORS = frozenset({"wrapper", "inner", "decorator"})


@attrs.frozen
class RankState:
    """The answer of a rank: what it `does`, and its last `calls`.

    `waits`: the meeting that it waits in, without the call; None for a rank that waits nowhere. `whole`: whether
    `calls` are all calls of the rank. `inside`: whether it is in torch.distributed, or a call of it has failed there.
    """

    rank: int
    does: str
    waits: Meeting | None
    whole: bool
    calls: tuple[Call, ...]
    inside: bool = False


States = Mapping[int, RankState]
"""By rank; of the ranks that answered."""
Left = Mapping[int, Departure]
"""The ranks that have left the block."""


def answer(session: Session) -> bytes:
    """Return this rank's answer to `ask`."""
    meeting = next((waiting.meeting for waiting in [*session.waits.values()]), None)
    waits = meeting and (meeting.key, meeting.text, [*meeting.members.items()])
    tail = last_calls(session, _LAST)
    whole = len(tail) < _LAST and len(session.tail) == len(tail)
    inside = bool(session.failure) or is_in_collective(session.thread)
    head = {"does": doing_now(session), "waits": waits, "whole": whole, "inside": inside}
    return json.dumps(head).encode() + b"\n" + pack_tail(tail, session.encoder)


def doing_now(session: Session) -> str:
    """Return what the thread of this rank's last call does now, also where that is no call."""
    (line, function), last = _line_of(session.thread), session.last()
    if session.failure:
        return f"failed in {last}: {session.failure}"
    if function and line == session.last_line():
        return f"is in {last}"
    where = f"is in {function}, {line}; " if function and line else f"is at {line}; " if line else ""
    return f"{where}its last call: {last}"


def last_calls(session: Session, most: int) -> list[Any]:
    """Return up to `most` of the last calls."""
    while True:
        try:
            return [*session.tail][-most:]
        except RuntimeError:  # another thread added a call meanwhile
            continue


def ask(session: Session) -> dict[int, RankState]:
    """Ask all ranks, and return the states of this rank and of those that answered in time.

    A rank that has failed has left, and is not waited for.
    """
    store, states = session.store, {session.rank: _read(session, session.rank, answer(session))}
    question = f"{session.rank}.{next(session.tickets)}"
    waking = f"ask {question}\n".encode()
    silent = {rank for rank, left in departed(session).items() if left.failed}
    open_to = {rank: keys.answer(question, rank) for rank in session.ranks if rank not in {session.rank, *silent}}
    for rank in open_to:
        store.append(keys.of_rank(keys.WAKE, rank), waking)
    until = time.monotonic() + session.patience
    while open_to and time.monotonic() < until:
        for rank, key in [*open_to.items()]:
            text = store.find(key)
            if text is not None:
                store.delete(key)
                del open_to[rank]
                with session.needing_store():  # an answer that cannot be read is none
                    states[rank] = _read(session, rank, text)
        time.sleep(0.01)
    session.rest.update(dict.fromkeys(open_to.values()))
    return states


def _read(session: Session, rank: int, text: bytes) -> RankState:
    head, _, tail = text.partition(b"\n")
    try:
        data = json.loads(head)
        waits = data["waits"] and Meeting(data["waits"][0], dict(data["waits"][2]), text=data["waits"][1])
        does, whole, inside = data["does"], data["whole"], data["inside"]
    except (ValueError, LookupError, TypeError) as error:
        raise UnreadableError(f"{type(error).__name__}: {error}"[:200]) from error
    return RankState(rank, does, waits, whole, tuple(unpack_tail(tail, session.decoder)), inside)


def departed(session: Session) -> Left:
    """Return the ranks that have left the block."""
    text = session.store.find(keys.posts(keys.EXIT)) or b""
    try:
        departures = [Departure.unpack(arrival.record) for arrival in Arrival.unpack(text)]
    except UnreadableError as error:
        session.doubt(error)
        return {}
    return {left.rank: left for left in departures}


def missing_of(session: Session, meeting: Meeting) -> tuple[int, ...]:
    """Return the global ranks that have not come to a meeting; none where the meeting is over.

    Ends a meeting in which a value cannot be read: nobody will compare the calls, so nobody has to wait.
    """
    text = session.store.find(keys.posts(meeting.key))
    if text is None:
        return ()
    try:
        here = {arrival.rank for arrival in Arrival.unpack(text)}
    except UnreadableError as error:
        session.doubt(error)
        session.end(meeting.key)
        return ()
    return tuple(rank for place, rank in meeting.members.items() if place not in here)


def not_come(session: Session, meeting: Meeting, states: States) -> tuple[Finding, ...]:
    """Return the findings of ranks that do not come to a meeting, with what they do instead; none if all come."""
    left, call = departed(session), meeting.call
    missing = missing_of(session, meeting)
    if not missing:
        return ()
    unlike = other_settings(session)
    if unlike is not None:
        return (unlike,)
    errors: tuple[Finding, ...] = ()
    if call is None:
        errors = _errors(states.values())
    elif call.row.rule.point_to_point:
        pair = [states[rank] for rank in meeting.members.values() if rank in states]
        errors = _errors(pair) if len(pair) == 2 else ()
    circle = None if any(map(_is_cause, errors)) else _circle(session, states, left)
    if circle is not None:
        return (circle,)
    if errors:
        return by_cause((*errors, *silent(session, states))) if call is None else errors
    faulty = sorted(_at_fault(session, meeting, missing, left, states))
    waiting = [rank for rank in meeting.members.values() if rank not in missing]
    lines = [f"  {ranks_verb(waiting, 'waits')} in {meeting.text}"]
    lines += [
        f"  rank {rank} {_doing(session, rank, left, states)}"
        for rank in dict.fromkeys((*missing, *faulty))
        if rank not in waiting
    ]
    ranks = tuple(faulty) or missing
    names = {"missing": missing, "at fault": tuple(faulty)}
    advice = "Every rank of the group must make this call: look at what the ranks that do not come are doing."
    verdict = f"{ranks_verb(missing, 'has')} not come"
    if call is None:
        advice = "Every rank must come to the end of the block: look at what the ranks that do not come are doing."
        text = "\n".join([f"{verdict} to the end of the block   [{MISSING}]", *lines, advice])
        return (Finding(MISSING, ERROR, text, ranks, names),)
    verdict += ", and will not" if left.keys() & {*faulty} else f", within {session.deadline:g} s"
    text = "\n".join([f"{call.op}: {verdict}   [{MISSING}]", f"    {call.row.notation}", *lines, advice])
    return (Finding(MISSING, ERROR, text, ranks, names, call.group.name, meeting.index, op=call.op),)


def _errors(states: Iterable[RankState]) -> tuple[Finding, ...]:
    return tuple(finding for finding in in_order(states) if finding.severity == ERROR)


def _is_cause(finding: Finding) -> bool:
    """Return whether calls differ: that a rank makes no call may follow from where it waits."""
    if "missing" in finding.names:
        return False
    return not finding.op or lookup(finding.op).rule.constraints.get(finding.id) != "partner"


def _circle(session: Session, states: States, left: Left) -> Finding | None:
    """Return the finding that ranks wait for each other in a circle."""
    here = {rank: state for rank, state in states.items() if rank not in left}
    inside = [rank for rank, state in here.items() if state.inside and state.waits is None]
    whole = [rank for rank, state in states.items() if state.whole]
    waits = waits_by_last_calls({rank: state.calls for rank, state in states.items()}, inside, whole)
    for rank, state in here.items():
        if state.waits is not None and state.waits.key not in (keys.EXIT, keys.TAILS):
            op, text = state.waits.text.partition(" ")[0], state.waits.text
            waits[rank] = Wait(op, text, "", frozenset(missing_of(session, state.waits)) - {rank})
    path = cycle_of(waits)
    return None if path is None else cycle_finding(path, waits, _IN_CIRCLE)


def other_settings(session: Session) -> Finding | None:
    """Return the finding that ranks entered the block with other settings; None where all have those of this rank."""
    ranks_of: dict[str, list[int]] = {}
    for rank in session.ranks:
        how = session.store.find(keys.of_rank(keys.HERE, rank))
        if how is not None:
            ranks_of.setdefault(how.decode(errors="replace"), []).append(rank)
    if len(ranks_of) < 2:
        return None
    by_size = sorted(ranks_of.items(), key=lambda item: (-len(item[1]), item[1]))
    lines = [f"ranks entered the block with different settings   [{OTHER_SETTINGS}]"]
    lines += [
        f"  {ranks_text(ranks)} entered with agree={int(how) if how.isdigit() else how!r}" for how, ranks in by_size
    ]
    lines.append("Pass the same agree= on every rank.")
    names = {"agree": {rank: how for how, ranks in by_size for rank in ranks}}
    return Finding(OTHER_SETTINGS, ERROR, "\n".join(lines), odd_ones([ranks for _, ranks in by_size]), names)


def _last_known(session: Session, states: States) -> dict[int, RankState]:
    """Return the states of ranks that do not answer, by what they told of their last calls before."""
    known = {}
    for rank in session.ranks:
        text = None if rank in states else session.store.find(keys.of_rank(keys.LAST, rank))
        tail = (text or b"").partition(b"\n")[2]
        if tail:
            with session.needing_store():  # what cannot be read is not known
                known[rank] = RankState(rank, "", None, False, tuple(unpack_tail(tail, session.decoder)))
    return known


def why_stuck(session: Session, states: States, *, cut_short: bool = False) -> tuple[Finding, ...]:
    """Return the findings of why ranks do not come out of their collectives: what differs, or who waits for whom.

    `cut_short`: before the deadline, so that ranks which have not come are no finding.
    """
    unlike = other_settings(session)
    if unlike is not None:
        return (unlike,)
    errors, quiet, left = _errors(states.values()), silent(session, states), departed(session)
    known = _last_known(session, states)
    if known:  # of a rank that was aborted, calls that differ are certain, and calls that are missing are not
        causes = filter(_is_cause, _errors([*states.values(), *known.values()]))
        errors = (*causes, *(each for each in errors if not _is_cause(each)))
    if cut_short:
        errors = tuple(filter(_is_cause, errors))
        quiet = quiet if any(rank not in states and rank not in left for rank in session.ranks) else ()
    if not quiet and not any(map(_is_cause, errors)):
        circle = _circle(session, states, left)
        if circle is not None:
            return (circle,)
    return by_cause((*(_with_doings(session, each, left, states) for each in errors), *quiet))


def _with_doings(session: Session, finding: Finding, left: Left, states: States) -> Finding:
    """Return a finding about missing ranks with what they do; ranks that are elsewhere in the program are late."""
    missing = tuple(finding.names.get("missing", ()))
    if not missing:
        return finding
    doing = [f"  rank {rank} {_doing(session, rank, left, states)}" for rank in missing[:_MOST_RANKS]]
    if not all(rank in states and rank not in left and not states[rank].inside for rank in missing):
        return attrs.evolve(finding, message="\n".join([finding.message, *doing]))
    verdict = f"{finding.op}: {ranks_verb(missing, 'has')} not come, within {session.deadline:g} s   [{MISSING}]"
    inside = [f"  rank {rank} {state.does}" for rank, state in states.items() if state.inside]
    lines = [verdict, f"    {lookup(finding.op).notation}", *inside[:_MOST_RANKS], *doing, _LATE]
    names = {"missing": missing, "at fault": missing}
    return attrs.evolve(finding, id=MISSING, message="\n".join(lines), ranks=missing, names=names)


def _at_fault(session: Session, meeting: Meeting, missing: tuple[int, ...], left: Left, states: States) -> set[int]:
    """Return the ranks for which all others wait: those that wait for no rank.

    Where every rank waits for another, they are the ranks outside of the meeting to which most ranks have come.
    """
    parties = {meeting.key: [rank for rank in meeting.members.values() if rank not in missing]}
    free, seen, todo = set[int](), set[int](), [*missing]
    while todo:
        rank = todo.pop()
        if rank in seen:
            continue
        seen.add(rank)
        waits = states[rank].waits if rank in states and rank not in left else None
        if waits is None:
            free.add(rank)
            continue
        parties.setdefault(waits.key, []).append(rank)
        others = missing_of(session, waits)
        todo += [other for other in others if other not in parties[meeting.key] or other in left]
    if free:
        return free
    return set(odd_ones(sorted((sorted({*ranks}) for ranks in parties.values()), key=lambda ranks: -len(ranks))))


def _doing(session: Session, rank: int, left: Left, states: States) -> str:
    state = states.get(rank)
    if rank in left:
        return left[rank].how
    if state is None:
        last = session.store.find(keys.of_rank(keys.LAST, rank))
        if last is None:
            return "enters the block" if session.is_connecting(rank) else "has not entered the block"
        return (
            "does not answer: it was stopped, has ended, or is cut off; "
            f"its last call: {last.splitlines()[0].decode(errors='replace')}"
        )
    return f"waits in {state.waits.text}" if state.waits is not None else state.does


def in_order(states: Iterable[RankState], only: str = "", stop: int | None = None) -> tuple[Finding, ...]:
    """Return the disagreements among the last calls of ranks, from the first call that all states hold.

    A rank may stop early in one group because it is stuck in another: that finding comes last. With `only`, the one
    group of that name is compared, and with `stop`, its first so many collectives.
    """
    states = list(states)
    firsts: dict[Any, int] = {}
    for state in states:
        starts = {} if state.whole else {_group(call): call.index or 0 for call in reversed(state.calls)}
        firsts |= {group: max(firsts.get(group, 0), start) for group, start in starts.items()}
    whole = all(state.whole for state in states)
    calls = [
        call
        for state in states
        for call in state.calls
        if (not only or call.group.name == only)
        and (
            (whole and stop is None)
            if call.row.rule.point_to_point
            else firsts.get(_group(call), 0) <= (call.index or 0) and (stop is None or (call.index or 0) < stop)
        )
    ]
    return worst_first(by_cause(agree(calls, ranks=[state.rank for state in states])))


def _group(call: Call) -> tuple[str, tuple[int, ...]]:
    return call.group.name, call.group.ranks


def silent(session: Session, states: States) -> tuple[Finding, ...]:
    """Return the finding that ranks do not answer, or have left the block, while others are in a collective."""
    left = departed(session)
    missing = [rank for rank in session.ranks if rank not in states]
    if not missing:
        return ()
    all_left = all(rank in left for rank in missing)
    what = f"{ranks_verb(missing, 'has')} left the block" if all_left else f"{ranks_verb(missing, 'does')} not answer"
    lines = [f"{what}, while others are in a collective   [{MISSING}]"]
    lines += [f"  rank {rank} {_doing(session, rank, left, states)}" for rank in session.ranks[:32]]
    lines.append("Look at what those ranks put out last.")
    return (Finding(MISSING, ERROR, "\n".join(lines), tuple(missing), {"missing": tuple(missing)}),)


def by_cause(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings in this order: calls that differ, ranks that are gone, ranks that wait for them."""
    return tuple(sorted(findings, key=lambda finding: "missing" in finding.names and finding.id != MISSING))


def tails(states: States) -> str:
    """Return a text of what the ranks that answered do, and of their last calls."""
    lines = []
    for rank, state in sorted(states.items()):
        lines.append(f"rank {rank} {state.does}; its last calls:")
        lines += [f"    {call.index} {call!r} {call.source}" for call in state.calls[-_SHOWN:]] or ["    none"]
    return "\n".join(lines)


def is_in_collective(thread: int) -> bool:
    """Return whether a thread is at work in torch.distributed."""
    return bool(_line_of(thread)[1])


def _line_of(thread: int) -> tuple[str, str]:
    """Return the innermost line of a thread in the program itself, and the function of torch.distributed that it calls.

    "" where there is none. Decorators of that function are passed over.
    """
    frame: FrameType | None = sys._current_frames().get(thread)
    function = ""
    while frame is not None:
        code = frame.f_code
        if is_program(code.co_filename):
            return place_text(code.co_filename, frame.f_lineno), function
        if code.co_filename.startswith(_AT_WORK) and not (function and code.co_name in _DECORATORS):
            function = _function_text(frame)
        frame = frame.f_back
    return "", function


def _function_text(frame: FrameType) -> str:
    """Return the name of a function as programs write it: "torch.distributed.new_group"."""
    name = frame.f_code.co_qualname.replace("TimedWork", "Work")
    module = str(frame.f_globals.get("__name__", "torch.distributed"))
    short = module.rpartition(".")[0] if hasattr(sys.modules.get(module.rpartition(".")[0]), name) else module
    return f"{'torch.distributed' if module == timed_work.__name__ else short}.{name}"

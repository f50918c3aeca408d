"""The end of a guarded block: the running hashes of all ranks are compared, and the calls where the hashes differ."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

import torch.distributed as dist

from collective_rules.errors import CollectiveRulesError, DisagreementError, plain_text_of
from collective_rules.finding import ERROR, Finding
from collective_rules.live import keys
from collective_rules.live.diagnosis import RankState, departed, in_order, last_calls
from collective_rules.live.failures import is_own, line_of
from collective_rules.live.protocol import (
    Arrival,
    Departure,
    UnreadableError,
    pack_findings,
    pack_tail,
    unpack_findings,
    unpack_tail,
)
from collective_rules.live.running_hash import RunningHash, differing
from collective_rules.live.session import Meeting, Session
from collective_rules.live.watchdog import hang, leads

_LAST = 20_000
_COMPARING = 120.0  # seconds beyond the deadline for one rank to compare the calls of all
_FAILED = re.compile(r"gloo|nccl|timed? ?out|connection (closed|reset)", re.IGNORECASE)


def tell_of_leaving(session: Session, hashes: Iterable[RunningHash], error: BaseException | None) -> bool:
    """Tell the others that this rank makes no further call, and its running hashes; return whether it is the last.

    How a rank left is part of its arrival at the end: in two messages, others could read that it left, and not that it
    is at the end.
    """
    how = f"is at the end of the block; its last call: {session.last()}"
    if error is not None:
        text, line = plain_text_of(error).partition("\n")[0][:200], line_of(error)
        at = f", at {line}" if line else ""
        how = f"left the block by {type(error).__name__}: {text}{at}; its last call: {session.last()}"
        _post_tail(session)
    left = Departure(session.rank, how, error is not None, [running.data() for running in hashes])
    session.store.append(keys.posts(keys.EXIT), Arrival(_place(session), True, "", left.pack()).pack())
    return session.store.add(keys.come(keys.EXIT), 1) == len(session.ranks)


def compare_at_end(session: Session, *, last: bool, whole: bool) -> tuple[Finding, ...]:
    """Wait for all ranks, compare their calls, and return the findings that are no errors.

    Raises `DisagreementError`, the same on every rank. `last`: this rank is the last to come. `whole`: compare every
    call, not only where hashes differ.
    """
    store, everyone = session.store, dict(enumerate(session.ranks))
    if last:
        session.refuse_published()  # by a rank that has left since
        totals = {rank: left.totals for rank, left in departed(session).items()}
        varies = any(running[-1] for hashes in totals.values() for running in hashes)
        verdict = b"more" if whole or varies or any(differing(totals)) else b"alike"
        store.set(keys.verdict(keys.EXIT), verdict)
    else:
        with session.waiting(Meeting(keys.EXIT, everyone)):
            verdict = session.await_verdict(keys.EXIT)
    session.refuse()
    if verdict != b"more":
        return ()
    if _post_tail(session):
        findings = _compare_tails(session)
        if any(finding.severity == ERROR for finding in findings):
            session.publish(findings)
            session.refuse()
        store.set(keys.verdict(keys.TAILS), pack_findings(findings).encode())
        return findings
    with session.waiting(Meeting(keys.TAILS, everyone), _COMPARING):
        verdict = session.await_verdict(keys.TAILS)
    return unpack_findings(verdict.decode(errors="replace")) if verdict else ()


def _place(session: Session) -> int:
    return session.ranks.index(session.rank)


def _post_tail(session: Session) -> bool:
    """Tell the others this rank's last calls; return whether it is the last rank to do so."""
    tail = last_calls(session, _LAST)
    whole = b"1" if len(tail) == len(session.tail) < _LAST else b"0"
    session.store.set(keys.of_rank(keys.TAIL, session.rank), whole + pack_tail(tail, session.encoder))
    session.store.append(keys.posts(keys.TAILS), Arrival(_place(session), True, "", b"").pack())
    return session.store.add(keys.come(keys.TAILS), 1) == len(session.ranks)


def _compare_tails(session: Session) -> tuple[Finding, ...]:
    states = []
    for rank in session.ranks:
        text = session.store.get(keys.of_rank(keys.TAIL, rank))
        try:
            calls = tuple(unpack_tail(text[1:], session.decoder))
        except UnreadableError as error:
            session.doubt(error)
            return ()
        states.append(RankState(rank, "", None, text[:1] == b"1", calls))
    return in_order(states)


def is_failure(error: BaseException | None) -> bool:
    """Return whether `error`, or what it was raised from, is that of a collective in which another rank has no part."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if _has_failed(error):
            return True
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _has_failed(error: BaseException) -> bool:
    if isinstance(error, CollectiveRulesError) or not isinstance(error, RuntimeError):
        return False
    return (isinstance(error, dist.DistError) or bool(_FAILED.search(plain_text_of(error)))) and not is_own(error)


def explain(session: Session, error: BaseException) -> DisagreementError | None:
    """Return the disagreement that made a collective fail with `error`; None where there is none, or none is known."""
    if not is_failure(error):
        return None
    session.failure = re.sub(r"^\[\S+\] ", "", plain_text_of(error).partition("\n")[0])[:200]
    published = session.store.find(keys.ERROR)
    if published is not None:
        session.learn(published)
    if session.error is None:
        session.store.delete(keys.CALM)
        if leads(session):
            return hang(session)
        until = time.monotonic() + 2 * session.patience + 1
        while session.error is None and time.monotonic() < until and session.store.find(keys.CALM) is None:
            time.sleep(0.02)
    return session.error


def say_goodbye(session: Session, *, serves: bool) -> None:
    """Delete the keys that are left in the store, on the last rank to leave.

    The rank that serves the store waits a moment, so that the others leave first.
    """
    store = session.store
    open_meetings = session.posted if session.error is not None else ()
    rest = [*session.rest, *(key for meeting in open_meetings for key in keys.of_meeting(meeting))]
    if rest:
        store.append(keys.REST, "\n".join([*rest, ""]).encode())
    if store.add(keys.GONE, 1) == len(session.ranks):
        rest = (store.find(keys.REST) or b"").decode(errors="replace").split("\n")
        for key in keys.left_over(session.ranks, dict.fromkeys(filter(None, rest))):
            store.delete(key)
        return
    until = time.monotonic() + session.patience / (1 if session.error is None else 4)
    while serves and time.monotonic() < until and store.find(keys.GONE) is not None:
        time.sleep(0.002)

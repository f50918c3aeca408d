"""A thread in each process that answers for its rank, and notices when other ranks do not come."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

from collective_rules.errors import DisagreementError
from collective_rules.finding import ERROR
from collective_rules.live import keys
from collective_rules.live.diagnosis import (
    answer,
    ask,
    departed,
    in_order,
    is_in_collective,
    missing_of,
    not_come,
    tails,
    why_stuck,
)
from collective_rules.live.protocol import Arrival
from collective_rules.live.session import Session, Waiting
from collective_rules.live.store import LostStoreError

TICK = 0.1
_CONNECTING = 30.0
"""Seconds beyond the deadline for a rank to connect to the store: a name server that does not answer takes 5."""
_KEPT = 64
"""How many meetings that are over stay in the store: a rank may be about to read a verdict."""


class Watchdog:
    """Looks after a session from `start` to `stop`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tick = min(TICK, session.deadline / 20)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collective_rules live", daemon=True)
        self._connection = session.store.connect()
        self._posted = ""
        self._reported = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for its end."""
        self._ended.set()
        self._thread.join(max(5.0, 4 * self._session.patience))

    def _run(self) -> None:
        session = self._session
        session.store.adopt(self._connection)
        while not self._ended.wait(self._tick):
            try:
                self._once()
            except LostStoreError as error:
                session.lose(error)
                return
        if not session.lost:
            with contextlib.suppress(LostStoreError):
                self._clean(0)

    def _once(self) -> None:
        session = self._session
        store = session.store
        wake = keys.of_rank(keys.WAKE, session.rank)
        woken = store.find(wake)
        if woken is not None:
            store.delete(wake)
            if woken == b"ask":
                store.set(keys.of_rank(keys.ANSWER, session.rank), answer(session))
        if session.error is None:
            text = store.find(keys.ERROR) if woken is not None else None
            if text is not None:
                session.learn(text)
        if session.error is not None:
            session.release()
            return
        self._clean(_KEPT)
        last = session.last()
        if last != self._posted:
            self._posted = last
            session.post_last()
        self._compare_windows()
        for waiting in [*session.waits.values()]:
            self._look(waiting)
        self._look_inside()

    def _clean(self, keep: int) -> None:
        """Delete from the store the meetings that are over, but for the last `keep`."""
        session = self._session
        while len(session.finished) > keep:
            for key in keys.of_meeting(session.finished.popleft()):
                session.store.delete(key)

    def _compare_windows(self) -> None:
        """Post this rank's running hashes; compare those of all ranks where this rank is the last to post."""
        session = self._session
        while session.windows:
            key, group, number, count = session.windows.popleft()
            ranks = group.ranks or tuple(range(group.size))
            session.post(key, Arrival(group.rank, False, "", b"%x" % number).pack())
            posts = session.store.find(keys.posts(key)) or b""  # deleted, where another was faster
            arrivals = list(Arrival.unpack(posts))
            if len(arrivals) < len(ranks):
                continue
            session.store.delete(keys.posts(key))
            session.posted.pop(key, None)
            if len({arrival.record for arrival in arrivals}) > 1 and leads(session):
                states = [state for rank, state in ask(session).items() if rank in ranks]
                findings = in_order(states, group.name, count)
                if any(finding.severity == ERROR for finding in findings):
                    session.publish(findings)
                else:
                    session.mention(findings)
                    session.store.delete(keys.LEAD)

    def _look(self, waiting: Waiting) -> None:
        """Find the ranks that keep this rank waiting: at the deadline, or as soon as they are known not to come."""
        session, meeting = self._session, waiting.meeting
        if time.monotonic() - waiting.since < self._tick:
            return
        left = departed(session)  # before the arrivals: a rank that has left has arrived earlier
        missing = missing_of(session, meeting)
        if not missing:
            if session.store.find(keys.posts(meeting.key)) is None:  # deleted: it was over before this rank asked
                session.store.set(keys.verdict(meeting.key), b"")
        elif meeting.to_any and session.store.find(meeting.to_any) is not None:
            session.finished.append(meeting.key)
            session.store.set(keys.verdict(meeting.key), b"")  # only the run tells whose send the receiver takes
        else:
            gone = not left.keys().isdisjoint(missing)
            if self._has_to_ask(waiting, missing, gone=gone):
                self._find_out(waiting, gone=gone)

    def _has_to_ask(self, waiting: Waiting, missing: tuple[int, ...], *, gone: bool) -> bool:
        """Return whether it is time to ask the others, and this rank leads. `gone`: a missing rank has left."""
        session, late = self._session, time.monotonic() - waiting.due
        if late < _CONNECTING and any(session.is_connecting(rank) for rank in missing):
            return False
        if not gone and late < -session.patience:
            return False
        return leads(session) or late >= session.patience + 1  # a leader that is stopped asks nobody

    def _find_out(self, waiting: Waiting, *, gone: bool) -> None:
        """Ask all ranks what they do; at the deadline, or at once if a rank is `gone`, publish who does not come."""
        session = self._session
        states = ask(session)
        while not gone and time.monotonic() < waiting.due and not self._ended.wait(self._tick):
            pass
        still = waiting in session.waits.values()
        findings = not_come(session, waiting.meeting, states) if still else ()
        if findings:
            session.publish(findings)
        else:
            session.store.delete(keys.LEAD)

    def _look_inside(self) -> None:
        """Find out why this rank does not come out of a collective that it has sent."""
        session = self._session
        stuck = bool(session.tail) and time.monotonic() - session.stamp > session.deadline + 1
        if stuck and session.stamp > self._reported and not session.waits and is_in_collective(session.thread):
            self._reported = session.stamp
            if leads(session):
                hang(session)


def leads(session: Session) -> bool:
    """Return whether this rank is the one that asks the others."""
    mine = str(session.rank).encode()
    return session.store.claim(keys.LEAD, mine) == mine


def hang(session: Session) -> DisagreementError | None:
    """Find out why ranks do not come out of a collective, on the rank that leads.

    Writes the last calls of all ranks to stderr. Returns the error that all ranks raise, None where nothing is wrong.
    """
    states = ask(session)
    findings = why_stuck(session, states)
    doing = "failed in" if session.failure else "hangs in"
    lines = [f"collective_rules: rank {session.rank} {doing} {session.last()}"]
    lines += [finding.message for finding in findings] or ["no calls differ among the ranks that answered"]
    print("\n".join([*lines, tails(states)]), file=sys.stderr, flush=True)
    if findings:
        return session.publish(findings)
    session.store.set(keys.CALM, b"")
    session.store.delete(keys.LEAD)
    return None

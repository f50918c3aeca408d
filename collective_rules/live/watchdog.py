"""A thread in each process that answers for its rank, and notices that others do not come."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

from collective_rules.errors import DisagreementError
from collective_rules.finding import ERROR
from collective_rules.live.diagnosis import (
    answer,
    ask,
    by_cause,
    departed,
    in_order,
    is_in_collective,
    missing_of,
    not_come,
    silent,
    tails,
)
from collective_rules.live.protocol import Arrival
from collective_rules.live.session import Session, Waiting
from collective_rules.live.store import LostStoreError

__all__ = ["TICK", "Watchdog", "hang"]

TICK = 0.1
_CONNECTING = 30.0
"""Seconds beyond the deadline for a rank to connect to the store: one name server that does not answer takes 5."""
_KEPT = 64
"""How many meetings that are over stay in the store: a rank may be about to read what came of one."""


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
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the end."""
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
        woken = store.find(f"wake/{session.rank}")
        if woken is not None:
            store.delete(f"wake/{session.rank}")
            if woken == b"ask":
                store.set(f"answer/{session.rank}", answer(session))
        if session.error is None:
            text = store.find("error") if woken is not None else None
            if text is not None:
                session.learn(text)
        if session.error is not None:
            session.release()
            return
        self._clean(_KEPT)
        last = session.last()
        if last != self._posted:
            self._posted = last
            store.set(f"last/{session.rank}", last.encode())
        self._compare_windows()
        for waiting in [*session.waits.values()]:
            self._look(waiting)
        self._look_inside()

    def _clean(self, keep: int) -> None:
        """Delete what is left in the store of meetings that are over."""
        session = self._session
        while len(session.finished) > keep:
            key = session.finished.popleft()
            for part in "pnv":
                session.store.delete(key + part)

    def _compare_windows(self) -> None:
        """Arrival this rank's running numbers, and compare them with the others' where it is the last."""
        session = self._session
        while session.windows:
            key, group, number, count = session.windows.popleft()
            ranks = group.ranks or tuple(range(group.size))
            session.post(key, Arrival(group.rank, False, "", b"%x" % number).pack())
            posts = list(Arrival.unpack(session.store.find(key + "p") or b""))  # deleted, where another one was faster
            if len(posts) < len(ranks):
                continue
            session.store.delete(key + "p")
            session.posted.pop(key, None)
            if len({post.record for post in posts}) > 1 and self._leads():
                found = in_order([each for rank, each in ask(session).items() if rank in ranks], group.name, count)
                if any(each.severity == ERROR for each in found):
                    session.publish(found)
                else:
                    session.mention(found)
                    session.store.delete("lead")

    def _look(self, waiting: Waiting) -> None:
        """Find out who keeps this rank waiting: at the deadline, or as soon as it is known that they will not come."""
        session, now = self._session, time.monotonic()
        if now - waiting.since < self._tick:
            return
        left = departed(session)
        missing = missing_of(session, waiting.key, waiting.members)
        if not missing:
            if session.store.find(waiting.key + "p") is None:  # deleted: it was over before this rank asked
                session.store.set(waiting.key + "v", b"")
            return
        if waiting.to_any and session.store.find(waiting.to_any) is not None:
            session.finished.append(waiting.key)
            session.store.set(waiting.key + "v", b"")  # whose send the receiver takes only the run tells
            return
        gone = bool(left.keys() & {*missing})
        late = now - waiting.due
        if late < _CONNECTING and any(session.is_connecting(rank) for rank in missing):
            return
        if not gone and late < -session.patience:
            return
        if not self._leads() and late < session.patience + 1:
            return  # another rank is at it
        answers = ask(session)
        while not gone and time.monotonic() < waiting.due and not self._ended.wait(self._tick):
            pass
        findings = not_come(session, waiting, answers) if waiting in session.waits.values() else ()
        if findings:
            session.publish(findings)
        else:
            session.store.delete("lead")

    def _look_inside(self) -> None:
        """Find out why this rank does not come out of a collective that was already sent."""
        session = self._session
        stuck = bool(session.tail) and time.monotonic() - session.stamp > session.deadline + 1
        if stuck and session.stamp > self._reported and not session.waits and is_in_collective(session.thread):
            self._reported = session.stamp
            if self._leads():
                hang(session)

    def _leads(self) -> bool:
        return leads(self._session)


def leads(session: Session) -> bool:
    """Whether this rank is the one that asks the others."""
    mine = str(session.rank).encode()
    return session.store.claim("lead", mine) == mine


def hang(session: Session) -> DisagreementError | None:
    """Find out why ranks do not come out of a collective, write it to stderr, and publish what is wrong, if anything.

    For the rank that leads.
    """
    answers = ask(session)
    findings = [found for found in in_order(answers.values()) if found.severity == ERROR]
    findings = [*by_cause((*findings, *silent(session, answers)))]
    told = [found.message for found in findings] or ["no rank's calls differ from the others', as far as they answered"]
    what = "failed in" if session.failure else "hangs in"
    text = "\n".join([f"rank {session.rank} {what} {session.last()}", *told, tails(answers)])
    print(f"collective_rules: {text}", file=sys.stderr, flush=True)
    if findings:
        return session.publish(findings)
    session.store.set("calm", b"")
    session.store.delete("lead")
    return None

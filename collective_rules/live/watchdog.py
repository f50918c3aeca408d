"""A thread in each process that answers for its rank, and notices when other ranks do not come."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

from collective_rules.errors import DisagreementError
from collective_rules.finding import ERROR
from collective_rules.live import keys, termination
from collective_rules.live.diagnosis import (
    answer,
    ask,
    departed,
    doing_now,
    in_order,
    is_in_collective,
    missing_of,
    not_come,
    silent,
    tails,
    why_stuck,
)
from collective_rules.live.session import Session, Waiting
from collective_rules.live.store import LostStoreError

CONNECTING = 30.0
"""Seconds beyond the deadline for a rank to connect to the store: a name server that does not answer takes 5."""
_RAISING = 1.0
"""Seconds for a rank to raise a published error, before its watchdog says where the rank is stuck."""
_KEPT = 64
"""How many meetings that are over stay in the store: a rank may be about to read a verdict."""


class Watchdog:
    """Looks after a session from `start` to `stop`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collective_rules live", daemon=True)
        self._connection = session.store.connect()
        self._posted = ""
        self._heard = 0
        self._reported = 0.0
        self._has_told = False
        self._looked: dict[Waiting, tuple[bytes, bool]] = {}
        self._learned = 0.0
        self._said = False

    def start(self) -> None:
        """Start the thread."""
        termination.watch()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for its end."""
        self._ended.set()
        self._thread.join(max(5.0, 4 * self._session.patience))
        if termination.has_come() and not self._has_told:
            self._say_error()
        termination.unwatch()

    def _run(self) -> None:
        session = self._session
        session.store.adopt(self._connection)
        while not self._ended.wait(session.tick):
            try:
                self._once()
            except LostStoreError as error:
                session.lose(error)
                break
            except Exception as error:  # the last resort: this rank has to go on answering the others
                session.doubt(error)
        if not session.lost:
            with contextlib.suppress(LostStoreError):
                self._clean(0)
        while not self._ended.wait(session.tick):  # the store is gone; a signal still has to be passed on
            termination.pass_on()

    def _once(self) -> None:
        session = self._session
        self._answer()
        if termination.has_come() and not self._has_told:
            self._has_told = True
            self._tell_before_the_end()
        if session.error is not None:
            session.release()
            self._say_where(session.error)
            return
        self._clean(_KEPT)
        last = session.last()
        if last != self._posted:
            self._posted = last
            session.post_last()
        self._compare_windows()
        waits = [*session.waits.values()]
        self._looked = {waiting: seen for waiting, seen in self._looked.items() if waiting in waits}
        for waiting in waits:
            self._look(waiting)
        self._look_inside()

    def _answer(self) -> None:
        """Answer the ranks that have asked, and learn of an error."""
        session, heard = self._session, self._hear()
        for question in [text[4:] for text in heard if text.startswith("ask ")]:
            session.store.set(keys.answer(question, session.rank), answer(session))
        if session.error is None:
            text = session.store.find(keys.ERROR) if heard else None
            if text is not None:
                session.learn(text)

    def _tell_before_the_end(self) -> None:
        """Say what is known before SIGTERM ends this process: torchrun ends all ranks when one has failed."""
        session = self._session
        stuck = bool(session.waits or session.failure) or is_in_collective(session.thread)
        # After a failure, the thread that failed finds out.
        if session.error is None and stuck and not session.failure and leads(session):
            find_out_early(session)
        until = time.monotonic() + session.patience * (3 if stuck else 1)
        while session.error is None and time.monotonic() < until and not session.store.has(keys.CALM):
            time.sleep(0.02)
            self._answer()
        self._say_error()
        termination.pass_on()

    def _say_error(self) -> None:
        """Write the error to standard error, and note it: this process will not come to raise it."""
        session = self._session
        if session.error is not None:
            told = f"collective_rules: rank {session.rank} is ended by SIGTERM; its last call: {session.last()}"
            print(f"{told}\n{session.error}", file=sys.stderr, flush=True)
            session.mention(session.error.findings)

    def _hear(self) -> list[str]:
        """Return the lines that other ranks have written to this rank since it was asked last."""
        text = self._session.store.find(keys.of_rank(keys.WAKE, self._session.rank)) or b""
        end = text.rfind(b"\n") + 1
        fresh, self._heard = text[self._heard : end], max(self._heard, end)
        return fresh.decode(errors="replace").splitlines()

    def _say_where(self, error: DisagreementError) -> None:
        """Say on stderr, once, where this rank is stuck while there is an error to raise."""
        session = self._session
        self._learned = self._learned or time.monotonic()
        late = time.monotonic() - self._learned > _RAISING
        if late and not self._said:
            self._said = True
            if not session.waits and is_in_collective(session.thread):
                print(
                    f"collective_rules: rank {session.rank} {doing_now(session)}\n{error}", file=sys.stderr, flush=True
                )

    def _clean(self, keep: int) -> None:
        """Delete from the store the meetings that are over, but for the last `keep`."""
        session = self._session
        while len(session.finished) > keep:
            for key in keys.of_meeting(session.finished.popleft()):
                session.store.delete(key)

    def _compare_windows(self) -> None:
        """Add this rank's running hashes to those of the others; compare them if this rank is the last to add its own.

        One number holds how many ranks came, and the sum of their hashes: to post and to read each would be W² texts.
        """
        session = self._session
        while session.windows:
            key, group, number, count = session.windows.popleft()
            ranks, bits = group.ranks or tuple(range(group.size)), group.size.bit_length()
            short = number & ((1 << (62 - 2 * bits)) - 1)
            session.posted[key] = None
            total = session.store.add(keys.come(key), (short << bits) + 1)
            if total & ((1 << bits) - 1) != group.size:
                continue
            session.store.delete(keys.come(key))
            session.posted.pop(key, None)
            if total >> bits != group.size * short and leads(session):
                states = [state for rank, state in ask(session).items() if rank in ranks]
                findings = in_order(states, group.name, count)
                if any(finding.severity == ERROR for finding in findings):
                    session.publish(findings)
                else:
                    session.mention(findings)
                    session.store.delete(keys.lead(0))

    def _look(self, waiting: Waiting) -> None:
        """Find the ranks that keep this rank waiting: at the deadline, or as soon as they are known not to come."""
        session, meeting = self._session, waiting.meeting
        if time.monotonic() - waiting.since < session.tick:
            return
        if not session.store.has(keys.posts(meeting.key)):  # deleted: it was over before this rank asked
            session.end(meeting.key)
        elif meeting.to_any and session.store.has(meeting.to_any):
            session.end(meeting.key)  # only the run tells whose send the receiver takes
        else:
            gone, late = self._has_gone(waiting), time.monotonic() - waiting.due
            if gone or late >= -session.patience:
                turn = max(0, int(late // (session.patience + 1)))  # a leader that is stopped asks nobody
                if leads(session, turn):
                    self._find_out(waiting, turn, gone=gone)

    def _has_gone(self, waiting: Waiting) -> bool:
        """Return whether a rank that a meeting waits for has left the block."""
        session, meeting = self._session, waiting.meeting
        if meeting.key in (keys.EXIT, keys.TAILS):
            return False
        count = session.store.find(keys.come(keys.EXIT))
        if count is None:
            return False
        if waiting not in self._looked or self._looked[waiting][0] != count:
            left = departed(session)  # before the arrivals: a rank that has left has arrived earlier
            self._looked[waiting] = (count, not left.keys().isdisjoint(missing_of(session, meeting)))
        return self._looked[waiting][1]

    def _find_out(self, waiting: Waiting, turn: int, *, gone: bool) -> None:
        """Ask all ranks what they do; at the deadline, or at once if a rank is `gone`, publish who does not come."""
        session, meeting = self._session, waiting.meeting
        connecting = time.monotonic() - waiting.due < CONNECTING
        if connecting and any(map(session.is_connecting, missing_of(session, meeting))):
            session.store.delete(keys.lead(turn))
            return
        states = ask(session)
        while not gone and time.monotonic() < waiting.due and not self._ended.wait(session.tick):
            pass
        findings = not_come(session, meeting, states)
        if turn and not findings and not session.store.has(keys.verdict(meeting.key)):
            findings = silent(session, states)  # all have come; the last of them has to compare, and may be killed
        if findings and waiting in session.waits.values():
            session.publish(findings)
        else:
            session.store.delete(keys.lead(turn))

    def _look_inside(self) -> None:
        """Find out why this rank does not come out of a collective that it has sent."""
        session = self._session
        stuck = bool(session.tail) and time.monotonic() - session.stamp > session.deadline + 1
        if stuck and session.stamp > self._reported and not session.waits and is_in_collective(session.thread):
            self._reported = session.stamp
            if leads(session):
                hang(session)


def leads(session: Session, turn: int = 0) -> bool:
    """Return whether this rank is the one that asks the others, in this turn."""
    mine = str(session.rank).encode()
    leading = session.store.claim(keys.lead(turn), mine) == mine
    if leading and turn:
        session.rest[keys.lead(turn)] = None
    return leading


def hang(session: Session) -> DisagreementError | None:
    """Find out why ranks do not come out of a collective, on the rank that leads.

    Writes the last calls of all ranks to stderr. Returns the error that all ranks raise, None where nothing is wrong.
    """
    states = ask(session)
    findings = why_stuck(session, states)
    lines = [f"collective_rules: rank {session.rank} {doing_now(session)}"]
    lines += [finding.message for finding in findings] or ["no calls differ among the ranks that answered"]
    print("\n".join([*lines, tails(states)]), file=sys.stderr, flush=True)
    if findings:
        return session.publish(findings)
    _calm(session)
    return None


def find_out_early(session: Session) -> None:
    """Find out, on the rank that leads, why ranks are in their collectives as all are about to be ended."""
    findings = why_stuck(session, ask(session), cut_short=True)
    if findings:
        session.publish(findings)
    else:
        _calm(session)


def _calm(session: Session) -> None:
    session.store.set(keys.CALM, b"")
    session.store.delete(keys.lead(0))

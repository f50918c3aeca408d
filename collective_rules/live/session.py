"""The state of one rank's comparison: its last calls, the places where it waits, and the error that all ranks raise."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import attrs

from collective_rules.call import Call
from collective_rules.errors import DisagreementError, plain_text_of
from collective_rules.finding import ERROR, WARNING, Finding
from collective_rules.ledger import Entry
from collective_rules.live import keys
from collective_rules.live.protocol import (
    CallDecoder,
    CallEncoder,
    UnreadableError,
    pack_findings,
    pack_tail,
    unpack_findings,
)
from collective_rules.live.store import LostStoreError, RankStore
from collective_rules.messages import group_text
from collective_rules.spec import Group, is_size

MISSING = "LIVE1"
"""The id of the finding that a rank did not come to the place where the others wait."""
LOST = "LIVE2"
"""The id of the finding that the store is gone."""

OTHER_SETTINGS = "LIVE4"
"""The id of the finding that ranks entered the block with other settings."""
UNREADABLE = "LIVE3"
"""The id of the finding that the comparison itself failed, or met a value in the store that no rank wrote."""

ALWAYS = "always"

_MOST_NOTED, _MOST_POSTED, _MOST_LAST = 1000, 4096, 8
_SHORTEST = 0.01
"""The least seconds between two calls of which the others are told: to tell of each costs too much."""
_A_SECOND = 2_000
"""How many looks the watchdogs of all ranks together take in a second: a store serves some 100,000 messages."""
_RELEASED = b"!"
"""The verdict that ends the waits of a rank that has an error to raise."""


Members = Mapping[int, int]
"""The ranks that come to a meeting: the rank that an arrival names → the global rank."""


@attrs.frozen(eq=False)
class Meeting:
    """A place where ranks meet at the store.

    `call` is the call that is about to be sent, None at the end of the block, and `text` names it for people. `to_any`
    is the key that says that a receive from any source may take this send.
    """

    key: str
    members: Members
    call: Call | None = None
    index: int = 0
    text: str = "the end of the block"
    to_any: str = ""


@attrs.frozen(eq=False)
class Waiting:
    """A rank waits in a `meeting` from `since` until `due`, by time.monotonic."""

    meeting: Meeting
    since: float
    due: float


@attrs.define(eq=False)
class Session:
    """One block in which ranks are compared. `rank` is global, `ranks` are all that take part.

    - `note` takes the findings that raise no error. `how` ranks are compared: "always", "exit" or a number.
    - `tail`: the last calls, each with its index among the collectives of its group. `stamp`, `thread`: when the last
      call was made (by time.monotonic), and by which thread.
    - `windows`: running hashes to compare: the key, the group, the hash, and how many collectives went into the hash.
    - `posted`: keys of the meetings that this rank came to and that may still be open. `finished`: keys of the meetings
      that are over, and that this rank deletes. `rest`: other keys that this rank knows to be left in the end. `waits`:
      where this rank's threads wait.
    - `failure`: the text of the error of a collective that failed.
    - `error`: the error that every rank raises from now on. `lost`: whether the store is gone.
    """

    store: RankStore
    rank: int
    ranks: tuple[int, ...]
    deadline: float
    note: Callable[[tuple[Finding, ...]], None]
    tail: deque[tuple[Entry, int]]
    encoder: CallEncoder = attrs.field(factory=CallEncoder)
    decoder: CallDecoder = attrs.field(factory=CallDecoder)
    error: DisagreementError | None = None
    lost: bool = False
    failure: str = ""
    thread: int = attrs.field(factory=threading.get_ident)
    how: str = ""
    stamp: float = 0.0
    posted_at: float = 0.0
    waits: dict[int, Waiting] = attrs.field(factory=dict)
    windows: deque[tuple[str, Group, int, int]] = attrs.field(factory=deque)
    posted: dict[str, None] = attrs.field(factory=dict)
    finished: deque[str] = attrs.field(factory=deque)
    rest: dict[str, None] = attrs.field(factory=dict)
    tickets: Iterator[int] = attrs.field(factory=itertools.count)
    _noted: set[tuple[str, str]] = attrs.field(factory=set)

    @property
    def tick(self) -> float:
        """The seconds between two looks of this rank's watchdog: fewer looks of each where many ranks look."""
        return max(min(0.1, self.deadline / 20), len(self.ranks) / _A_SECOND)

    @property
    def patience(self) -> float:
        """The seconds that other ranks have to answer when they are asked what they do."""
        return min(2.0, self.deadline / 2) + 2 * len(self.ranks) / _A_SECOND

    def publish(self, findings: Iterable[Finding]) -> DisagreementError:
        """Let every rank raise an error of `findings`, and return it; if another rank was first, return its error."""
        mine = pack_findings(findings).encode()
        first = self.store.claim(keys.ERROR, mine)
        if self.learn(first) is None:  # no rank wrote it
            self.store.set(keys.ERROR, mine)
        for rank in self.ranks:
            if rank != self.rank:
                self.store.append(keys.of_rank(keys.WAKE, rank), b"error\n")
        return self.learn(mine) or error_of(tuple(findings))

    def learn(self, text: bytes) -> DisagreementError | None:
        """Return the published error, and keep it; end this rank's waits. None for a text that cannot be read."""
        if self.error is None:
            try:
                self.error = error_of(unpack_findings(text.decode(errors="replace")))
            except UnreadableError as error:
                self.doubt(error)
                return None
        self.release()
        return self.error

    def post(self, key: str, text: bytes) -> None:
        """Arrive at the meeting at `key`."""
        self.posted[key] = None
        if len(self.posted) > _MOST_POSTED:
            self.posted.pop(next(iter(self.posted)), None)
        self.store.append(keys.posts(key), text)

    def end(self, meeting: str) -> None:
        """End a meeting without a finding, so that nobody waits there."""
        self.store.set(keys.verdict(meeting), b"")
        self.finished.append(meeting)
        self.posted.pop(meeting, None)

    def release(self) -> None:
        """Wake this rank's threads that wait: they have to look for an error."""
        for waiting in [*self.waits.values()]:
            self.store.set(keys.verdict(waiting.meeting.key), _RELEASED)

    def refuse(self) -> None:
        """Raise the published error, if there is one."""
        if self.error is not None:
            raise error_of(self.error.findings)

    def lose(self, error: LostStoreError) -> DisagreementError:
        """Return the error that the store is gone, and keep it."""
        self.lost = True
        if self.error is None:
            finding = lost_store(error, self.rank, self.last())
            self.error = DisagreementError(finding.message, (finding,))
        return self.error

    def doubt(self, error: Exception) -> None:
        """Say that the comparison of ranks failed here; the program goes on, for it may be right.

        On standard error, too: the guard must not be off without a word.
        """
        if isinstance(error, UnreadableError):
            text = f"a value in the store over which ranks are compared cannot be read: {error}"
            advice = "Ranks run other versions of collective_rules, or another program writes to this store."
        else:
            trace = traceback.extract_tb(error.__traceback__)
            text = f"the comparison of ranks failed: {type(error).__name__}: {plain_text_of(error)}"
            advice = "; ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in trace[-4:])
        message = (
            f"{text}   [{UNREADABLE}]\n  rank {self.rank} does not compare what was to be compared here.\n{advice}"
        )
        finding = Finding(UNREADABLE, WARNING, message, (self.rank,))
        if self.mention((finding,)):
            print(f"collective_rules: {message}", file=sys.stderr, flush=True)

    @contextmanager
    def needing_store(self) -> Iterator[None]:
        """Raise the `DisagreementError` of `lose` where the store does not answer; `doubt` what cannot be read."""
        try:
            yield
        except UnreadableError as error:
            self.doubt(error)
        except LostStoreError as error:
            raise self.lose(error) from error

    @contextmanager
    def waiting(self, meeting: Meeting, extra: float = 0.0) -> Iterator[None]:
        """Tell where this thread waits, as long as the block lasts: until the deadline, and `extra` seconds."""
        ticket, now = next(self.tickets), time.monotonic()
        self.waits[ticket] = Waiting(meeting, now, now + self.deadline + extra)
        try:
            yield
        finally:
            del self.waits[ticket]

    def await_verdict(self, key: str) -> bytes:
        """Wait for the verdict of a meeting, and return it; raise an error that was published meanwhile."""
        verdict = _RELEASED if self.error is not None else self.store.get(keys.verdict(key))
        if verdict == _RELEASED:
            self.refuse_published()
        return verdict

    def refuse_published(self) -> None:
        """Raise the published error, also one of which this rank's watchdog has not heard yet."""
        text = self.store.find(keys.ERROR)
        if text is not None:
            self.learn(text)
        self.refuse()

    def mention(self, findings: Iterable[Finding]) -> bool:
        """Note findings that raise no error, return whether one is new; those that differ in place alone are one."""
        fresh = []
        for finding in findings:
            same = (finding.id, finding.message.rpartition("\nAt collective")[0] or finding.message)
            if same not in self._noted and len(self._noted) < _MOST_NOTED:
                self._noted.add(same)
                fresh.append(finding)
        if fresh:
            self.note(tuple(fresh))
        return bool(fresh)

    def enter(self) -> None:
        """Tell the others that this rank enters the block, before it has a connection of its own."""
        self.store.announce(keys.of_rank(keys.HERE, self.rank), self.how)

    def is_connecting(self, rank: int) -> bool:
        """Return whether a rank enters the block, and has no connection of its own yet."""
        here, last = (self.store.find(keys.of_rank(key, rank)) for key in (keys.HERE, keys.LAST))
        return here is not None and last is None

    def post_last(self) -> None:
        """Tell the others this rank's last call, for when it cannot answer.

        Where ranks do not meet, its last calls as data, too: the process may be aborted inside the last one.
        """
        text = self.last().replace("\n", " ").encode(errors="backslashreplace")
        if self.how != ALWAYS:
            last = [self.tail[place] for place in range(-min(_MOST_LAST, len(self.tail)), 0)]
            text += b"\n" + pack_tail(last, self.encoder)
        self.posted_at = time.monotonic()
        self.store.set(keys.of_rank(keys.LAST, self.rank), text)

    def wants_posting(self) -> bool:
        """Return whether it is long enough ago that this rank told the others its last call."""
        return time.monotonic() - self.posted_at > max(_SHORTEST, len(self.ranks) / _A_SECOND)

    def last_line(self) -> str:
        """Return the line that made this rank's last call; "" before any."""
        try:
            return self.tail[-1][0].source
        except IndexError:
            return ""

    def last(self) -> str:
        """Return a text that names this rank's last call."""
        try:
            entry, index = self.tail[-1]
        except IndexError:
            return "none in this block"
        return call_text(entry.facts.call, self.encoder.of(entry.facts).text, index, entry.source)


def call_text(call: Call, text: str, index: int, source: str) -> str:
    """Return a text that names a call: its sizes, index, group and line."""
    group, peer = call.group, call.attribute("peer")
    where = group_text(group.name, group.ranks)
    name = f" of {where}" if where else ""
    to = (
        f" {'to' if call.row.rule.direction == 'send' else 'from'} rank {group.to_global(peer)}"
        if is_size(peer)
        else ""
    )
    return f"{text}{to} (number {index}{name}{', ' if source else ''}{source})"


def lost_store(error: LostStoreError, rank: int, last: str) -> Finding:
    """Return the finding that the store does not answer a rank, whose `last` call this is."""
    message = (
        f"the store over which ranks are compared does not answer   [{LOST}]\n"
        f"  {error}\n"
        f"  rank {rank}'s last call: {last}\n"
        "The process that serves the store has ended, usually that of rank 0: look at its output first. "
        "Under torchrun the store outlives every rank."
    )
    return Finding(LOST, ERROR, message)


def has_not_entered(rank: int, seconds: float) -> Finding:
    """Return the finding that the first rank of a block has not entered it within some `seconds`."""
    message = (
        f"rank {rank} has not come to the block within {seconds:g} s   [{MISSING}]\n"
        f"  the other ranks wait for rank {rank} as they enter the block\n"
        "Every rank must enter the block: look at what that rank is doing."
    )
    return Finding(MISSING, ERROR, message, (rank,), {"missing": (rank,), "at fault": (rank,)})


def error_of(findings: tuple[Finding, ...]) -> DisagreementError:
    """Return the error that carries `findings`; its text is that of the findings of severity error."""
    wrong = [finding.message for finding in findings if finding.severity == ERROR]
    return DisagreementError("\n".join(wrong or [finding.message for finding in findings]), findings)

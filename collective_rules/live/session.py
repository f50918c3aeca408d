"""The state of one rank's comparison: its last calls, the places where it waits, and the error that all ranks raise."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import attrs

from collective_rules.call import Call
from collective_rules.errors import DisagreementError
from collective_rules.finding import ERROR, Finding
from collective_rules.ledger import Entry
from collective_rules.live import keys
from collective_rules.live.protocol import CallDecoder, CallEncoder, pack_findings, unpack_findings
from collective_rules.live.store import LostStoreError, RankStore
from collective_rules.messages import group_text
from collective_rules.spec import Group, is_size

MISSING = "LIVE1"
"""The id of the finding that a rank did not come to the place where the others wait."""
LOST = "LIVE2"
"""The id of the finding that the store is gone."""

_MOST_NOTED, _MOST_POSTED = 1000, 4096
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

    - `note` takes the findings that raise no error.
    - `tail`: the last calls, each with its index among the collectives of its group. `stamp`, `thread`: when the last
      call was made (by time.monotonic), and by which thread.
    - `windows`: running hashes to compare: the key, the group, the hash, and how many collectives went into the hash.
    - `posted`: keys of the meetings that this rank came to and that may still be open. `finished`: keys of the meetings
      that are over, and that this rank deletes. `waits`: where this rank's threads wait.
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
    stamp: float = 0.0
    waits: dict[int, Waiting] = attrs.field(factory=dict)
    windows: deque[tuple[str, Group, int, int]] = attrs.field(factory=deque)
    posted: dict[str, None] = attrs.field(factory=dict)
    finished: deque[str] = attrs.field(factory=deque)
    _tickets: Iterator[int] = attrs.field(factory=itertools.count)
    _noted: set[tuple[str, str]] = attrs.field(factory=set)

    @property
    def patience(self) -> float:
        """The seconds that other ranks have to answer when they are asked what they do."""
        return min(2.0, self.deadline / 2)

    def publish(self, findings: Iterable[Finding]) -> DisagreementError:
        """Let every rank raise an error of `findings`, and return it; if another rank was first, return its error."""
        first = self.store.claim(keys.ERROR, pack_findings(findings).encode())
        for rank in self.ranks:
            if rank != self.rank:
                self.store.set(keys.of_rank(keys.WAKE, rank), b"error")
        return self.learn(first)

    def learn(self, text: bytes) -> DisagreementError:
        """Return the published error, and keep it; end this rank's waits."""
        if self.error is None:
            self.error = error_of(unpack_findings(text.decode()))
        self.release()
        return self.error

    def post(self, key: str, text: bytes) -> None:
        """Arrive at the meeting at `key`."""
        self.posted[key] = None
        if len(self.posted) > _MOST_POSTED:
            self.posted.pop(next(iter(self.posted)), None)
        self.store.append(keys.posts(key), text)

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
        message = (
            f"the store over which ranks are compared does not answer   [{LOST}]\n"
            f"  {error}\n"
            f"  rank {self.rank}'s last call: {self.last()}\n"
            "The process that serves the store has ended, usually that of rank 0: look at its output first. "
            "Under torchrun the store outlives every rank."
        )
        if self.error is None:
            self.error = DisagreementError(message, (Finding(LOST, ERROR, message),))
        return self.error

    @contextmanager
    def needing_store(self) -> Iterator[None]:
        """Raise the `DisagreementError` of `lose` where the store does not answer."""
        try:
            yield
        except LostStoreError as error:
            raise self.lose(error) from error

    @contextmanager
    def waiting(self, meeting: Meeting, extra: float = 0.0) -> Iterator[None]:
        """Tell where this thread waits, as long as the block lasts: until the deadline, and `extra` seconds."""
        ticket, now = next(self._tickets), time.monotonic()
        self.waits[ticket] = Waiting(meeting, now, now + self.deadline + extra)
        try:
            yield
        finally:
            del self.waits[ticket]

    def await_verdict(self, key: str) -> bytes:
        """Wait for the verdict of a meeting, and return it; raise an error that was published meanwhile."""
        verdict = _RELEASED if self.error is not None else self.store.get(keys.verdict(key))
        if verdict == _RELEASED:
            text = self.store.find(keys.ERROR)
            if text is not None:
                self.learn(text)
            self.refuse()
        return verdict

    def mention(self, findings: Iterable[Finding]) -> None:
        """Note findings that raise no error; those that differ in their place alone are noted once."""
        fresh = []
        for finding in findings:
            same = (finding.id, finding.message.rpartition("\nAt collective")[0] or finding.message)
            if same not in self._noted and len(self._noted) < _MOST_NOTED:
                self._noted.add(same)
                fresh.append(finding)
        if fresh:
            self.note(tuple(fresh))

    def enter(self) -> None:
        """Tell the others that this rank enters the block, before it has a connection of its own."""
        self.store.announce(keys.of_rank(keys.HERE, self.rank), "here")

    def is_connecting(self, rank: int) -> bool:
        """Return whether a rank enters the block, and has no connection of its own yet."""
        here, last = (self.store.find(keys.of_rank(key, rank)) for key in (keys.HERE, keys.LAST))
        return here is not None and last is None

    def post_last(self) -> None:
        """Tell the others this rank's last call, for when it cannot answer."""
        self.store.set(keys.of_rank(keys.LAST, self.rank), self.last().encode())

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


def error_of(findings: tuple[Finding, ...]) -> DisagreementError:
    """Return the error that carries `findings`; its text is that of the findings of severity error."""
    wrong = [finding.message for finding in findings if finding.severity == ERROR]
    return DisagreementError("\n".join(wrong or [finding.message for finding in findings]), findings)

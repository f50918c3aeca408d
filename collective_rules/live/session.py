"""What one rank's guard holds: who takes part, the last calls, what it waits in, and the error that all raise."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from collective_rules.call import Call
from collective_rules.errors import DisagreementError
from collective_rules.finding import ERROR, Finding
from collective_rules.live.protocol import CallDecoder, CallEncoder, pack_findings, unpack_findings
from collective_rules.live.store import LostStoreError, RankStore
from collective_rules.spec import Group

if TYPE_CHECKING:
    from collective_rules.ledger import Entry

__all__ = ["LOST", "MISSING", "Session", "Waiting", "call_text", "error_of"]

MISSING = "LIVE1"
"""The id of the finding that a rank did not come to where the others wait."""
LOST = "LIVE2"
"""The id of the finding that the store is gone, over which ranks are compared."""

_MOST_NOTED, _MOST_POSTED = 1000, 4096


@attrs.frozen(eq=False)
class Waiting:
    """What a rank waits in: the meeting at `key`. `members` are those who come to it, as posts name them → globally.

    `call` is what it is about to do, None at the end of the block. `due` is when the wait is over. `to_any` is the key
    that says that this send may be taken by a receive from any source.
    """

    key: str
    members: Mapping[int, int]
    call: Call | None
    index: int
    text: str
    since: float
    due: float
    to_any: str


@attrs.define(eq=False)
class Session:
    """One use of the guard. `rank` is global, `ranks` are all that take part. `note` takes findings that do not raise.

    - `tail`: the last calls, each with its place among the collectives of its group. `stamp`, `thread`: when the last
      one was made (by time.monotonic), and by which thread.
    - `windows`: running numbers to be compared: a key, the group, the number, and how many collectives went into it.
    - `posted`: keys of meetings that this rank came to, as far as it does not know that they are over. `finished`: keys
      of those that are, and that it clears away. `waits`: what this rank's threads wait in.
    - `failure`: what a collective failed with, once one did.
    - `error`: what every rank raises from now on. `lost`: whether the store is gone.
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
        """How many seconds others have to answer when they are asked what they do."""
        return min(2.0, self.deadline / 2)

    def publish(self, findings: Iterable[Finding]) -> DisagreementError:
        """Let every rank raise an error of `findings`; return what it will be, that of another rank if that was first.

        The first finding is what the text is about.
        """
        known = tuple(findings)
        text = json.dumps({"rank": self.rank, "findings": pack_findings(known)})
        first = self.store.claim("error", text.encode())
        for rank in self.ranks:
            if rank != self.rank:
                self.store.set(f"wake/{rank}", b"error")
        return self.learn(first)

    def learn(self, text: bytes) -> DisagreementError:
        """Take the published error over, and end this rank's waits."""
        if self.error is None:
            self.error = error_of(unpack_findings(json.loads(text)["findings"]))
        self.release()
        return self.error

    def post(self, key: str, text: bytes) -> None:
        """Come to a meeting."""
        self.posted[key] = None
        if len(self.posted) > _MOST_POSTED:
            self.posted.pop(next(iter(self.posted)), None)
        self.store.append(key + "p", text)

    def release(self) -> None:
        """End this rank's waits: it has to look for an error."""
        for waiting in [*self.waits.values()]:
            self.store.set(waiting.key + "v", b"!")

    def refuse(self) -> None:
        """Raise what was published, if anything was."""
        if self.error is not None:
            raise error_of(self.error.findings)

    def lose(self, error: LostStoreError) -> DisagreementError:
        """Return the error that the store is gone."""
        self.lost = True
        last = self.last()
        message = (
            f"the store that ranks are compared over does not answer   [{LOST}]\n"
            f"  {error}\n"
            f"  rank {self.rank}'s last call: {last}\n"
            "The process that serves it has ended, usually that of rank 0: look at its output first. "
            "Under torchrun the store outlives every rank."
        )
        if self.error is None:
            self.error = DisagreementError(message, (Finding(LOST, ERROR, message),))
        return self.error

    @contextmanager
    def waiting(
        self,
        key: str,
        members: Mapping[int, int],
        call: Call | None,
        index: int,
        text: str,
        *,
        extra: float = 0.0,
        to_any: str = "",
    ) -> Iterator[None]:
        """Say what this thread waits in, as long as the block lasts."""
        ticket, now = next(self._tickets), time.monotonic()
        self.waits[ticket] = Waiting(key, members, call, index, text, now, now + self.deadline + extra, to_any)
        try:
            yield
        finally:
            del self.waits[ticket]

    def await_verdict(self, key: str) -> bytes:
        """Return the verdict of a meeting, once it is there; raise what was published meanwhile."""
        verdict = b"!" if self.error is not None else self.store.get(key + "v")
        if verdict == b"!":
            text = self.store.find("error")
            if text is not None:
                self.learn(text)
            self.refuse()
        return verdict

    def mention(self, findings: Iterable[Finding]) -> None:
        """Note findings that do not raise, alike ones once."""
        fresh = []
        for found in findings:
            if (found.id, found.message) not in self._noted and len(self._noted) < _MOST_NOTED:
                self._noted.add((found.id, found.message))
                fresh.append(found)
        if fresh:
            self.note(tuple(fresh))

    def enter(self) -> None:
        """Let the others know that this rank enters the block, before it has a connection of its own."""
        self.store.announce(f"here/{self.rank}", "here")

    def is_connecting(self, rank: int) -> bool:
        """Whether a rank enters the block, and has no connection of its own yet."""
        return self.store.find(f"here/{rank}") is not None and self.store.find(f"last/{rank}") is None

    def post_last(self) -> None:
        """Let the others know this rank's last call, should it not be able to answer."""
        self.store.set(f"last/{self.rank}", self.last().encode())

    def last(self) -> str:
        """Return this rank's last call, for people."""
        try:
            entry, index = self.tail[-1]
        except IndexError:
            return "none in this block"
        return call_text(entry.facts.call, self.encoder.of(entry.facts).text, index, entry.source)


def call_text(call: Call, text: str, index: int, source: str) -> str:
    """Write a call as a person would want to find it."""
    name = f" of group {call.group.name!r}" if call.group.name else ""
    return f"{text} (number {index}{name}{', ' if source else ''}{source})"


def error_of(findings: tuple[Finding, ...]) -> DisagreementError:
    """Return the error that is made of findings: its text is that of those that are errors."""
    wrong = [found.message for found in findings if found.severity == ERROR] or [found.message for found in findings]
    return DisagreementError("\n".join(wrong), findings)

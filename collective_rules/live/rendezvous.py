"""`"always"`: the ranks of a collective meet at the store before it is sent, and are compared there.

Every rank posts its call before it reads, and reads all that was posted by then: of two ranks that disagree, the
second one to post finds out, and does not send. Who has to wait in the call waits for all, and whoever comes last
compares all and tells the others. A call that does not block is compared with those that came before it, and goes on:
so two groups may be used in crossed order. A send and its receive are a meeting of two.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from collective_rules.agree import agree
from collective_rules.binding.batch import members
from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, Finding
from collective_rules.live.protocol import Arrival, EncodedCall, encode, pack_findings, unpack_findings
from collective_rules.live.session import Session, call_text
from collective_rules.rules import Unsolvable
from collective_rules.spec import Group

if TYPE_CHECKING:
    from collective_rules.ledger import Entry

__all__ = ["Rendezvous", "any_source"]

_MOST_ALIKE, _MOST_OPEN = 4096, 4096
_SMALL = 32
"""In larger groups a rank that waits does not read what the others posted: all of it would be read W times."""


def any_source(where: str, rank: int) -> str:
    """Return the key that says that a rank receives from any source."""
    return f"{where}/any/{rank}"


class Rendezvous:
    """The meetings of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._alike: OrderedDict[Any, None] = OrderedDict()
        self._open: OrderedDict[int, list[tuple[str, Mapping[int, int], Call, int, str]]] = OrderedDict()
        self._counts: dict[tuple[Any, ...], int] = {}
        self._members: dict[int, tuple[Group, Mapping[int, int]]] = {}
        self._any_source: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def meet(self, entry: Entry, index: int, where: str, backend: str | None) -> None:
        """Compare a call with those of the other ranks, as far as they are there; `where` names its group.

        Raises `DisagreementError` where they differ, and where others do not come.
        """
        call, session = entry.facts.call, self._session
        if call.group.size == 1:
            return
        session.post_last()
        if not call.row.rule.point_to_point:
            everyone = self._everyone(call.group)
            encoded = session.encoder.of(entry.facts)
            key = f"{where}/{index}"
            self._meet(entry, call, encoded, key, everyone, index, backend)
            return
        try:
            singles = list(members(call))
        except (Unsolvable, CallError):  # malformed: `check` says why
            return
        for single in singles:
            self._meet_partner(entry, single, where, backend)

    def waited(self, entry: Entry) -> None:
        """Wait for those that were not there when a call that does not block was made: now it is waited for."""
        for meeting in self._open.pop(entry.number, ()):
            self._wait(*meeting)

    def _meet_partner(self, entry: Entry, single: Call, where: str, backend: str | None) -> None:
        group, peer, tag = single.group, single.attribute("peer"), single.attribute("tag")
        sends = single.row.rule.direction == "send"
        if peer is None:
            # Whose send this takes only the run tells: from now on, sends to this rank are not compared.
            self._any_source.add((where, group.rank))
            self._session.store.set(any_source(where, group.rank), b"any")
            return
        if not 0 <= peer < group.size or peer == group.rank:
            return
        pair = (group.rank, peer) if sends else (peer, group.rank)
        if self._is_open_to_all(where, pair[1]):
            return
        with self._lock:
            number = self._counts.get((where, *pair, tag), 0)
            self._counts[where, *pair, tag] = number + 1
        everyone = self._everyone(group)
        alone = single is entry.facts.call
        encoded = self._session.encoder.of(entry.facts) if alone else encode(single, entry.facts.sizes)
        key = f"{where}/{pair[0]}>{pair[1]}#{tag}/{number}"
        self._meet(entry, single, encoded, key, {rank: everyone[rank] for rank in pair}, number, backend)

    def _everyone(self, group: Group) -> Mapping[int, int]:
        found = self._members.get(id(group))
        if found is None:
            found = self._members[id(group)] = (group, dict(enumerate(group.ranks or range(group.size))))
        return found[1]

    def _is_open_to_all(self, where: str, rank: int) -> bool:
        if (where, rank) not in self._any_source and self._session.store.find(any_source(where, rank)) is not None:
            self._any_source.add((where, rank))
        return (where, rank) in self._any_source

    def _meet(
        self,
        entry: Entry,
        call: Call,
        encoded: EncodedCall,
        key: str,
        everyone: Mapping[int, int],
        index: int,
        backend: str | None,
    ) -> None:
        session, blocking = self._session, not entry.asynchronous
        store = session.store
        session.post(key, Arrival(call.group.rank, blocking, entry.source, encoded.record).pack())
        come = store.add(key + "n", 1) if len(everyone) > _SMALL else 0
        if come == len(everyone) or not (come and blocking):
            posts = self._posts(key)
            findings = self._compare(posts, call.group, index, backend)
            if any(found.severity == ERROR for found in findings):
                findings = self._compare(self._more_posts(key, len(everyone)), call.group, index, backend)
                session.publish(findings)
                session.refuse()
            session.mention(findings)
            if len(posts) == len(everyone):
                store.set(key + "v", pack_findings(findings).encode() if findings else b"")
                session.finished.append(key)
                session.posted.pop(key, None)
                return
        if blocking:
            self._wait(key, everyone, call, index, call_text(call, encoded.text, index, entry.source))
        else:
            text = call_text(call, encoded.text, index, entry.source)
            self._open.setdefault(entry.number, []).append((key, everyone, call, index, text))
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)

    def _posts(self, key: str) -> list[Arrival]:
        return sorted(Arrival.unpack(self._session.store.find(key + "p") or b""), key=lambda post: post.rank)

    def _more_posts(self, key: str, size: int) -> list[Arrival]:
        """Give the others a moment to come: of more ranks there is a majority, and the odd one out can be named."""
        until = time.monotonic() + self._session.patience / 2
        posts = self._posts(key)
        while len(posts) < size and time.monotonic() < until and self._session.error is None:
            time.sleep(0.01)
            posts = self._posts(key)
        return posts

    def _wait(self, key: str, everyone: Mapping[int, int], call: Call, index: int, text: str) -> None:
        to_any = any_source(key.partition("/")[0], call.attribute("peer")) if call.row.rule.direction == "send" else ""
        with self._session.waiting(key, everyone, call, index, text, to_any=to_any):
            verdict = self._session.await_verdict(key)
        self._session.posted.pop(key, None)
        if verdict:
            self._session.mention(unpack_findings(verdict.decode()))

    def _compare(self, posts: list[Arrival], group: Group, index: int, backend: str | None) -> tuple[Finding, ...]:
        """Return what those who came disagree on. What was once found alike is not looked at again."""
        if len(posts) < 2 or not all(post.record for post in posts):
            return ()
        kind = (group.size, backend, *[(post.rank, post.blocking, post.record) for post in posts])
        if kind in self._alike:
            return ()
        calls = [self._session.decoder.call(post, group, index) for post in posts]
        ranks = group.ranks or tuple(range(group.size))
        findings = agree(calls, backend, ranks=[ranks[post.rank] for post in posts])
        if not findings:
            self._alike[kind] = None
            if len(self._alike) > _MOST_ALIKE:
                self._alike.popitem(last=False)
        return findings

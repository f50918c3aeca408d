"""`agree="always"`: the ranks of a collective meet at the store before they send it, and are compared there.

Every rank posts its call before it reads the calls that were posted by then: of two ranks that disagree, the second to
post finds the disagreement, and does not send. A rank that blocks in its call waits for all ranks; the last to come
compares all calls and tells the others. A call that does not block is compared with those that came before it, and goes
on: so two groups may be used in crossed order. A send and its receive are a meeting of two.
Where a group is made, all ranks of the parent are compared, and those that the backend connects wait for each other.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from typing import Any

from collective_rules.agreement.agree import agree
from collective_rules.backends import matching_of
from collective_rules.binding.batch import members
from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, Finding
from collective_rules.ledger import Entry
from collective_rules.live import keys
from collective_rules.live.diagnosis import departed
from collective_rules.live.protocol import Arrival, UnreadableError, encode, pack_findings, unpack_findings
from collective_rules.live.session import Meeting, Members, Session, call_text
from collective_rules.rules import Unsolvable
from collective_rules.spec import Group

_MOST_ALIKE, _MOST_OPEN = 4096, 4096
_SMALL = 32
"""In larger groups a rank that waits does not read the others' calls: each call would be read W times."""


class Rendezvous:
    """Lets the ranks of one session meet."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._alike: OrderedDict[bytes, None] = OrderedDict()
        self._open: OrderedDict[int, list[Meeting]] = OrderedDict()
        self._counts: dict[tuple[Any, ...], int] = {}
        self._members: dict[int, tuple[Group, Members]] = {}
        self._any_source: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def meet(self, entry: Entry, index: int, where: str, backend: str | None) -> None:
        """Compare a call with those of the other ranks that are there; `where` is the key of the call's group.

        Raises `DisagreementError` where calls differ, and where other ranks do not come.
        """
        call = entry.facts.call
        if call.group.size == 1:
            return
        rule, key, everyone = call.row.rule, f"{where}/{index}", self._everyone(call.group)
        if not rule.point_to_point:
            self._meet(entry, call, key, everyone, index, backend, waits=not (entry.asynchronous or rule.waits_for))
            awaited = () if entry.asynchronous or not rule.waits_for else call.attribute(rule.waits_for)
            if len(awaited) > 1:
                connected = {place: rank for place, rank in everyone.items() if rank in awaited}
                self._meet(entry, call, f"{key}/of/{_digest(awaited)}", connected, index, backend, waits=True)
            return
        try:
            messages = list(members(call))
        except (Unsolvable, CallError):  # malformed: `check` says why
            return
        for single in messages:
            self._meet_partner(entry, single, where, backend)

    def is_small(self, group: Group) -> bool:
        """Return whether each rank of a group reads what the others post."""
        return group.size <= _SMALL

    def waited(self, entry: Entry) -> None:
        """Wait for the ranks that were not there when a call was made: now the program waits for its result."""
        for meeting in self._open.pop(entry.number, ()):
            self._wait(meeting)

    def _meet_partner(self, entry: Entry, single: Call, where: str, backend: str | None) -> None:
        group, peer = single.group, single.attribute("peer")
        tag = single.attribute("tag") if matching_of(backend).tags else "any"
        sends = single.row.rule.direction == "send"
        if peer is None:
            # Only the run tells whose send this takes: from now on, sends to this rank are not compared.
            self._any_source.add((where, group.rank))
            self._session.rest[keys.any_source(where, group.rank)] = None
            self._session.store.set(keys.any_source(where, group.rank), b"any")
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
        key = f"{where}/{pair[0]}>{pair[1]}#{tag}/{number}"
        both = {rank: everyone[rank] for rank in pair}
        self._meet(entry, single, key, both, number, backend, waits=not entry.asynchronous)

    def _everyone(self, group: Group) -> Members:
        if id(group) not in self._members:
            self._members[id(group)] = (group, dict(enumerate(group.ranks or range(group.size))))
        return self._members[id(group)][1]

    def _is_open_to_all(self, where: str, rank: int) -> bool:
        if (where, rank) not in self._any_source and self._session.store.find(keys.any_source(where, rank)) is not None:
            self._any_source.add((where, rank))
        return (where, rank) in self._any_source

    def _meet(
        self, entry: Entry, call: Call, key: str, everyone: Members, index: int, backend: str | None, *, waits: bool
    ) -> None:
        """Compare a call with those of the ranks that are there; with `waits`, wait until `everyone` is there."""
        session, store, blocking = self._session, self._session.store, not entry.asynchronous
        alone = call is entry.facts.call
        encoded = session.encoder.of(entry.facts) if alone else encode(call, entry.facts.sizes)
        session.post(key, Arrival(call.group.rank, blocking, entry.source, encoded.record).pack())
        come = store.add(keys.come(key), 1) if len(everyone) > _SMALL else 0
        if come == len(everyone) or not (come and (waits or call.row.rule.makes_groups)):
            try:
                findings, whole = self._compare_posts(key, call, everyone, index, backend)
            except UnreadableError as error:
                session.end(key)
                session.doubt(error)
                return
            session.mention(findings)
            if whole:
                store.set(keys.verdict(key), pack_findings(findings).encode() if findings else b"")
                session.finished.append(key)
                session.posted.pop(key, None)
                return
        sends = call.row.rule.direction == "send"
        to_any = keys.any_source(key.partition("/")[0], call.attribute("peer")) if sends else ""
        meeting = Meeting(key, everyone, call, index, call_text(call, encoded.text, index, entry.source), to_any)
        if waits:
            self._wait(meeting)
        elif not call.row.rule.makes_groups:
            self._keep_open(entry, meeting)

    def _keep_open(self, entry: Entry, meeting: Meeting) -> None:
        """Keep a meeting until the program waits for the result of its call."""
        self._open.setdefault(entry.number, []).append(meeting)
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)

    def _compare_posts(
        self, key: str, call: Call, everyone: Members, index: int, backend: str | None
    ) -> tuple[tuple[Finding, ...], bool]:
        """Return the findings about the ranks that have come, and whether all have.

        Raises `DisagreementError` where they disagree.
        """
        posts = self._posts(key, everyone)
        findings = self._compare(posts, call.group, index, backend)
        if any(finding.severity == ERROR for finding in findings):
            findings = self._compare(self._more_posts(key, everyone), call.group, index, backend)
            self._session.publish(findings)
            self._session.refuse()
        return findings, len(posts) == len(everyone)

    def _posts(self, key: str, everyone: Members) -> list[Arrival]:
        posts = Arrival.unpack(self._session.store.find(keys.posts(key)) or b"")
        if not everyone.keys() >= {post.rank for post in posts}:
            raise UnreadableError("a rank has come that is not in the group")
        return sorted(posts, key=lambda post: post.rank)

    def _more_posts(self, key: str, everyone: Members) -> list[Arrival]:
        """Give other ranks a moment to come: among more ranks, the finding can name the minority."""
        until, left = time.monotonic() + self._session.patience / 2, departed(self._session)
        staying = {place for place, rank in everyone.items() if rank not in left}
        posts = self._posts(key, everyone)
        while staying - {post.rank for post in posts} and time.monotonic() < until and self._session.error is None:
            time.sleep(0.01)
            posts = self._posts(key, everyone)
        return posts

    def _wait(self, meeting: Meeting) -> None:
        with self._session.waiting(meeting):
            verdict = self._session.await_verdict(meeting.key)
        self._session.posted.pop(meeting.key, None)
        if verdict:
            self._session.mention(unpack_findings(verdict.decode(errors="replace")))

    def _compare(self, posts: list[Arrival], group: Group, index: int, backend: str | None) -> tuple[Finding, ...]:
        """Return the disagreements of the ranks that came. Calls that agreed once are not compared again."""
        if len(posts) < 2 or not all(post.record for post in posts):
            return ()
        signature = _signature(group.size, backend, posts)
        if signature in self._alike:
            return ()
        calls = [self._session.decoder.call(post, group, index) for post in posts]
        ranks = group.ranks or tuple(range(group.size))
        findings = agree(calls, backend, ranks=[ranks[post.rank] for post in posts])
        if not findings:
            self._alike[signature] = None
            if len(self._alike) > _MOST_ALIKE:
                self._alike.popitem(last=False)
        return findings


def _signature(size: int, backend: str | None, posts: list[Arrival]) -> bytes:
    """Return a hash of all that a comparison of these calls depends on: the calls of a large group are long."""
    digest = hashlib.blake2b(f"{size} {backend}".encode(), digest_size=16)
    for post in posts:
        digest.update(b"%d %d %d " % (post.rank, post.blocking, len(post.record)))
        digest.update(post.record)
    return digest.digest()


def _digest(ranks: tuple[int, ...]) -> str:
    return hashlib.blake2b(repr(ranks).encode(), digest_size=6).hexdigest()

"""Compares the calls of a block with those of the other ranks: the `Observer` that a mode calls for each of them."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as _c10d

from collective_rules.errors import CallError, DisagreementError
from collective_rules.finding import Finding
from collective_rules.ledger import Entry
from collective_rules.live.group_claims import GroupClaims
from collective_rules.live.handshake import LateError, job_of
from collective_rules.live.rendezvous import Rendezvous
from collective_rules.live.running_hash import RunningHash
from collective_rules.live.session import ALWAYS, Session, has_not_entered, lost_store
from collective_rules.live.shutdown import compare_at_end, explain, is_failure, say_goodbye, tell_of_leaving
from collective_rules.live.store import LostStoreError, RankStore
from collective_rules.live.timed_work import TimedWork
from collective_rules.live.watchdog import CONNECTING, Watchdog
from collective_rules.spec import Group

EXIT = "exit"
_MOST_LAST, _MOST_WORKS = 20_000, 4096

Note = Callable[[tuple[Finding, ...]], None]
"""Takes findings that raise no error."""


class RankComparer:
    """Compares the ranks of a program while it runs; an `Observer`.

    - `how`: "always", before each call is sent; "exit", at the end of the block; a number N, after every N collectives
      of a group.
    - `deadline`: the seconds that a rank waits for the others, also inside gloo's own collectives.
    - `ranks`: the global ranks that take part, None for all. `whole`: at the end, compare every call.

    Raises `CallError` for arguments of other kinds.
    """

    def __init__(
        self, how: str | int, deadline: float, *, ranks: tuple[int, ...] | None = None, whole: bool = False
    ) -> None:
        counts = isinstance(how, int) and not isinstance(how, bool) and how > 0
        if not counts and how not in (ALWAYS, EXIT):
            raise CallError(f"agree={how!r}, but should be False, 'always', 'exit' or a number of collectives")
        if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not 0 < deadline < 1e9:
            raise CallError(f"deadline={deadline!r}, but should be a positive number of seconds")
        self._how, self._deadline, self._ranks, self._whole = how, float(deadline), ranks, whole
        self._every = how if isinstance(how, int) else 0
        self._note: Note = lambda findings: None
        self._session: Session | None = None
        self._rendezvous: Rendezvous | None = None
        self._watchdog: Watchdog | None = None
        # By the group's identity: to compare the ranks of a large group takes long.
        self._hashes: dict[int, tuple[Group, RunningHash | None]] = {}
        # Not the backends themselves: a group that is destroyed in the block has to close its connections.
        self._timeouts: list[tuple[weakref.ref[dist.ProcessGroup], Any, timedelta]] = []
        self._claims = GroupClaims()
        self._works: deque[TimedWork] = deque(maxlen=_MOST_WORKS)
        self._lock = threading.Lock()
        self._late: Finding | None = None

    def start(self, note: Note) -> None:
        """Meet the other ranks at the store, if there is one yet."""
        self._note, self._late = note, None
        if dist.is_initialized():
            self._connect()

    def before(self, entry: Entry, backend: str | None) -> None:
        """Compare a call that is about to be sent.

        Raises `DisagreementError` where the ranks differ, or where another rank found that they differ.
        """
        call = entry.facts.call
        self._claims.restarts += call.row.rule.numbers_anew
        session = self._session or self._connect()
        if session is None:
            return
        session.refuse()
        if call.row.rule.numbers_anew:
            session.tail.append((entry, 0))
            return
        is_first_use = id(call.group) not in self._hashes
        running = self._running_hash(call.group)
        if running is None or call.row.rule.one_sided:
            return
        encoded = session.encoder.of(entry.facts)
        with self._lock:
            index = running.count
            if call.row.rule.point_to_point:
                running.messages += 1
            else:
                running.enter(encoded)
                if self._every and running.count % self._every == 0:
                    key = f"{running.key}/window {running.count}/"
                    session.windows.append((key, running.group, running.number, running.count))
            session.tail.append((entry, index))
        session.stamp, session.thread = time.monotonic(), threading.get_ident()
        meets = self._rendezvous if self._how == ALWAYS or call.row.rule.makes_groups else None
        with session.needing_store():
            if is_first_use and not call.row.rule.makes_groups:
                self._claims.claim(session, call.group, entry.source)
            # Of calls in quick succession the watchdog posts the last.
            if session.wants_posting() or (meets is not None and meets.is_small(call.group)):
                session.post_last()
            if meets is not None:
                meets.meet(entry, index, running.key, backend)

    def limit(self) -> float | None:
        """Return the most seconds that a group may take to be made: the deadline, where ranks are compared."""
        return None if self._session is None else self._deadline

    def after(self, entry: Entry, returned: Any) -> Any:
        """Return what the op returned; for a message of gloo's, a Work that waits no longer than the deadline."""
        session, call = self._session, entry.facts.call
        if session is None or entry.facts.backend != "gloo" or not isinstance(returned, torch.ScriptObject):
            return returned
        if not call.row.rule.point_to_point:
            return returned
        waited = (lambda: self.waited(entry)) if entry.asynchronous else (lambda: None)
        work = TimedWork(_c10d.Work.unbox(returned), self._deadline, waited)
        # C++ holds no reference to the Python half of a Work.
        self._works.append(work)
        return work.boxed()

    def waited(self, entry: Entry) -> None:
        """Compare an asynchronous call with those of all ranks: the program is about to wait for its result.

        Raises `DisagreementError` as `before` does.
        """
        session = self._session
        if session is not None and self._rendezvous is not None:
            session.refuse()
            with session.needing_store():
                self._rendezvous.waited(entry)

    def leave(self, error: BaseException | None) -> None:
        """End the block, which `error` left, and make the comparisons that are left.

        Raises `DisagreementError`, also from an `error` that a disagreement caused.
        """
        session = self._session or (self._connect() if dist.is_initialized() and self._late is None else None)
        if session is None:
            return
        try:
            if error is None:
                session.refuse()
                last = tell_of_leaving(session, self._guarded(), None)
                with session.needing_store():
                    session.mention(compare_at_end(session, last=last, whole=self._whole))
            else:
                cause = explain(session, error)
                tell_of_leaving(session, self._guarded(), error)
                if cause is not None:
                    raise DisagreementError(str(cause), cause.findings) from error
        except LostStoreError as lost:
            cause = session.lose(lost)
            if error is None or is_failure(error):
                raise DisagreementError(str(cause), cause.findings) from (error or lost)
        finally:
            self._end(session)

    def _guarded(self) -> list[RunningHash]:
        return [running for _, running in self._hashes.values() if running is not None]

    def _end(self, session: Session) -> None:
        for reference, device, timeout in self._timeouts:
            group = reference()
            if group is not None and group in dist.distributed_c10d._world.pg_map:
                group._get_backend(device)._set_default_timeout(timeout)
        self._timeouts = []
        if self._watchdog is not None:
            self._watchdog.stop()
        self._session = self._rendezvous = self._watchdog = None
        try:
            serves = session.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            if not session.lost:
                say_goodbye(session, serves=serves)
        except LostStoreError:
            pass  # the store's process has left: there is nobody to tell, and nothing to delete
        self._hashes, self._claims = {}, GroupClaims()

    def _connect(self) -> Session | None:
        if not dist.is_initialized():
            return None
        if self._late is not None:
            raise DisagreementError(self._late.message, (self._late,))
        rank, ranks = dist.get_rank(), self._ranks or tuple(range(dist.get_world_size()))
        try:
            job = job_of(rank, ranks, self._deadline, CONNECTING)
        except LateError:
            self._late = has_not_entered(ranks[0], self._deadline + CONNECTING)
            raise DisagreementError(self._late.message, (self._late,)) from None
        except LostStoreError as lost:
            self._late = lost_store(lost, rank, "none in this block")
            raise DisagreementError(self._late.message, (self._late,)) from lost
        with self._lock:
            if self._session is not None:
                return self._session
            store = RankStore(job.next_block(), 10 * self._deadline + 60)
            tail: deque[Any] = deque(maxlen=_MOST_LAST)
            session = Session(store, rank, ranks, self._deadline, self._note, tail, how=str(self._how))
            self._session = session
        self._rendezvous = Rendezvous(session)
        with session.needing_store():
            session.enter()
            self._watchdog = Watchdog(session)
            session.post_last()
        self._watchdog.start()
        return session

    def _running_hash(self, group: Group) -> RunningHash | None:
        """Return the running hash of a group; None for a group that is not guarded."""
        if id(group) not in self._hashes:
            running = None
            ranks = group.ranks or tuple(range(group.size))
            if group.size > 1 and self._session is not None and {*ranks} <= {*self._session.ranks}:
                digest = hashlib.blake2b(repr((group.name, ranks)).encode(), digest_size=8).hexdigest()
                running = RunningHash(digest, group)
                self._shorten(group)
            self._hashes[id(group)] = (group, running)
        return self._hashes[id(group)][1]

    def _shorten(self, group: Group) -> None:
        """Let gloo give up at the deadline, so that no rank hangs in a collective that another rank does not make."""
        try:
            process_group = _c10d._resolve_process_group(group.name)  # type: ignore[arg-type]  # a name is a str
        except (RuntimeError, LookupError):
            return
        for device in process_group._device_types:
            backend: Any = process_group._get_backend(device)
            if isinstance(backend, dist.ProcessGroupGloo):
                before, limit = backend.options._timeout, timedelta(seconds=self._deadline)
                if before > limit:  # once: the backend of two devices may be one object
                    backend._set_default_timeout(limit)
                    self._timeouts.append((weakref.ref(process_group), device, before))

"""`guard`: checks a running program's collectives, and compares them with those of the other ranks."""

from __future__ import annotations

import os
import threading
from types import TracebackType

import torch.distributed as dist

from collective_rules.errors import CallError, DisagreementError
from collective_rules.finding import Finding
from collective_rules.ledger import Ledger
from collective_rules.live.comparer import RankComparer
from collective_rules.live.session import ALWAYS
from collective_rules.mode import CallRecorder, kernels
from collective_rules.recordings import LedgerWriter


class Guard:
    """The block of a `guard`.

    `findings` holds all that is wrong, once the block has ended; findings between ranks are the same on every rank. A
    guard that is entered again while it is active, also by another thread, stays one.
    """

    def __init__(self, recorder: CallRecorder, writer: LedgerWriter | None = None) -> None:
        self._recorder, self._writer = recorder, writer
        self._lock, self._depth = threading.Lock(), 0
        self.findings: tuple[Finding, ...] = ()

    @property
    def ledger(self) -> Ledger:
        """The calls of the block."""
        return self._recorder.ledger

    def __enter__(self) -> Guard:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                try:
                    self._recorder.start()
                    kernels.listen(self._recorder, everywhere=True)
                except BaseException:  # an interrupt: the with statement does not leave a block that was not entered
                    self._depth = 0
                    self._remove()
                    raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if not self._depth:
                return
            self._depth -= 1
            if self._depth:
                return
        raised = error
        self._remove()
        try:
            self._recorder.leave(error)
        except DisagreementError as disagreement:
            raised = disagreement
            raise
        finally:
            own = raised.findings if isinstance(raised, (CallError, DisagreementError)) else ()
            self.findings = own or tuple(self.ledger.findings)
            if self._writer is not None:
                known = {(finding.id, finding.message) for finding in self.ledger.findings}
                for finding in self.findings:
                    if (finding.id, finding.message) not in known:
                        self._writer.find(finding)
                self._writer.close()

    def _remove(self) -> None:
        """Take the kernels and the hooks away; an interrupt comes after that."""
        try:
            kernels.unlisten(self._recorder)
            self._recorder.stop()
        except BaseException:
            kernels.unlisten(self._recorder)
            self._recorder.stop()
            raise


def guard(
    group: dist.ProcessGroup | None = None,
    *,
    check: bool | str = True,
    agree: bool | str | int = ALWAYS,
    backend: str | None = "auto",
    keep: int = 100_000,
    deadline: float = 60.0,
    ledger: str | os.PathLike[str] | None = None,
    modules: bool = False,
) -> Guard:
    """Return a context manager that checks each collective of a block, and compares it with the other ranks'.

    A guard sees the collectives of the whole process that pass the dispatcher: from every thread, inside custom ops, in
    DDP's hooks, in compiled code. Other ops cost nothing. It does not see calls on backend objects.

    Ranks are compared as `agree` says, which is that of `RuleMode`; after "always" all calls are compared once more at
    the end of the block, with their order and their messages. Every rank, or every rank of `group`, has to enter the
    block, and waits at most `deadline` seconds for the others. `check`, `backend` and `keep` are those of `RuleMode`.
    `ledger`: a file that gets each call as it is made, and each finding, such as "calls/rank{rank}.jsonl";
    `collective-rules compare` reads it. `modules`: whether the ledger tells the module at work, by hooks that all
    modules of the program pay for.

    `with` returns the guard: its `findings` and its `ledger`. The block raises `DisagreementError` on every rank with
    all findings, and `CallError` on a rank whose own call is illegal. Raises `CallError` for other arguments.

    >>> import torch, torch.distributed as dist
    >>> store = dist.HashStore()
    >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> with guard() as guarded:
    ...     dist.all_reduce(torch.ones(8))
    >>> guarded.findings, guarded.ledger.total.calls
    ((), 1)
    >>> dist.destroy_process_group()
    """
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise CallError(f"group={group!r}, but should be a process group, or None for all ranks")
    ranks = None if group is None else tuple(dist.get_process_group_ranks(group))
    comparer = None if agree is False else RankComparer(agree, deadline, ranks=ranks, whole=agree == ALWAYS)
    recorder = CallRecorder(check=check, backend=backend, keep=keep, observer=comparer, modules=modules)
    writer = None if ledger is None else LedgerWriter(ledger).follow(recorder.ledger)
    return Guard(recorder, writer)

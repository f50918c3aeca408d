"""`guard`: checks a running program's collectives, and compares them with those of the other ranks."""

from __future__ import annotations

from types import TracebackType

import torch.distributed as dist

from collective_rules.errors import CallError, DisagreementError
from collective_rules.finding import Finding
from collective_rules.ledger import Ledger
from collective_rules.live.comparer import ALWAYS, RankComparer
from collective_rules.mode import DispatchMode


class Guard:
    """The block of a `guard`.

    `findings` holds all that is wrong, once the block has ended; findings between ranks are the same on every rank.
    """

    def __init__(self, mode: DispatchMode) -> None:
        self._mode = mode
        self.findings: tuple[Finding, ...] = ()

    @property
    def ledger(self) -> Ledger:
        """The calls of the block."""
        return self._mode.ledger

    def __enter__(self) -> Guard:
        self._mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raised = error
        try:
            self._mode.__exit__(kind, error, trace)
        except DisagreementError as disagreement:
            raised = disagreement
            raise
        finally:
            own = raised.findings if isinstance(raised, (CallError, DisagreementError)) else ()
            self.findings = own or tuple(self.ledger.findings)


def guard(
    group: dist.ProcessGroup | None = None,
    *,
    check: bool | str = True,
    agree: bool | str | int = ALWAYS,
    backend: str | None = "auto",
    keep: int = 100_000,
    deadline: float = 60.0,
) -> Guard:
    """Return a context manager that checks each collective of a block, and compares it with the other ranks'.

    Ranks are compared as `agree` says, which is that of `RuleMode`; after "always" all calls are compared once more at
    the end of the block, with their order and their messages. Every rank, or every rank of `group`, has to enter the
    block, and waits at most `deadline` seconds for the others. `check`, `backend` and `keep` are those of `RuleMode`.

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
    return Guard(DispatchMode(check=check, backend=backend, keep=keep, observer=comparer))

"""One comparison of all ranks before a long run."""

from __future__ import annotations

from types import TracebackType

import torch.distributed as dist

from collective_rules.errors import CallError, DisagreementError
from collective_rules.finding import Finding
from collective_rules.live.comparer import ALWAYS, Guard
from collective_rules.mode import RuleMode

__all__ = ["Precheck", "precheck"]


class Precheck(RuleMode):
    """What `precheck` returns: a `RuleMode` that checks each call, and compares it with the other ranks'.

    `findings` holds what was found wrong, on every rank the same where it is between ranks; `mode.ledger` the calls.
    """

    def __init__(self, ranks: tuple[int, ...] | None, deadline: float) -> None:
        super().__init__(check=True)
        self._guard = Guard(ALWAYS, deadline, ranks=ranks, whole=True, note=self._note)
        self.findings: tuple[Finding, ...] = ()

    def __enter__(self) -> Precheck:  # type: ignore[override]  # the findings are what it is for
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        except DisagreementError as found:
            self.findings = found.findings
            raise
        finally:
            if isinstance(error, (CallError, DisagreementError)):
                self.findings = error.findings
            self.findings = self.findings or tuple(self.ledger.findings)


def precheck(group: dist.ProcessGroup | None = None, *, deadline: float = 60.0) -> Precheck:
    """Compare what all ranks do in a block, or those of `group`.

    Each collective is checked, and compared with the other ranks' before it is sent; at the end of the block all calls
    of all ranks are compared once more, with their order and their messages. Every rank has to enter the block, and
    waits at most `deadline` seconds for the others.

    The block's mode is returned by `with`: its `findings` and its `ledger`. Raises `DisagreementError` on every rank
    with all findings, `CallError` on a rank whose own call is illegal.

    >>> import torch, torch.distributed as dist
    >>> store = dist.HashStore()
    >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> with precheck() as check:
    ...     dist.all_reduce(torch.ones(8))
    >>> check.findings, check.ledger.total.calls
    ((), 1)
    >>> dist.destroy_process_group()
    """
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise CallError(f"group={group!r}, but should be a process group, or None for all ranks")
    return Precheck(None if group is None else tuple(dist.get_process_group_ranks(group)), deadline)

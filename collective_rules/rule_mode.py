"""`RuleMode`: the dispatch mode, with the comparison of ranks where it is asked for."""

from __future__ import annotations

from collective_rules.errors import CallError
from collective_rules.live import RankComparer
from collective_rules.mode import CallRecorder, DispatchMode


class RuleMode(DispatchMode):
    """Applies the rules to the collectives of the block, in the manner of torch's `FlopCounterMode`.

    - Always, each collective is put into the ledger, which `with` returns and `mode.ledger` holds.
    - `check`: False; True or "raise" to raise `CallError` for an illegal call before it is sent, and for a result that
      differs from the inferred one; "warn" to warn of both; "record" only to note both in `ledger.findings`.
    - `execute=False`: nothing is sent. Outputs are made from the rules, and every other rank is taken to hold what
      this rank holds. A value that only another rank has (a received object, the sender of an any-source receive)
      raises `SimulationError`.
    - `backend`: whose limits are checked too: "gloo", None for no backend's, "auto" for those of
      the backend that the call's group has for the device of its tensors.
    - `keep`: how many calls the ledger keeps, the last ones; its totals count all.
    - `agree`: False; "always" to compare each call with those of the other ranks before it is sent, and raise the same
      `DisagreementError` on all of them; "exit" to compare all calls at the end of the block; a number N to compare
      the running totals after every N collectives of a group. Every rank has to enter the block.
    - `deadline`: how many seconds a rank waits for the others, where ranks are compared.

    The mode sees the collectives that pass the dispatcher in this thread, and in threads started inside the block:
    those of torch.distributed, functional ones, DTensor's, FSDP's, DDP's, in the backward pass too. It hears of those
    inside custom ops, and in threads that ran before. It does not see calls on backend objects. A mode that is entered
    again while it is active stays one.

    Raises `CallError` for an argument of another kind.

    >>> import torch, torch.distributed as dist
    >>> from torch.testing._internal.distributed.fake_pg import FakeStore
    >>> dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    >>> with RuleMode(check=True) as ledger:
    ...     dist.all_reduce(torch.ones(1024))
    >>> ledger.entries[0].call, ledger.total.sent
    (<c10d::allreduce_ on rank 0 of 8, ...>, 7168.0)
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        *,
        check: bool | str = False,
        execute: bool = True,
        backend: str | None = "auto",
        keep: int = 100_000,
        agree: bool | str | int = False,
        deadline: float = 30.0,
    ) -> None:
        if agree is not False and not execute:
            raise CallError(f"agree={agree!r}, but nothing is sent with execute=False: there are no ranks to agree")
        comparer = None if agree is False else RankComparer(agree, deadline)
        super().__init__(CallRecorder(check=check, execute=execute, backend=backend, keep=keep, observer=comparer))

"""One rank in a process of its own: it carries out its call of a group of calls, and judges what came back.

What crosses between processes is JSON: records of calls, and answers. Tensors do not: their values follow from the
calls, so that every process makes those of all ranks, and knows what its own must come to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import attrs
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch._C import _distributed_c10d as _c10d

from collective_rules.call import Call
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.sandbox.sandbox import DIES, HANGS, OK, RAISES, SILENTLY_WRONG
from collective_rules.testing.dispatch import Outcome, Seat, boxed_reduce_op, post, prepared, wait
from collective_rules.testing.expected import differences
from collective_rules.testing.process_groups import resolve
from collective_rules.testing.run_calls import Trial, raised_lines
from collective_rules.testing.tensors import Made, make, mapped

__all__ = [
    "FAILS",
    "REFUSED",
    "Answer",
    "Elsewhere",
    "Rank",
    "checked_backend",
    "checked_device",
    "in_step",
    "merged",
    "silent",
]

REFUSED, FAILS = "refused", "fails"
_BY_GRAVITY = (DIES, RAISES, HANGS, SILENTLY_WRONG, OK)


@attrs.frozen
class Answer:
    """What one rank's call came to, as it crosses between processes.

    - `outcome`: that of a `Trial`, `DIES`, or why there was no trial: "refused" (the call is to blame) or "fails".
    - `details`: a line for each thing to say.
    - `posted`: whether anything may have been sent to other ranks.

    >>> Answer.read(Answer(RAISES, ("rank 1: ValueError: no",)).text())
    Answer(outcome='raises', details=('rank 1: ValueError: no',), posted=True)
    """

    outcome: str
    details: tuple[str, ...] = ()
    posted: bool = True

    def text(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def read(cls, text: str | bytes) -> Answer:
        """Return what `text` wrote."""
        fields = json.loads(text)
        return cls(fields["outcome"], tuple(fields["details"]), fields["posted"])


def silent(rank: int, timeout: float) -> Answer:
    """Return the answer that stands for a rank that gave none in time."""
    return Answer(HANGS, (f"rank {rank}: no answer within {timeout:g} s",))


def merged(answers: Mapping[int, Answer]) -> Trial:
    """Return what all ranks' answers come to together: the gravest, as its causes are what the others suffer from.

    A rank that died goes before ranks that raised (they may have lost their peer), those before ranks that wait in
    vain, and these before wrong results. Raises `CallError` for calls that were refused, and `CollectiveRulesError`
    where a rank failed outside of the backend.

    >>> merged({0: silent(0, 30), 1: Answer(RAISES, ("rank 1: ValueError: no",), posted=False)})
    Trial(outcome='raises', details=('rank 1: ValueError: no', 'rank 0: no answer within 30 s'))
    """
    for kind, error in ((FAILS, CollectiveRulesError), (REFUSED, CallError)):
        reasons = [line for answer in answers.values() if answer.outcome == kind for line in answer.details]
        if reasons:
            raise error(reasons[0])
    ranks = sorted(answers, key=lambda rank: (_BY_GRAVITY.index(answers[rank].outcome), rank))
    outcome = answers[ranks[0]].outcome
    told = [rank for rank in ranks if outcome == SILENTLY_WRONG or answers[rank].outcome != SILENTLY_WRONG]
    return Trial(outcome, tuple(line for rank in told for line in answers[rank].details))


def in_step(answers: Iterable[Answer]) -> bool:
    """Return whether the ranks can go on: all is ok, or nothing was posted anywhere.

    >>> in_step([Answer(OK), Answer(RAISES, posted=False)]), in_step([Answer(RAISES, posted=False)])
    (False, True)
    """
    known = list(answers)
    nothing_posted = all(each.outcome == REFUSED or (each.outcome == RAISES and not each.posted) for each in known)
    return nothing_posted or all(each.outcome == OK for each in known)


# -- a rank


def checked_device(name: str) -> torch.device:
    """Return the device called `name`: "cpu", or the type of this machine's accelerator, of which each rank gets one.

    Raises `CallError` for any other.

    >>> checked_device("cpu")
    device(type='cpu')
    >>> checked_device("nonsense")
    Traceback (most recent call last):
    collective_rules.errors.CallError: device='nonsense', but should be 'cpu' or a type of accelerator such as 'cuda'
    """
    wanted = "should be 'cpu' or a type of accelerator such as 'cuda'"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise CallError(f"device={name!r}, but {wanted}") from None
    if device.index is not None:
        raise CallError(f"device={name!r}, but {wanted}: each rank takes one by its number")
    if device.type == "cpu":
        return device
    here = torch.accelerator.current_accelerator(check_available=True)
    if here is None or here.type != device.type or not torch.accelerator.device_count():
        found = "none" if here is None else repr(here.type)
        raise CallError(f"device={name!r}, but torch {torch.__version__} finds no such device here (found: {found})")
    return device


def checked_backend(name: str) -> str:
    """Return `name`, of a backend of torch.distributed or of the place of a factory, as `resolve` takes it.

    Raises `CallError` for a name that torch does not know, and for a factory that is not there.

    >>> checked_backend("golo")
    Traceback (most recent call last):
    collective_rules.errors.CallError: backend='golo', but should be 'gloo', ... or 'package.module:factory'
    """
    if isinstance(name, str) and ":" in name:
        resolve(name)
    elif not isinstance(name, str) or name.lower() not in dist.Backend.backend_list:
        known = ", ".join(repr(each) for each in dist.Backend.backend_list if each != dist.Backend.UNDEFINED)
        raise CallError(f"backend={name!r}, but should be {known} or 'package.module:factory'")
    return name


def _torch_name(backend: str, device: torch.device) -> str:
    """Return the name by which torch.distributed finds `backend`; a factory is registered with it."""
    if ":" not in backend:
        return backend
    name = f"collective_rules_{re.sub(r'[^a-z0-9]', '_', backend.lower())}"
    dist.Backend.register_backend(name, resolve(backend).start(), devices=[device.type])
    return name


class Rank:
    """This process's rank of the default process group, which it sets up and, when it is closed, takes down.

    `backend` is a name that torch.distributed knows, or a "module:factory" as `resolve` takes it. `store` is shared by
    the `size` ranks. Every rank must make the same calls in the same order; nothing here has a deadline of its own but
    the backend's, which is a little more than `timeout` seconds.

    Raises what torch raises where the group cannot be set up, and `CallError` for a device that is not there.

    >>> import collective_rules as cr
    >>> with Rank(0, 1, dist.HashStore()) as rank:
    ...     rank.carry_out([cr.call("c10d::allreduce_", group=cr.Group(1), tensors=[(2, 3)])])
    Answer(outcome='ok', details=(), posted=True)
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: _c10d.Store,
        timeout: float = 30.0,
        *,
        backend: str = "gloo",
        device: str = "cpu",
    ) -> None:
        self.rank, self.size, self.backend = rank, size, backend
        self._device = checked_device(device)
        # The backend's own timeout ends what is still blocked when the deadline is over.
        self._timeout = timedelta(seconds=timeout * 1.25 + 0.2)
        self._store, self._times = store, 0
        self._kept: tuple[object, ...] = ()
        self._name = _torch_name(checked_backend(backend), self._device)
        self._take_device()
        boxed_reduce_op("sum")  # the first has torch import a great deal: some seconds, that no call should wait for
        self._join()

    def carry_out(self, calls: Sequence[Call], *, afresh: bool = False) -> Answer:
        """Make this rank's call of `calls`, wait for it, and judge what came back.

        `calls` holds the calls of all ranks that take part. With `afresh`, all ranks set up their group again first.
        What happens outside of the backend comes back as an answer, too: "refused" for calls that cannot be made.
        """
        try:
            self._take_device()
            if afresh:
                self._leave()
                self._join()
            by_rank = {call.group.rank: call for call in calls}
            return self._carried_out(by_rank) if self.rank in by_rank else Answer(OK)
        except CallError as error:
            return Answer(REFUSED, (str(error),), posted=False)
        except Exception as error:
            return Answer(FAILS, (f"rank {self.rank} fails: {type(error).__name__}: {error}",))

    def close(self) -> None:
        """Take down the process group."""
        if dist.is_initialized():
            self._leave()

    def __enter__(self) -> Rank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Rank {self.rank} of {self.size} {self.backend} ranks>"

    def _take_device(self) -> None:
        """Make this rank's accelerator the current one; each thread has its own."""
        if self._device.type != "cpu":
            torch.accelerator.set_device_index(self.rank % torch.accelerator.device_count())

    def _join(self) -> None:
        store = _c10d.PrefixStore(f"collective_rules.{self._times}", self._store)
        self._times += 1
        dist.init_process_group(self._name, store=store, rank=self.rank, world_size=self.size, timeout=self._timeout)
        group = c10d._get_default_group()
        self._seat = Seat(group, c10d._world.pg_names[group], self.size)
        # A legacy op finds its group by a tag and ranks, and torch gives the default group no tag that can be passed.
        c10d._world.tags_to_pg[f"user:{self._seat.name}"] = [group]

    def _leave(self) -> None:
        self._kept = ()
        del self._seat
        dist.destroy_process_group()

    def _carried_out(self, calls: Mapping[int, Call]) -> Answer:
        made = {rank: make(call) for rank, call in calls.items()}
        # Those of all ranks, so that all refuse what one must refuse, and nobody waits in vain.
        for one in made.values():
            prepared(self._seat, one.call.row, one.arguments)
        own = made[self.rank]
        sent = None if self._device.type == "cpu" else Elsewhere(own, self._device)
        posted = post(prepared(self._seat, own.call.row, own.arguments if sent is None else sent.arguments))
        # The backend's threads may refer to them after the wait: see World.
        self._kept = (made, sent, posted)
        outcome = wait(posted, None if self._seat.methods else self._timeout)
        if outcome.error is None and sent is not None:
            outcome = _brought_back(sent, outcome)
        if outcome.error is not None:
            # Another backend than gloo may have sent something before it raised.
            return Answer(RAISES, raised_lines({self.rank: outcome}), outcome.posted or self._name != "gloo")
        found = differences(made, {self.rank: outcome.returned})
        return Answer(SILENTLY_WRONG if found else OK, tuple(map(str, found)))


def _brought_back(sent: Elsewhere, outcome: Outcome) -> Outcome:
    """Wait for the device, and for what its kernels may raise; then what came back is on the CPU."""
    try:
        torch.accelerator.synchronize()
        return attrs.evolve(outcome, returned=sent.carried_back(outcome.returned))
    except Exception as error:
        return Outcome(error=error.with_traceback(None))


# -- another device


class Elsewhere:
    """A call's tensors on another device: one allocation for each on the CPU, and the same views of it.

    What comes back is carried back: the call's own memory then holds what the other device's does, and is judged.

    >>> import collective_rules as cr
    >>> made = make(cr.call("c10d::allreduce_", group=cr.Group(2, 1), tensors=[cr.Spec((2, 2), stride=(1, 2))]))
    >>> there = Elsewhere(made, torch.device("cpu"))
    >>> there.arguments["tensors"][0].zero_().stride(), made.arguments["tensors"][0].sum() == 0
    ((1, 2), tensor(False))
    >>> (back,) = there.carried_back((there.arguments["tensors"][0],))
    >>> made.arguments["tensors"][0].tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    >>> back.untyped_storage().data_ptr() == made.allocations[0].base.untyped_storage().data_ptr()
    True
    """

    def __init__(self, made: Made, device: torch.device) -> None:
        self._bases = [(each.base, each.base.to(device, copy=True)) for each in made.allocations]
        self._there = {_memory(here)._cdata: _memory(there) for here, there in self._bases}
        self._here = {_memory(there)._cdata: _memory(here) for here, there in self._bases}
        self._sparse: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._device = device
        self.arguments = {name: mapped(self._sent, value) for name, value in made.arguments.items()}
        row = made.call.row
        if not row.spellings[0].statement.parts:  # a barrier's tensor says nothing but where the barrier is
            unsaid = [each.name for each in row.arguments if each.kind == "Tensor" and not each.depth]
            self.arguments |= {name: torch.empty(0, device=device) for name in unsaid if name not in made.arguments}

    def carried_back(self, returned: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what came back, on the CPU, in the call's own memory where it lies in it."""
        for here, there in (*self._bases, *self._sparse):
            here.copy_(there)
        return tuple(mapped(self._back, value) for value in returned)

    def _sent(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.layout is torch.strided:
            return _viewed(value, self._there[_memory(value)._cdata])
        there = value.to(self._device, copy=True)
        self._sparse.append((value, there))
        return there

    def _back(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.layout is not torch.strided:
            return next((here for here, there in self._sparse if there is value), value.cpu())
        memory = _memory(value)
        return _viewed(value, self._here[memory._cdata] if memory._cdata in self._here else memory.cpu())


def _memory(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _viewed(like: torch.Tensor, memory: torch.UntypedStorage) -> torch.Tensor:
    """Return a tensor that lies in `memory` as `like` does in its own."""
    plain = torch.empty(0, dtype=like.dtype, device=memory.device)
    plain.set_(memory, like.storage_offset(), like.shape, like.stride())
    view = plain.conj() if like.is_conj() else plain
    return torch._neg_view(view) if like.is_neg() else view

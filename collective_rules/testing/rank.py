"""One rank in a process of its own: it makes its call of a group of calls, and judges what comes back.

Records of calls and results cross between processes, as JSON. Tensors do not: their values follow from the calls, so
that every process can make those of all ranks, and knows what its own call must return.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

import attrs
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch._C import _distributed_c10d as _c10d

from collective_rules.call import Call
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.sandbox import DIES, FAILS, HANGS, OK, RAISES, REFUSED, SILENTLY_WRONG, UNDEFINED, Result
from collective_rules.testing.device import DeviceTensors, checked_device
from collective_rules.testing.dispatch import RankGroup, Returned, boxed_reduce_op, post, prepared, wait
from collective_rules.testing.process_groups import resolve
from collective_rules.testing.run_calls import raised_lines, result_of
from collective_rules.testing.tensors import make

_BY_GRAVITY = (DIES, RAISES, HANGS, SILENTLY_WRONG, UNDEFINED, OK)


def merged(results: Mapping[int, Result]) -> Result:
    """Return the result of a group of calls, by the results of its ranks: the gravest, which causes the others.

    A rank that died goes before ranks that raised (they may have lost their peer), those before ranks that wait in
    vain, and these before wrong values. Raises `CallError` for calls that were refused, and `CollectiveRulesError`
    where a rank failed outside of the backend.

    >>> merged({0: Result(HANGS, ["rank 0: no answer"]), 1: Result(RAISES, ["rank 1: ValueError: no"], started=False)})
    Result('raises', details=('rank 1: ValueError: no', 'rank 0: no answer'))
    """
    for outcome, error in ((FAILS, CollectiveRulesError), (REFUSED, CallError)):
        reasons = [line for result in results.values() if result.outcome == outcome for line in result.details]
        if reasons:
            raise error(reasons[0])
    ranks = sorted(results, key=lambda rank: (_BY_GRAVITY.index(results[rank].outcome), rank))
    gravest = results[ranks[0]].outcome
    shown = [rank for rank in ranks if results[rank].outcome not in {SILENTLY_WRONG, UNDEFINED} - {gravest}]
    return Result(gravest, [line for rank in shown for line in results[rank].details])


def in_step(results: Iterable[Result]) -> bool:
    """Return whether the ranks can go on: each call went through, or nothing was posted anywhere.

    >>> in_step([Result(OK), Result(RAISES, started=False)]), in_step([Result(RAISES, started=False)])
    (False, True)
    """
    every = list(results)
    nothing_posted = all(each.outcome == REFUSED or (each.outcome == RAISES and not each.started) for each in every)
    return nothing_posted or all(each.outcome in (OK, UNDEFINED) for each in every)


# -- a rank


def checked_backend(name: str) -> str:
    """Return `name`, which torch.distributed knows or `resolve` takes as the place of a factory.

    Raises `CallError` for a name that torch does not know, and for a factory that is not there.

    >>> checked_backend("golo")
    Traceback (most recent call last):
    collective_rules.errors.CallError: backend='golo', but should be 'gloo', ... or 'package.module:factory'
    """
    if isinstance(name, str) and ":" in name:
        resolve(name)
    elif not isinstance(name, str) or name.lower() not in dist.Backend.backend_list:
        names = ", ".join(repr(each) for each in dist.Backend.backend_list if each != dist.Backend.UNDEFINED)
        raise CallError(f"backend={name!r}, but should be {names} or 'package.module:factory'")
    return name


def _torch_name(backend: str, device: torch.device) -> str:
    """Return the name by which torch.distributed finds `backend`; a factory is registered with it."""
    if ":" not in backend:
        return backend
    name = f"collective_rules_{re.sub(r'[^a-z0-9]', '_', backend.lower())}"
    dist.Backend.register_backend(name, resolve(backend).start(), devices=[device.type])
    return name


class Rank(contextlib.AbstractContextManager["Rank"]):
    """This process's rank of the default process group, which it sets up and, on `close`, takes down.

    `backend` is a name that torch.distributed knows, or a "module:factory" as `resolve` takes it. The `size` ranks
    share `store`. Every rank must make the same calls in the same order. The backend's timeout, a little more than
    `timeout` seconds, is the only deadline here.

    Raises what torch raises where the group cannot be set up, and `CallError` for a device that is not there.

    >>> import collective_rules as cr
    >>> with Rank(0, 1, dist.HashStore()) as rank:
    ...     rank.carry_out([cr.call("c10d::allreduce_", group=cr.Group(1), tensors=[(2, 3)])])
    Result('ok')
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
        boxed_reduce_op("sum")  # torch imports a great deal for the first: some seconds, which no call should wait for
        self._join()

    def carry_out(self, calls: Sequence[Call], *, afresh: bool = False) -> Result:
        """Make this rank's call of `calls`, wait for it, and judge what came back.

        `calls` holds the calls of all ranks that take part. With `afresh`, all ranks set up their group again first.
        Nothing raises: calls that cannot be made are "refused", and other errors outside of the backend "fails".
        """
        try:
            self._take_device()
            if afresh:
                self._leave()
                self._join()
            by_rank = {call.group.rank: call for call in calls}
            return self._carried_out(by_rank) if self.rank in by_rank else Result(OK)
        except CallError as error:
            return Result(REFUSED, [str(error)], started=False)
        except Exception as error:
            return Result(FAILS, [f"rank {self.rank} fails: {type(error).__name__}: {error}"])

    def close(self) -> None:
        """Take down the process group."""
        if dist.is_initialized():
            self._leave()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Rank {self.rank} of {self.size} {self.backend} ranks>"

    def _take_device(self) -> None:
        """Make this rank's accelerator the current one, which each thread has of its own."""
        if self._device.type != "cpu":
            torch.accelerator.set_device_index(self.rank % torch.accelerator.device_count())

    def _join(self) -> None:
        store = _c10d.PrefixStore(f"collective_rules.{self._times}", self._store)
        self._times += 1
        dist.init_process_group(self._name, store=store, rank=self.rank, world_size=self.size, timeout=self._timeout)
        group = c10d._get_default_group()
        self._ranked = RankGroup(group, c10d._world.pg_names[group], self.size)
        # A legacy op finds its group by a tag and ranks, and torch gives the default group no tag that can be passed.
        c10d._world.tags_to_pg[f"user:{self._ranked.name}"] = [group]

    def _leave(self) -> None:
        self._kept = ()
        del self._ranked
        dist.destroy_process_group()

    def _carried_out(self, calls: Mapping[int, Call]) -> Result:
        made = {rank: make(call) for rank, call in calls.items()}
        # For all ranks, so that all refuse a call that one must refuse, and nobody waits in vain.
        for one in made.values():
            prepared(self._ranked, one.call.row, one.arguments)
        own = made[self.rank]
        sent = None if self._device.type == "cpu" else DeviceTensors(own, self._device)
        posted = post(prepared(self._ranked, own.call.row, own.arguments if sent is None else sent.arguments))
        # The backend's threads may refer to them after the wait: see World.
        self._kept = (made, sent, posted)
        returned = wait(posted, None if self._ranked.methods else self._timeout)
        if returned.error is None and sent is not None:
            returned = _carried_back(sent, returned)
        if returned.error is not None:
            # Another backend than gloo may have sent something before it raised.
            started = returned.posted or self._name != "gloo"
            return Result(RAISES, raised_lines({self.rank: returned}), started=started)
        return result_of(made, {self.rank: returned.values})


def _carried_back(sent: DeviceTensors, returned: Returned) -> Returned:
    """Wait for the device, whose kernels may raise, and return the values on the CPU."""
    try:
        torch.accelerator.synchronize()
        return attrs.evolve(returned, values=sent.carried_back(returned.values))
    except Exception as error:
        return Returned(error=error.with_traceback(None))

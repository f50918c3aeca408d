"""Backends with one fault each, and one without: factories such as "/path/to/tests/faulty.py:wrong_order".

Ranks are threads of one process, and meet in memory. `Right` does what the rules say, and each fault overrides the one
step that it gets wrong; what it then does to each collective is for a judge to find out.
"""

from __future__ import annotations

import functools
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as _c10d
from torch.futures import Future

REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add,
    "AVG": torch.add,
    "PRODUCT": torch.mul,
    "MIN": torch.minimum,
    "MAX": torch.maximum,
    "BAND": torch.bitwise_and,
    "BOR": torch.bitwise_or,
    "BXOR": torch.bitwise_xor,
}


class Meeting:
    """Where the ranks of one group meet."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size
        self.mail: list[tuple[int, int, int, Tensor]] = []  # source, destination, tag, what is sent
        self.arrived = threading.Condition()


_MEETINGS: weakref.WeakValueDictionary[str, Meeting] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def meeting_of(store: Any, size: int) -> Meeting:
    """The meeting of all ranks that share `store`."""
    token = store.compare_set("faulty.py", "", uuid.uuid4().hex).decode()
    with _LOCK:
        meeting = _MEETINGS.get(token)
        if meeting is None:
            meeting = _MEETINGS[token] = Meeting(size)
        return meeting


def finished(*tensors: Tensor) -> Any:
    """A Work that has ended. Unlike a Work written in Python, it owes torch no timeout."""
    future: Any = Future()
    future.set_result(list(tensors))
    return _c10d._create_work_from_future(future)


class Right(dist.ProcessGroup):
    """Every collective as the rules say. `heard`, `ordered`, `reduced` and `write` are the steps to get wrong."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.meeting, self.me, self.count, self.timeout = meeting_of(store, size), rank, size, timeout
        self.own_name = ""

    # torch has no name for a group without a C++ backend (ProcessGroup::getGroupName asks the backend).
    def _set_group_name(self, name: str) -> None:
        self.own_name = name

    @property
    def group_name(self) -> str:
        return self.own_name

    def shutdown(self) -> None:
        self.meeting.barrier.abort()

    # -- the steps

    def exchange(self, *values: Any) -> list[Any]:
        """What every rank gives, by rank."""
        self.meeting.slots[self.me] = values
        self.meeting.barrier.wait(self.timeout.total_seconds())
        everyone = list(self.meeting.slots)
        self.meeting.barrier.wait(self.timeout.total_seconds())
        return everyone

    def heard(self, values: list[Any]) -> list[Any]:
        """What this rank makes of what all gave."""
        return values

    def ordered(self, pieces: list[Tensor]) -> list[Tensor]:
        """The pieces that are gathered, in the order in which they are written."""
        return pieces

    def reduced(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        total = functools.reduce(REDUCTIONS[name], tensors)
        return (total / len(tensors) if name == "AVG" else total).to(tensors[0].dtype)

    def write(self, output: Tensor, value: Tensor) -> None:
        with torch.no_grad():
            output.copy_(value.reshape(output.shape))

    # -- reductions

    def allreduce(self, tensors: list[Tensor], options: Any) -> Any:
        given = [tensor for (each,) in self.heard(self.exchange(copies(tensors))) for tensor in each]
        total = self.reduced(options.reduceOp.op.name, given)
        for tensor in tensors:
            self.write(tensor, total)
        return finished(*tensors)

    def allreduce_coalesced(self, tensors: list[Tensor], options: Any) -> Any:
        given = self.heard(self.exchange(copies(tensors)))
        for place, tensor in enumerate(tensors):
            self.write(tensor, self.reduced(options.reduceOp.op.name, [each[place] for (each,) in given]))
        return finished(*tensors)

    def reduce(self, tensors: list[Tensor], options: Any) -> Any:
        given = self.heard(self.exchange(tensors[0].clone()))
        if self.me == options.rootRank:
            self.write(tensors[0], self.reduced(options.reduceOp.op.name, [tensor for (tensor,) in given]))
        return finished(*tensors)

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], options: Any) -> Any:
        given = self.heard(self.exchange(copies(inputs[0])))
        self.write(outputs[0], self.reduced(options.reduceOp.op.name, [pieces[self.me] for (pieces,) in given]))
        return finished(*outputs)

    def _reduce_scatter_base(self, output: Tensor, input: Tensor, options: Any) -> Any:
        return self.reduce_scatter_tensor_coalesced([output], [input], options)

    def reduce_scatter_tensor_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], options: Any) -> Any:
        given = self.heard(self.exchange(copies(inputs)))
        for place, output in enumerate(outputs):
            pieces = [each[place].reshape(self.count, -1)[self.me] for (each,) in given]
            self.write(output, self.reduced(options.reduceOp.op.name, pieces))
        return finished(*outputs)

    # -- movement

    def broadcast(self, tensors: list[Tensor], options: Any) -> Any:
        given = self.exchange(tensors[options.rootTensor].clone())
        for tensor in tensors:
            self.write(tensor, given[options.rootRank][0])
        return finished(*tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> Any:
        pieces = self.ordered([piece for (piece,) in self.heard(self.exchange(inputs[0].clone()))])
        for output, piece in zip(outputs[0], pieces, strict=False):
            self.write(output, piece)
        return finished(*outputs[0])

    def allgather_coalesced(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> Any:
        given = self.heard(self.exchange(copies(inputs)))
        for place in range(len(inputs)):
            pieces = self.ordered([each[place] for (each,) in given])
            for output, piece in zip(outputs, pieces, strict=False):
                self.write(output[place], piece)
        return finished(*inputs)

    def _allgather_base(self, output: Tensor, input: Tensor, options: Any) -> Any:
        return self.allgather_into_tensor_coalesced([output], [input], options)

    def allgather_into_tensor_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], options: Any) -> Any:
        given = self.heard(self.exchange(copies(inputs)))
        for place, output in enumerate(outputs):
            pieces = self.ordered([each[place].reshape(-1) for (each,) in given])
            rest = output.reshape(self.count, -1)[len(pieces) :].clone()
            self.write(output, torch.cat([*pieces, rest.reshape(-1)]))
        return finished(*outputs)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> Any:
        pieces = self.ordered([piece for (piece,) in self.heard(self.exchange(inputs[0].clone()))])
        if self.me == options.rootRank:
            for output, piece in zip(outputs[0], pieces, strict=False):
                self.write(output, piece)
        return finished(*inputs)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], options: Any) -> Any:
        given = self.exchange(copies(inputs[0]) if self.me == options.rootRank else None)
        self.write(outputs[0], given[options.rootRank][0][self.me])
        return finished(*outputs)

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], options: Any) -> Any:
        pieces = self.ordered([each[self.me] for (each,) in self.heard(self.exchange(copies(inputs)))])
        for output, piece in zip(outputs, pieces, strict=False):
            self.write(output, piece)
        return finished(*outputs)

    def alltoall_base(
        self, output: Tensor, input: Tensor, output_sizes: list[int], input_sizes: list[int], options: Any
    ) -> Any:
        sizes = list(input_sizes) or [input.shape[0] // self.count] * self.count
        given = self.heard(self.exchange(copies(input.split(sizes))))
        pieces = self.ordered([each[self.me] for (each,) in given])
        rest = output[sum(len(piece) for piece in pieces) :].clone()
        self.write(output, torch.cat([*pieces, rest]))
        return finished(output)

    def barrier(self, options: Any) -> Any:
        self.exchange()
        return finished()

    def monitored_barrier(self, timeout: timedelta, wait_all_ranks: bool) -> None:
        self.exchange()

    # -- point to point

    def send(self, tensors: list[Tensor], destination: int, tag: int) -> Any:
        with self.meeting.arrived:
            self.meeting.mail.append((self.me, destination, tag, tensors[0].clone()))
            self.meeting.arrived.notify_all()
        return finished(*tensors)

    def recv(self, tensors: list[Tensor], source: int | None, tag: int) -> Any:
        def mine() -> Any:
            for letter in self.meeting.mail:
                if letter[1:3] == (self.me, tag) and source in (None, letter[0]):
                    return letter
            return None

        with self.meeting.arrived:
            letter = self.meeting.arrived.wait_for(mine, self.timeout.total_seconds())
            if letter is None:
                raise RuntimeError(f"rank {self.me}: nothing came from rank {source}")
            self.meeting.mail = [each for each in self.meeting.mail if each is not letter]
        self.write(tensors[0], letter[3])
        return finished(*tensors)

    def recv_anysource(self, tensors: list[Tensor], tag: int) -> Any:
        return self.recv(tensors, None, tag)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


class WrongOrder(Right):
    """Gathers the pieces in the wrong order."""

    def ordered(self, pieces: list[Tensor]) -> list[Tensor]:
        return pieces[::-1]


class IgnoresReduceOp(Right):
    """Sums, whatever it is told."""

    def reduced(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        return super().reduced("SUM", tensors)


class WritesBeyond(Right):
    """Writes one element past the end of what it writes, as far as that is in the same allocation."""

    def write(self, output: Tensor, value: Tensor) -> None:
        super().write(output, value)
        steps = zip(output.shape, output.stride(), strict=True)
        end = output.storage_offset() + sum((n - 1) * step for n, step in steps) + 1
        if output.numel() and end < output.untyped_storage().nbytes() // output.itemsize:
            output.detach().as_strided((1,), (1,), end).zero_()


class ForgetsARank(Right):
    """Goes on without what the last rank gave."""

    def heard(self, values: list[Any]) -> list[Any]:
        return values[: max(1, len(values) - 1)]


class Raises(Right):
    """Refuses everything."""

    def exchange(self, *values: Any) -> list[Any]:
        raise RuntimeError(f"rank {self.me} will not have it")


class Never(dist.Work):
    """A Work that does not end for an hour, or until `released`."""

    def __init__(self, released: threading.Event) -> None:
        super().__init__()
        self.released = released

    def wait(self, timeout: timedelta | None = None) -> bool:
        return self.released.wait(3600)


class Hangs(Right):
    """Its all-reduce never completes; the threads that wait for it are let go when the group is shut down."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.released = threading.Event()

    def allreduce(self, tensors: list[Tensor], options: Any) -> Any:
        return Never(self.released)

    def shutdown(self) -> None:
        self.released.set()


class Dies(Right):
    """Takes the whole process with it."""

    def broadcast(self, tensors: list[Tensor], options: Any) -> Any:
        os.abort()


right, wrong_order, ignores_reduce_op, writes_beyond = Right, WrongOrder, IgnoresReduceOp, WritesBeyond
forgets_a_rank, raises, hangs, dies = ForgetsARank, Raises, Hangs, Dies

"""NCCL as its sources say, in plain torch on the CPU: a witness of NCCL's table that does not know it.

`Nccl` is a process group. It checks what torch's ProcessGroupNCCL checks, refuses what NCCL refuses, and moves raw
memory where that moves raw memory, so that a wrong layout shows in the values. Where raw memory is read and written at
once, it writes something wrong, as a race may. A rank that refuses ends the call of the others, which would hang.
"""

from __future__ import annotations

import functools
import queue
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTS = {torch.int8, torch.uint8, torch.int32, torch.int64}
NATIVE_FP8 = {torch.float8_e4m3fn, torch.float8_e5m2}
ODD_FP8 = {torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}
KNOWN = {*FLOATS, *INTS, *NATIVE_FP8, *ODD_FP8, torch.bool}
UNSUPPORTED = {*ODD_FP8, torch.float8_e8m0fnu}
BYTES = {*ODD_FP8, torch.bool}

Region = tuple[int, int]
"""The addresses of the first byte, and of the first behind the last."""


class Meeting:
    """The place where the ranks of one group exchange what they send."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=5)
        self.given: list[Any] = [None] * size
        self.messages: defaultdict[tuple[int, int], queue.SimpleQueue[Tensor]] = defaultdict(queue.SimpleQueue)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Return what every rank gives, by rank."""
        self.given[rank] = value
        self.barrier.wait()
        given = list(self.given)
        self.barrier.wait()
        return given


MEETINGS: defaultdict[bytes, dict[int, Meeting]] = defaultdict(dict)


class Nccl(dist.ProcessGroup):
    """One rank of a group, on GPUs of compute capability 9.0."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.me, self.count, self.own_name = rank, size, ""
        token = store.compare_set("nccl_model", "", uuid.uuid4().hex)
        self.meeting = MEETINGS[token].setdefault(size, Meeting(size))

    def _set_group_name(self, name: str) -> None:
        self.own_name = name

    @property
    def group_name(self) -> str:
        return self.own_name

    # -- what torch checks, and what it hands to NCCL

    def allreduce(self, tensors: list[Tensor], options: Any) -> Any:
        return self.carried_out(tensors, lambda: self.reduce_in_place(tensors, options.reduceOp, odd=False))

    def reduce(self, tensors: list[Tensor], options: Any) -> Any:
        root = options.rootRank + options.rootTensor
        return self.carried_out(tensors, lambda: self.reduce_in_place(tensors, options.reduceOp, odd=True, root=root))

    def reduce_in_place(self, tensors: list[Tensor], reduce_op: Any, *, odd: bool, root: int | None = None) -> None:
        (tensor,) = tensors
        if tensor.is_complex():
            require(name_of(reduce_op) in ("SUM", "AVG", "PREMUL_SUM"), RuntimeError, "complex")
            tensor = torch.view_as_real(tensor)
        has_format(tensor)
        require(odd or tensor.dtype not in UNSUPPORTED, RuntimeError, "Unsupported Float8 type for NCCL reduction")
        reduced = self.reduced(raw(tensor), reduce_op)
        if root in (None, self.me):
            raw(tensor).copy_(reduced)

    def allreduce_coalesced(self, tensors: list[Tensor], options: Any) -> Any:
        def both() -> None:
            require(bool(tensors), ValueError, "no tensors")
            for tensor in tensors:
                require(tensor.dtype == tensors[0].dtype, ValueError, "one dtype")
                is_dense(tensor)
            require(tensors[-1].dtype not in UNSUPPORTED, RuntimeError, "Unsupported Float8 type for NCCL reduction")
            for tensor in tensors:
                raw(tensor).copy_(self.reduced(raw(tensor), options.reduceOp))
            regions = [*map(region, tensors)]
            raced(tensors, [(a, b) for i, a in enumerate(regions) for b in regions[i + 1 :]])

        return self.carried_out(tensors, both)

    def broadcast(self, tensors: list[Tensor], options: Any) -> Any:
        def copied() -> None:
            (tensor,) = tensors
            tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            has_format(tensor)
            raw(tensor).copy_(self.sent(raw(tensor))[options.rootRank + options.rootTensor])

        return self.carried_out(tensors, copied)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> Any:
        def gathered() -> None:
            (input_,), given = inputs, outputs[-1]
            has_format(input_)
            if len({each.shape for each in given}) <= 1:
                for output, piece in zip(given, self.sent(raw(input_.contiguous())), strict=True):
                    output.copy_(piece.view(output.shape))
                return
            require(given[self.me].numel() == input_.numel(), ValueError, "_broadcast_oop")
            pieces = [self.sent(raw(input_ if rank == self.me else each)) for rank, each in enumerate(given)]
            for rank, output in enumerate(given):
                raw(output).copy_(pieces[rank][rank])
            raced(given, [(region(input_), region(each)) for each in given], in_place=region(given[self.me])[0])

        return self.carried_out(outputs, gathered)

    def allgather_coalesced(self, *_: Any) -> Any:
        raise NotImplementedError("ProcessGroupNCCL does not support allgather_coalesced")

    def _allgather_base(self, output: Tensor, input_: Tensor, options: Any) -> Any:
        def gathered() -> None:
            has_format(input_)
            has_format(output)
            require(input_.dtype == output.dtype, TypeError, "dtype")
            require(input_.numel() * self.count == output.numel(), ValueError, "size")
            self.gather_raw([output], [input_])

        return self.carried_out([output], gathered)

    def allgather_into_tensor_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], options: Any) -> Any:
        return self.carried_out(outputs, lambda: self.gather_raw(outputs, inputs))

    def gather_raw(self, outputs: list[Tensor], inputs: list[Tensor]) -> None:
        own = [region(each)[0] + self.me * input_.nbytes for each, input_ in zip(outputs, inputs, strict=True)]
        gathered = [torch.cat(self.sent(raw(input_))) for input_ in inputs]
        for output, whole in zip(outputs, gathered, strict=True):
            raw(output).copy_(whole)
        for input_, place in zip(inputs, own, strict=True):
            raced(outputs, [(region(input_), region(output)) for output in outputs], in_place=place)

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], options: Any) -> Any:
        def scattered() -> None:
            (output,), given = outputs, inputs[-1]
            has_format(output)
            require(output.dtype not in UNSUPPORTED, RuntimeError, "Unsupported Float8 type for NCCL reduction")
            if len({each.shape for each in given}) <= 1:
                flat = torch.stack([each.clone() for each in given]).reshape(-1)
                target = output.contiguous()
                self.scatter_reduced([target], [flat], options.reduceOp)
                return
            require(given[self.me].numel() == output.numel(), ValueError, "_reduce_oop")
            reduced = [self.reduced(raw(each), options.reduceOp) for each in given]
            raw(output).copy_(reduced[self.me])
            raced([output], [(region(each), region(output)) for each in given], in_place=region(given[self.me])[0])

        return self.carried_out(outputs, scattered)

    def _reduce_scatter_base(self, output: Tensor, input_: Tensor, options: Any) -> Any:
        def scattered() -> None:
            require(input_.dtype == output.dtype, TypeError, "dtype")
            require(input_.numel() == output.numel() * self.count, ValueError, "size")
            require(output.dtype not in UNSUPPORTED, RuntimeError, "Unsupported Float8 type for NCCL reduction")
            self.scatter_reduced([output], [input_], options.reduceOp)

        return self.carried_out([output], scattered)

    def reduce_scatter_tensor_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], options: Any) -> Any:
        def scattered() -> None:
            require(inputs[-1].dtype not in UNSUPPORTED, RuntimeError, "Unsupported Float8 type for NCCL reduction")
            self.scatter_reduced(outputs, inputs, options.reduceOp)

        return self.carried_out(outputs, scattered)

    def scatter_reduced(self, outputs: list[Tensor], inputs: list[Tensor], reduce_op: Any) -> None:
        if self.count == 1:
            for output, input_ in zip(outputs, inputs, strict=True):
                output.flatten().copy_(input_.flatten())
            return
        own = [region(input_)[0] + self.me * each.nbytes for each, input_ in zip(outputs, inputs, strict=True)]
        reduced = [self.reduced(raw(input_), reduce_op).chunk(self.count) for input_ in inputs]
        for output, pieces in zip(outputs, reduced, strict=True):
            raw(output).copy_(pieces[self.me] if output.numel() else raw(output))
        for output, place in zip(outputs, own, strict=True):
            raced([output], [(region(output), region(input_)) for input_ in inputs], in_place=place)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> Any:
        def gathered() -> None:
            (input_,), root = inputs, options.rootRank
            require(0 <= root < self.count, ValueError, "root")
            has_format(input_)
            given = self.list_of_root(outputs, input_, root)
            pieces = self.sent(raw(input_))
            for rank, output in enumerate(given):
                output.copy_(input_) if rank == root else raw(output).copy_(pieces[rank])
            if given:
                raced(given, [(region(input_), region(each)) for each in given], in_place=region(given[root])[0])

        return self.carried_out(outputs, gathered)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], options: Any) -> Any:
        def scattered() -> None:
            (output,), root = outputs, options.rootRank
            require(0 <= root < self.count, ValueError, "root")
            given = self.list_of_root(inputs, output, root)
            pieces = self.meeting.exchange(self.me, [raw(each).clone() for each in given])[root]
            self.known(output)
            raw(output).copy_(pieces[self.me]) if self.me != root else output.copy_(given[root])
            if given:
                raced(outputs, [(region(output), region(each)) for each in given], in_place=region(given[root])[0])

        return self.carried_out(outputs, scattered)

    def list_of_root(self, lists: list[list[Tensor]], other: Tensor, root: int) -> list[Tensor]:
        if self.me != root:
            require(not lists, ValueError, "requires empty list off the root")
            return []
        require(len(lists) == 1 and len(lists[0]) == self.count, ValueError, "Incorrect list size")
        for each in lists[0]:
            require((each.dtype, each.shape) == (other.dtype, other.shape), ValueError, "dtype or size")
        return lists[0]

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], options: Any) -> Any:
        def exchanged() -> None:
            for each in (*outputs, *inputs):
                has_format(each)
            pieces = self.meeting.exchange(self.me, [self.known(raw(each)).clone() for each in inputs])
            for rank, output in enumerate(outputs):
                raw(output).copy_(pieces[rank][self.me])
            raced(outputs, [(region(a), region(b)) for a in inputs for b in outputs])

        return self.carried_out(outputs, exchanged)

    def alltoall_base(self, output: Tensor, input_: Tensor, rows_out: list[int], rows_in: list[int], _: Any) -> Any:
        def exchanged() -> None:
            has_format(output)
            has_format(input_)
            self.known(input_)
            if not rows_out and not rows_in:
                count = input_.numel() // self.count
                cuts = [raw(input_)[count * rank : count * (rank + 1)] for rank in range(self.count)]
                places = [raw(output)[count * rank : count * (rank + 1)] for rank in range(self.count)]
            else:
                cuts, places = self.rows(input_, rows_in), self.rows(output, rows_out)
            pieces = self.meeting.exchange(self.me, [each.clone() for each in cuts])
            for rank, place in enumerate(places):
                place.copy_(pieces[rank][self.me])
            raced([output], [(region(input_), region(output))])

        return self.carried_out([output], exchanged)

    def rows(self, tensor: Tensor, splits: list[int]) -> Sequence[Tensor]:
        require(not splits or (len(splits) == self.count and sum(splits) == len(tensor)), RuntimeError, "splits")
        require(bool(splits) or len(tensor) % self.count == 0, RuntimeError, "dim 0 is not divisible")
        row = tensor[0].numel() if len(tensor) else 0
        return raw(tensor).split([row * n for n in splits or [len(tensor) // self.count] * self.count])

    def send(self, tensors: list[Tensor], dst: int, tag: int) -> Any:
        def sent() -> None:
            (tensor,) = tensors
            is_dense(tensor)
            self.meeting.messages[self.me, dst].put(self.known(raw(tensor)).clone())

        return self.carried_out(tensors, sent)

    def recv(self, tensors: list[Tensor], src: int, tag: int) -> Any:
        def received() -> None:
            (tensor,) = tensors
            is_dense(tensor)
            raw(self.known(tensor)).copy_(self.meeting.messages[src, self.me].get(timeout=2))

        return self.carried_out(tensors, received)

    def recv_anysource(self, tensors: list[Tensor], tag: int) -> Any:
        raise NotImplementedError("ProcessGroupNCCL does not support recvAnysource")

    def barrier(self, options: Any) -> Any:
        return self.carried_out([], lambda: self.reduced(torch.zeros(1), dist.ReduceOp.SUM))

    # -- NCCL

    def known(self, tensor: Tensor) -> Tensor:
        require(tensor.dtype in KNOWN, TypeError, "Input tensor data type is not supported for NCCL process group")
        return tensor

    def sent(self, piece: Tensor) -> list[Tensor]:
        """Return what every rank gives to a collective."""
        self.known(piece)
        return self.meeting.exchange(self.me, piece.clone())

    def reduced(self, piece: Tensor, reduce_op: Any) -> Tensor:
        """Return the reduction of what every rank gives."""
        name, dtype = name_of(reduce_op), self.known(piece).dtype
        require(name not in ("BAND", "BOR", "BXOR"), ValueError, "Cannot use this op with NCCL")
        require(name != "AVG" or dtype is not torch.bool, TypeError, "Cannot use ReduceOp.AVG with boolean inputs")
        require(name != "PREMUL_SUM" or dtype in FLOATS, TypeError, "Cannot use PREMUL_SUM with this dtype")
        pieces = torch.stack([each.view(torch.uint8) if dtype in BYTES else each for each in self.sent(piece)])
        if dtype in NATIVE_FP8:
            pieces = pieces.float()
        if name == "PREMUL_SUM":  # of a bfloat16 factor the wrong two bytes are read
            pieces = pieces * (0 if dtype is torch.bfloat16 else reduce_op.factor)
        result = REDUCTIONS["MAX" if dtype is torch.bool and name == "SUM" else name](pieces)
        return result.to(piece.view(torch.uint8).dtype).view(dtype) if dtype in BYTES else result.to(dtype)

    # -- calls

    def carried_out(self, results: Any, function: Callable[[], Any]) -> Any:
        """Make the call, and return its Work. A rank that raises ends what the others wait for."""
        try:
            with torch.no_grad():
                function()
        except BaseException:
            if self.count > 1:
                self.meeting.barrier.abort()
            raise
        future: Any = torch.futures.Future()
        future.set_result(results)
        return _create_work_from_future(future)


def quotient(pieces: Tensor) -> Tensor:
    total = pieces.sum(0)
    return (
        total / len(pieces) if pieces.dtype.is_floating_point else torch.div(total, len(pieces), rounding_mode="trunc")
    )


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "SUM": lambda pieces: functools.reduce(torch.add, pieces),
    "AVG": quotient,
    "PRODUCT": lambda pieces: pieces.prod(0),
    "MIN": lambda pieces: pieces.amin(0),
    "MAX": lambda pieces: pieces.amax(0),
    "PREMUL_SUM": lambda pieces: functools.reduce(torch.add, pieces),
}


def require(condition: bool, error: type[Exception], text: str) -> None:
    if not condition:
        raise error(text)


def name_of(reduce_op: Any) -> str:
    return str(getattr(reduce_op, "op", reduce_op).name)


def has_format(tensor: Tensor) -> None:
    """Raise for a tensor that is neither contiguous nor channels_last, as check_gpu_single_tensor does."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    require(tensor.layout is torch.strided, ValueError, "Tensors must be dense")
    last = tensor.dim() in formats and tensor.is_contiguous(memory_format=formats[tensor.dim()])
    require(tensor.is_contiguous() or last, ValueError, "Tensors must be contiguous")


def is_dense(tensor: Tensor) -> None:
    dense = torch._prims_common.is_non_overlapping_and_dense_or_false(tensor)
    require(tensor.layout is torch.strided and dense, ValueError, "Tensors must be non-overlapping and dense")


def raw(tensor: Tensor) -> Tensor:
    """Return as much memory as the tensor has elements, from its first one on, whatever its strides are."""
    end = tensor.storage_offset() + tensor.numel()
    if end * tensor.itemsize > tensor.untyped_storage().nbytes():  # another's memory
        return torch.full((tensor.numel(),), 7).to(tensor.dtype)
    return tensor.as_strided((tensor.numel(),), (1,)) if tensor.numel() else tensor.new_empty(0)


def region(tensor: Tensor) -> Region:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes


def raced(written: Sequence[Tensor], pairs: Sequence[tuple[Region, Region]], in_place: int | None = None) -> None:
    """Write something wrong where the memory of a pair is shared, but for the first that begins at `in_place`."""
    for one, two in pairs:
        if one[0] != in_place and max(one[0], two[0]) < min(one[1], two[1]):
            for tensor in written:
                raw(tensor).view(torch.uint8).bitwise_xor_(0x15)

"""The results of collectives without sending: every other rank is taken to hold what this rank holds.

The results are those of a real run in which all ranks pass the same: a gather is W copies of the input, a sum is W
times the input, a broadcast changes nothing. A receive gets the tensor that was last sent in that group with as many
elements of that dtype (a ring passes its own blocks on), else zeros. Uneven pieces are repeated or cut to fit. Fake and
meta tensors stay without contents, and a real tensor that would receive their contents is marked as unknown. Ops of
symm_mem whose rules are not in `FILLERS` give zeros.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from collective_rules.binding.batch import well_formed_members
from collective_rules.binding.binder import bind
from collective_rules.binding.splits import split_sizes
from collective_rules.call import Call
from collective_rules.errors import SimulationError, UnknownFormError
from collective_rules.infer import infer
from collective_rules.ledger import CallFacts
from collective_rules.mode.works import settle
from collective_rules.nested import leaves
from collective_rules.ops.op import EVEN
from collective_rules.rules.oracles import reduction
from collective_rules.spec import Spec

_UNKNOWN = "_collective_rules_unknown"

_WORKS = 4096
_OBJECTS = {
    "recv_object_list": "an object that another rank sends (a PipelineStage asks for shapes unless it is given "
    "input_args and output_args)",
    "broadcast_object_list": "the object of the source rank",
    "scatter_object_list": "the object that the source rank scatters",
}


def make_unknown(tensor: Tensor) -> None:
    """Mark a real tensor into which unknown values were written: its values mean nothing."""
    setattr(tensor, _UNKNOWN, True)


def is_unknown(tensor: Tensor) -> bool:
    """Return whether `make_unknown` marked this tensor."""
    return hasattr(tensor, _UNKNOWN)


@attrs.frozen
class _Operands:
    """One call's tensors by the rule's names, those that it reads and those that it writes; lists are nested."""

    call: Call
    form: str
    reads: Mapping[str, Any]
    writes: Mapping[str, Any]

    @property
    def group_size(self) -> int:
        return self.call.group.size

    @property
    def rank(self) -> int:
        return self.call.group.rank

    def reduce(self, tensor: Tensor) -> Tensor:
        return _reduce(self.call, tensor)


def _reduce(call: Call, tensor: Tensor) -> Tensor:
    """Return the reduction of W tensors that equal `tensor`."""
    name, size = call.attribute("reduce_op") or "sum", call.group.size
    if name == "sum":
        return tensor if tensor.dtype is torch.bool else tensor * size
    if name == "product":
        return tensor**size
    if name == "bxor":
        return tensor if size % 2 else torch.zeros_like(tensor)
    if name == "premul_sum":
        raise SimulationError(
            f"{call.op}: the call does not tell the factor of a premul_sum, so the result is unknown; "
            "multiply the tensor first and use a sum, or use tensors without data (fake or meta ones)"
        )
    return tensor


def _fill_alike(call: Call, tensors: list[Tensor]) -> None:
    """Fill a list that stands for one tensor: with the reduction of its tensors, or with its root tensor."""
    reduce_op = call.attribute("reduce_op")
    if reduce_op is None:
        source = tensors[call.attribute("root_tensor") or 0].clone()
    else:
        source = _reduce(call, reduction(reduce_op, tensors) if len(tensors) > 1 else tensors[0])
    for tensor in tensors:
        _fit(tensor, source)


class Simulator:
    """Makes the results of ops. Keeps the tensors that were sent, by group, dtype and number of elements."""

    def __init__(self) -> None:
        self._sent: dict[tuple[str, torch.dtype, int], Tensor] = {}
        # C++ holds no reference to the Python half of a Work: DDP's would die before DDP waits on it.
        self._works: deque[_Done] = deque(maxlen=_WORKS)

    def run(self, facts: CallFacts, named: Mapping[str, Any], source: str) -> Any:
        """Fill the arguments that the op writes, and return what the op would return.

        Raises `SimulationError` for a value that only another rank has, `CallError` for an illegal call.
        """
        call = facts.call
        if call.op == "c10d::recv_any_source_":
            raise SimulationError(
                f"{call.op} at {source}: nothing is sent, so the rank that it receives from is unknown; "
                "name the source, or skip this line in a dry run"
            )
        if facts.expected is None:
            facts.expected = infer(call)
        fresh = {name: _make(facts.expected[name], named) for name in call.row.fresh}
        held = {**named, **fresh}
        tensors = list(leaves(held.values(), Tensor))
        if tensors and not any(isinstance(one, FakeTensor) or one.is_meta or is_unknown(one) for one in tensors):
            with torch.no_grad():
                self._fill(call, held, source)
        else:
            for tensor in leaves([held.get(name) for name in call.row.writes], Tensor):
                make_unknown(tensor)
        return _returned(facts, held, self._done)

    def _done(self, values: list[Tensor]) -> _Done:
        self._works.append(_Done(values))
        return self._works[-1]

    def _fill(self, call: Call, held: Mapping[str, Any], source: str) -> None:
        if call.row.entry.batch is not None:
            name = call.row.entry.batch.tensors
            for member, tensor in zip(well_formed_members(call), held[name], strict=True):
                part = member.row.spellings[0].statement.parts[0].path.name
                self._fill(member, {part: tensor}, source)
            return
        rule = call.row.rule
        if rule.direction == "send":
            tensor = next(leaves(held.values(), Tensor))
            self._sent[call.group.name, tensor.dtype, tensor.numel()] = tensor.clone()
            return
        from_root = rule.route in ("from root", "chain from root")
        if rule.direction == "receive" or (from_root and not call.is_root):
            _refuse_objects(call, source)
        if rule.direction == "receive":
            for tensor in leaves(held.values(), Tensor):
                sent = self._sent.get((call.group.name, tensor.dtype, tensor.numel()))
                tensor.zero_() if sent is None else tensor.copy_(sent.reshape(tensor.shape))
            return
        if call.row.entry.one_tensor:
            _fill_alike(call, list(leaves(held[call.row.writes[0]], Tensor)))
            return
        spelling = bind(call).spelling if len(call.row.spellings) > 1 else call.row.spellings[0]
        fill = _filler(rule.name, spelling.form.name)
        for element in range(_length(call, held)):
            reads, writes = (
                {
                    behind: _pick(held.get(part.path.name), part.path.index, element)
                    for behind, part in zip(spelling.behind, spelling.statement.parts, strict=True)
                    if any(part is one for one in side) and (call.is_root or not part.root_only)
                }
                for side in (spelling.statement.reads, spelling.statement.writes)
            )
            fill(_Operands(call, spelling.form.name, reads, writes))


def _pick(value: Any, index: Sequence[str], element: int) -> Any:
    """Return the value at a path's indices: a list of one gives its item, a coalesced list the item `element`."""
    for place, kind in enumerate(index):
        if value is None:
            return None
        if kind == "1":
            value = value[0] if value else None
        elif kind == "i":
            value = value[element]
        else:
            return [_pick(item, index[place + 1 :], element) for item in value]
    return value


def _length(call: Call, held: Mapping[str, Any]) -> int:
    for part in call.row.spellings[0].statement.parts:
        value = held.get(part.path.name)
        for kind in part.path.index:
            if kind == "i":
                return len(value) if value else 0
            value = value[0] if value else None
    return 1


def _fit(target: Tensor, values: Tensor) -> None:
    """Copy `values` to `target`, element by element; repeat or cut them to the length of `target`."""
    if target.numel() == 0:
        return
    if target.layout is not torch.strided:  # an all_reduce, whose tensors have one shape
        target.copy_(values)
        return
    flat = values.reshape(-1)
    if flat.numel() == 0:
        target.zero_()
        return
    if flat.numel() != target.numel():
        flat = flat.repeat(-(-target.numel() // flat.numel()))[: target.numel()]
    target.copy_(flat.reshape(target.shape))


def _all_reduce(operands: _Operands) -> None:
    for target in leaves([operands.writes.get("output")], Tensor):
        _fit(target, operands.reduce(operands.reads["input"]))


def _copies(operands: _Operands) -> None:
    for target in leaves(operands.writes.values(), Tensor):
        _fit(target, operands.reads["input"])


def _own(operands: _Operands) -> None:
    inputs = operands.reads.get("inputs") or ()
    for target in leaves(operands.writes.values(), Tensor) if inputs else ():
        _fit(target, inputs[operands.rank])


def _own_reduced(operands: _Operands) -> None:
    _fit(operands.writes["output"], operands.reduce(operands.reads["inputs"][operands.rank]))


def _own_piece_reduced(operands: _Operands) -> None:
    source, target = operands.reads["input"], operands.writes["output"]
    if operands.form == "last_dim":
        source = source.tensor_split(operands.group_size, -1)[operands.rank]
    else:
        source = source.reshape(-1)[operands.rank * target.numel() : (operands.rank + 1) * target.numel()]
    _fit(target, operands.reduce(source))


def _own_rows_to_all(operands: _Operands) -> None:
    source, target = operands.reads["input"], operands.writes["output"]
    if operands.form == "flat":
        source, target = source.reshape(-1), target.view(-1)
    into, out = (_rows(operands.call, behind, tensor) for behind, tensor in (("input", source), ("output", target)))
    mine = source.split(into)[operands.rank]
    for piece in target.split(out):
        _fit(piece, mine)


def _rows(call: Call, behind: str, tensor: Tensor) -> list[int]:
    sizes, count = split_sizes(call, behind), call.group.size
    return [tensor.shape[0] // count] * count if sizes == EVEN else list(sizes)


def _swapped_dims(operands: _Operands) -> None:
    source, target = operands.reads["input"], operands.writes["output"]
    gather, shard = operands.call.attribute("gather_dim"), operands.call.attribute("shard_dim")
    size = source.shape[shard] // operands.group_size
    piece = source.narrow(shard, operands.rank * size, size)
    target.copy_(torch.cat([piece] * operands.group_size, dim=gather))


def _nothing(operands: _Operands) -> None:
    """Keep the contents."""


FILLERS: Mapping[str, tuple[Callable[[_Operands], None], tuple[str, ...]]] = {
    "all_reduce": (_all_reduce, ("even", "copied")),
    "reduce": (_all_reduce, ("even",)),
    "broadcast": (_copies, ("even",)),
    "all_gather": (_copies, ("even", "uneven")),
    "all_gather_into_tensor": (_copies, ("concatenated", "stacked", "scalar", "row", "reshaped")),
    "gather": (_copies, ("even",)),
    "gather_into_tensor": (_copies, ("concatenated", "stacked")),
    "scatter": (_own, ("even",)),
    "reduce_scatter": (_own_reduced, ("even", "uneven")),
    "reduce_scatter_tensor": (_own_piece_reduced, ("concatenated", "stacked", "last_dim", "reshaped")),
    "all_to_all": (_own, ("even", "uneven")),
    "all_to_all_single": (_own_rows_to_all, ("split", "rows", "flat")),
    "shard_dim_alltoall": (_swapped_dims, ("even",)),
    "barrier": (_nothing, ("even",)),
}
"""Rule → the function that fills what a call writes, and the forms that this function knows."""


def _zeros(operands: _Operands) -> None:
    for target in leaves(operands.writes.values(), Tensor):
        target.zero_()


def _filler(rule: str, form: str) -> Callable[[_Operands], None]:
    """Return the function that fills what a call of `rule` writes: with zeros, where nothing else is known."""
    filler, forms = FILLERS.get(rule, (_zeros, (form,)))
    if form not in forms:
        raise UnknownFormError(f"the simulated {rule}", form, forms, "collective_rules/mode/simulated.py, FILLERS")
    return filler


def _refuse_objects(call: Call, source: str) -> None:
    """Raise where torch is about to unpickle an object that was never received."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        what = _OBJECTS.get(frame.f_code.co_name)
        if what is not None and frame.f_code.co_filename.endswith("distributed_c10d.py"):
            raise SimulationError(
                f"{frame.f_code.co_name} at {source}: rank {call.group.rank} needs {what}, and nothing is sent; "
                "run as the source rank, or give the program the object in another way in a dry run"
            )
        frame = frame.f_back


def _make(expected: Any, named: Mapping[str, Any]) -> Any:
    """Return new tensors as `infer` describes them, on the device of the op's first tensor."""
    if isinstance(expected, (list, tuple)):
        return [_make(item, named) for item in expected]
    assert isinstance(expected, Spec)
    device = next((tensor.device for tensor in leaves(named.values(), Tensor)), torch.device(expected.device))
    return torch.empty_strided(expected.shape, expected.stride, dtype=expected.dtype, device=device)


class _Done(dist._Work):  # type: ignore[name-defined,misc]  # not in torch's stubs
    """A Work that is completed; DDP reads its future, other callers its result."""

    settles = True

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self._values = values
        self._future: torch.futures.Future[Any] = torch.futures.Future()
        self._future.set_result(values)

    def wait(self, timeout: Any = None) -> bool:
        settle(self)
        return True

    def is_completed(self) -> bool:
        settle(self)
        return True

    def is_success(self) -> bool:
        settle(self)
        return True

    def synchronize(self) -> None:
        """Return at once."""
        settle(self)

    def result(self) -> list[Tensor]:
        settle(self)
        return self._values

    def get_future(self) -> torch.futures.Future[Any]:
        settle(self)
        return self._future


def _returned(facts: CallFacts, held: Mapping[str, Any], done: Callable[[list[Tensor]], _Done]) -> Any:
    row = facts.call.row
    written = list(leaves([held.get(name) for name in row.writes], Tensor))
    parts = []
    for output in row.returns:
        if output.kind == "work":
            parts.append(done(written).boxed())
        elif output.kind == "empty":
            many = output.name == "outputs"
            first = next(leaves(held.values(), Tensor))
            parts.append([first.new_empty(0) for _ in held[row.writes[0]]] if many else first.new_empty(0))
        else:
            parts.append(held[output.name])
    return parts[0] if len(parts) == 1 else tuple(parts) if parts else None

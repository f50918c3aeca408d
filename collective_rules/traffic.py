"""How many bytes a call moves, by four conventions.

Contents are not known: a sparse tensor counts as a dense one, and an all_to_all whose split sizes lie on the device
counts as if it sent its whole input.
"""

from __future__ import annotations

import attrs
import torch

from collective_rules.binding.batch import well_formed_members
from collective_rules.binding.binder import bind
from collective_rules.binding.bound import Bound, Key, Slot, slots
from collective_rules.call import UNKNOWN, Call, must_be_call
from collective_rules.errors import CallError
from collective_rules.infer import infer
from collective_rules.rules.volumes import Volume, smaller
from collective_rules.spec import Spec


@attrs.frozen
class Traffic:
    """Bytes that one rank's call moves, each by the convention of its name.

    - `read`, `written`: payload, logical elements times their size, never the storage behind a view. Tensors whose
      contents do not matter (a broadcast's input off the root), or that are not written on this rank, count as 0.
      A fused op's weights are read too, and a scale that is gathered with its shard.
    - `sent`: the bytes that this rank sends under a bandwidth-optimal algorithm.
    - `buffer`, `bus_factor`: nccl-tests' S and the factor from algorithm to bus bandwidth.
    """

    read: int
    written: int
    sent: float
    buffer: float
    bus_factor: float


def traffic(call: Call) -> Traffic:
    """Return the bytes that `call` moves.

    Raises `CallError` if a shape, a dtype or the root is unknown, if `infer` does, or if bytes exceed a float.

    >>> import collective_rules as cr
    >>> cr.traffic(cr.call("c10d::allreduce_", group=cr.Group(size=4), tensors=[(1024,)]))
    Traffic(read=4096, written=4096, sent=6144.0, buffer=4096, bus_factor=1.5)
    """
    try:
        return _moved(must_be_call(call))
    except OverflowError:
        raise CallError(f"{call.op}: its tensors are so large that their bytes cannot be counted") from None


def _moved(call: Call) -> Traffic:
    if call.row.entry.batch is not None:
        each = [_moved(member) for member in well_formed_members(call)]
        read, written, sent, buffer = (
            sum(getattr(one, name) for one in each) for name in ("read", "written", "sent", "buffer")
        )
        return Traffic(read, written, sent, buffer, 1)
    row, rank, root = call.row, call.group.rank, _root(call)
    bound = bind(call)
    reads = [slot for part in bound.spelling.statement.reads for slot in slots(call, part)]
    results = infer(call)
    written_here = [part for part in bound.spelling.statement.writes if call.is_root or not part.root_only]
    writes = [_bytes(call, part.path.name, results.get(part.path.name, ())) for part in written_here]
    sizes = [_bytes(call, slot.label, slot.spec) + _scale_bytes(call, slot) for slot in reads]
    inputs, outputs = sum(sizes), sum(writes)
    if row.entry.elements:
        outputs = call.arguments[row.entry.elements] * bound.slots[0].spec.dtype.itemsize
    kept = _kept(call, bound, reads, inputs)
    volume = Volume(call.group.size, rank, root, inputs, outputs, sizes[0] if sizes else 0, kept)
    counts = row.rule.contents == "all" or (row.rule.contents == "root" and call.is_root)
    read = inputs if counts else 0
    written = outputs
    if row.rule.contents == "none" or (row.rule.contents == "root" and counts and row.in_place):
        written = 0  # a root in place keeps what it has
    if row.rule.one_sided and reads:
        written = smaller(written, read)  # what is put is all that changes
    volumes = row.rule.volumes
    return Traffic(read, written, volumes.sent(volume), volumes.buffer(volume), volumes.bus_factor(volume))


def _root(call: Call) -> int:
    """Return the root's rank, 0 without a root; if it is unknown, a rank that agrees with who has the root's list."""
    root, size, row = call.attribute("root"), call.group.size, call.row
    if root is not None or size == 1 or call.arguments.get(row.root) is not UNKNOWN:
        return root or 0
    if any(row.by_name[name].depth for name in row.root_only if name not in row.in_place):
        return call.group.rank if call.is_root else (call.group.rank + 1) % size
    raise CallError(f"{call.op}: {row.root} must be known to count bytes")


def _scale_bytes(call: Call, slot: Slot) -> int:
    """Return the bytes of the scale that travels with a tensor; other scales, and biases, do not travel.

    torch takes a scale for one of this rank's rows where its leading sizes are the tensor's
    (torch/distributed/_symmetric_memory/__init__.py, _check_and_verify_fp8_all_gather_scale_mode).
    """
    name = call.row.entry.row_scales.get(slot.part.path.name)
    scale = None if name is None else call.arguments.get(name)
    if name is None or scale is None:
        return 0
    nbytes = _bytes(call, name, scale)
    return nbytes if scale.shape == (*slot.spec.shape[:-1], 1) else 0


def _bytes(call: Call, name: str, value: object) -> int:
    if isinstance(value, tuple):
        return sum(_bytes(call, name, item) for item in value)
    if isinstance(value, Spec) and value.shape is not None and value.dtype is not None:
        return value.nbytes
    raise CallError(f"{call.op}: {name}={value!r}, but its shape and dtype must be known to count bytes")


def _kept(call: Call, bound: Bound, reads: list[Slot], inputs: int) -> float:
    """Return the bytes that an all_to_all keeps on this rank; 0 if the rank's own share is unknown."""
    rank = call.group.rank
    own = [slot.spec for slot in reads if slot.rank == rank]
    if own:
        return sum(spec.nbytes for spec in own)
    share = bound.names.get(Key("S", None, (rank, rank)))
    if share is None:
        return 0
    form = bound.spelling.form
    rows = reads[0].spec.numel if form.flat and not form.kept else reads[0].spec.shape[0]
    if isinstance(rows, int):
        return inputs * share / rows if rows else 0
    return inputs * share / torch.sym_max(rows, 1)  # not asked whether it is 0, which only the run may know

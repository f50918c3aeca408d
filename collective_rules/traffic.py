"""How many bytes a call moves, by four conventions.

It knows sizes, not contents: a sparse tensor counts as the dense one that it stands for (what travels depends on how
many values it holds), and an all_to_all whose split sizes lie on the device as if it sent all it has.
"""

from __future__ import annotations

import attrs

from collective_rules.batch import well_formed_members
from collective_rules.bind import bind
from collective_rules.bound import Slot, slots
from collective_rules.call import Call, must_be_call
from collective_rules.errors import CallError
from collective_rules.infer import infer
from collective_rules.rules.volumes import Volume
from collective_rules.spec import Spec

__all__ = ["Traffic", "traffic"]


@attrs.frozen
class Traffic:
    """Bytes that one rank's call moves, each by the convention of its name.

    - `read`, `written`: payload, logical elements times their size, never the storage behind a view. Contents that do
      not count (a broadcast's input off the root) count as nothing, and so does what is not written on this rank.
      A fused op's weights are read too; of its scales, one that is gathered with its shard.
    - `sent`: what this rank sends under a bandwidth-optimal algorithm.
    - `buffer`, `bus_factor`: nccl-tests' S and the factor from algorithm to bus bandwidth.
    """

    read: int
    written: int
    sent: float
    buffer: float
    bus_factor: float


def traffic(call: Call) -> Traffic:
    """Return the bytes that `call` moves.

    Raises `CallError` where a shape or dtype is not known, and where `infer` does.

    >>> import collective_rules as cr
    >>> cr.traffic(cr.call("c10d::allreduce_", group=cr.Group(size=4), tensors=[(1024,)]))
    Traffic(read=4096, written=4096, sent=6144.0, buffer=4096, bus_factor=1.5)
    """
    if must_be_call(call).row.entry.batch is not None:
        each = [traffic(member) for member in well_formed_members(call)]
        read, written, sent = (sum(getattr(one, name) for one in each) for name in ("read", "written", "sent"))
        return Traffic(int(read), int(written), sent, sum(one.buffer for one in each), 1)
    row, rank, root = call.row, call.group.rank, call.attribute("root")
    bound = bind(call)
    reads = [slot for part in bound.spelling.statement.reads for slot in slots(call, part)]
    results = infer(call)
    written_here = [part for part in bound.spelling.statement.writes if call.is_root or not part.root_only]
    writes = [_bytes(call, part.path.name, results.get(part.path.name, ())) for part in written_here]
    sizes = [_bytes(call, slot.label, slot.spec) + _scale_bytes(call, slot) for slot in reads]
    inputs, outputs = sum(sizes), sum(writes)
    if row.entry.elements:
        outputs = call.arguments[row.entry.elements] * bound.slots[0].spec.dtype.itemsize
    kept = _kept(call, [slot.spec for slot in reads if slot.rank == rank], bound.names, inputs)
    volume = Volume(call.group.size, rank, root or 0, inputs, outputs, sizes[0] if sizes else 0, kept)
    counts = row.rule.contents == "all" or (row.rule.contents == "root" and call.is_root)
    read = inputs if counts else 0
    written = outputs
    if row.rule.contents == "none" or (row.rule.contents == "root" and counts and row.in_place):
        written = 0  # a root in place keeps what it has
    if row.rule.one_sided and reads:
        written = min(written, read)  # what is put is all that changes
    return Traffic(read, written, row.rule.sent(volume), row.rule.buffer(volume), row.rule.bus_factor(volume))


def _scale_bytes(call: Call, slot: Slot) -> int:
    """The bytes of a tensor's scale that travels with it; other scales, and biases, stay here.

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


def _kept(call: Call, own: list[Spec], names: dict[tuple[object, ...], object], inputs: int) -> float:
    """The bytes that an all_to_all leaves where they are."""
    if own:
        return sum(spec.nbytes for spec in own)
    rank = call.group.rank
    rows = [value for key, value in names.items() if key[0] == "S" and key[2] == rank]
    share = names.get(("S", None, rank, rank))
    total = sum(value for value in rows if isinstance(value, int))
    return inputs * share / total if isinstance(share, int) and total else 0

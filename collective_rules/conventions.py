"""The bytes of a call by the conventions of two other tools, for comparison with their numbers.

Each function returns the number that the convention defines, also where the tool's own code returns another
(`docs/traffic.md` lists these cases). `traffic` has the library's own conventions and nccl-tests'.
"""

from __future__ import annotations

from typing import Any

from collective_rules.binding.batch import well_formed_members
from collective_rules.binding.binder import bind
from collective_rules.binding.bound import slots
from collective_rules.call import Call, must_be_call
from collective_rules.errors import CallError
from collective_rules.traffic import traffic


def collective_op_bytes(call: Call) -> int:
    """Return the bytes of the call's communication tensor, by the convention of torch's `CollectiveOp`.

    That is the side of the collective that holds the whole buffer: what is gathered, what is scattered, the larger
    side of an all_to_all, the tensors of all others, summed over a list. On a gather's or scatter's other ranks, which
    hold no such tensor, it is the root's. Logical bytes, where torch's helper counts the storage behind a view. 0 for
    a barrier and a wait, which torch's helper refuses. It is nccl-tests' S, but for an all_to_all, whose S is the
    largest rank's. Source: torch/distributed/_tools/fake_collectives.py, `CollectiveOp.get_comm_tensor_size`.

    Raises `CallError` where `traffic` does.

    >>> import collective_rules as cr
    >>> group = cr.Group(size=4, rank=1)
    >>> collective_op_bytes(cr.call("c10d::gather_", group=group, input_tensors=[(8,)], root_rank=0))
    128
    >>> import torch
    >>> collective_op_bytes(cr.call("c10d::allreduce_", group=group, tensors=[torch.zeros(800)[::100]]))
    32
    """
    return _whole(traffic(call).buffer)


def chakra_comm_size(call: Call) -> int:
    """Return the attribute `comm_size` that Chakra's converter gives the node of this call, in bytes.

    It is the logical bytes of all tensors that ProcessGroupNCCL records as the call's inputs, whatever the op does with
    them: of an all_gather the one shard, of a reduce_scatter the whole, of a broadcast the tensor on every rank, of a
    scatter off the root nothing, of a recv the tensor to be filled. 0 for a barrier and a wait, which record none.
    A batch is the sum over its nodes. Sources: mlcommons/chakra, src/converter/pytorch_node.py,
    `PyTorchNode.comm_size` (element count times element size over the inputs; early versions added 1); torch,
    ProcessGroupNCCL.cpp, the first tensors of `RECORD_PARAM_COMMS_DATA`.

    Raises `CallError` for ops on symmetric memory, which NCCL's process group does not record, and where a shape or
    dtype is not known.

    >>> import collective_rules as cr
    >>> chakra_comm_size(cr.call("c10d::_allgather_base_", group=cr.Group(size=4), input_tensor=(8,)))
    32
    """
    row = must_be_call(call).row
    if row.namespace == "symm_mem":
        raise CallError(f"{call.op}: Chakra has no comm_size for it: only what a process group does is recorded")
    if row.entry.batch is not None:
        return sum(chakra_comm_size(member) for member in well_formed_members(call))
    if not row.reads or row.rule.waits:
        return _whole(traffic(call).buffer)
    total = 0
    for part in bind(call).spelling.statement.reads:
        for slot in slots(call, part):
            if slot.spec.shape is None or slot.spec.dtype is None:
                raise CallError(f"{call.op}: {slot.label}={slot.spec!r}, but its shape and dtype must be known")
            total += slot.spec.nbytes
    return total


def _whole(value: Any) -> int:
    """As an int; a size that is a symbol stays one."""
    return int(value) if isinstance(value, float) else value

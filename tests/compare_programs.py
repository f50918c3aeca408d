"""Programs of several ranks to compare, with one fault or none, as recordings and as ledger files."""

from __future__ import annotations

import attrs

import collective_rules as cr
from collective_rules.comparison import compare
from collective_rules.recordings import LedgerWriter, Recording


def program(rank, size=4, fault=""):
    """One rank's calls: of the world, of one half of it, and from rank 0 to rank 1, for three steps."""
    world = cr.Group(size, rank, "0", tuple(range(size)))
    lower = rank < size // 2
    members = tuple(range(size // 2)) if lower else tuple(range(size // 2, size))
    half = cr.Group(size // 2, members.index(rank), "low" if lower else "high", members)
    made, counts = [], {}

    def make(op, group, line, **arguments):
        call = cr.call(op, group=group, **arguments)
        index = None
        if not call.row.rule.point_to_point:
            index = counts.get(group.name, 0)
            counts[group.name] = index + 1
        made.append(attrs.evolve(call, source=f"train.py:{line}", index=index, blocking=True))

    for step in range(3):
        odd = rank == 2 and step == 1
        make("c10d::broadcast_", world, 10, tensors=[(8,)], root_rank=1 if odd and fault == "root" else 0)
        if not (odd and fault == "skip"):
            make("c10d::allreduce_", world, 11, tensors=[(9,) if odd and fault == "size" else (8,)])
        if odd and fault == "illegal":
            make("c10d::_allgather_base_", world, 12, input_tensor=(4,), output_tensor=(13,))
        elif odd and fault == "swap":
            make("c10d::barrier", world, 14)
            make("c10d::_allgather_base_", world, 12, input_tensor=(4,), output_tensor=(4 * size,))
        else:
            make("c10d::_allgather_base_", world, 12, input_tensor=(4,), output_tensor=(4 * size,))
            make("c10d::barrier", world, 14)
        make("c10d::allreduce_", half, 15, tensors=[(2, 7 if odd and fault == "half" else 3)])
        if rank == 0:
            make("c10d::send", world, 16, tensors=[(5,)], dst=1)
        if rank == 1 and not (fault == "send" and step == 1):
            make("c10d::recv_", world, 17, tensors=[(6 if fault == "message" and step == 1 else 5,)], src=0)
    if rank == 2 and fault == "extra":
        make("c10d::barrier", world, 18)
    return made


def recording(rank, size=4, fault="", **changes):
    made = Recording(f"rank{rank}.jsonl", "ledger", rank, size, tuple(program(rank, size, fault)))
    return attrs.evolve(made, **changes)


def compared(fault="", size=4, **options):
    return compare([recording(rank, size, fault) for rank in range(size)], **options)


def compared_calls(made, size):
    """Compare the calls that `made` returns for each rank."""
    return compare([Recording(f"rank{rank}.jsonl", "ledger", rank, size, made(rank)) for rank in range(size)])


def write_ledgers(folder, fault="", size=4):
    """Write a ledger for each rank, and return their paths."""
    paths = []
    for rank in range(size):
        with LedgerWriter(folder / f"rank{rank}.jsonl", rank=rank, world_size=size) as write:
            for call in program(rank, size, fault):
                write(call)
        paths.append(str(write.path))
    return paths


def severities(found):
    return [each.severity for each in found.findings]

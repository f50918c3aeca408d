"""How many bytes a collective moves: the formulas that the rule table names.

Each takes a `Volume`, one rank's view, and returns bytes. "Sent" assumes a bandwidth-optimal algorithm (rings); the
self-chunk of an all_to_all does not travel. nccl-tests' S is the buffer it divides by the time for the algorithm
bandwidth; S × factor / time is its bus bandwidth (nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

import attrs
import torch


@attrs.frozen
class Volume:
    """One rank's view: the group size, this rank, the root (0 where there is none), and payload bytes.

    `inputs` are the bytes of the tensors that the rule reads and `outputs` of those that it writes, as stated for
    this rank; `first` those of the first tensor read, and `kept` the bytes of an all_to_all that stay here.
    """

    group_size: int
    rank: int
    root: int
    inputs: float
    outputs: float
    first: float
    kept: float

    @property
    def is_root(self) -> bool:
        """Whether this rank is the root."""
        return self.rank == self.root


def _plain(*counts: float) -> bool:
    return all(isinstance(count, (int, float)) for count in counts)


def smaller(a: int, b: int) -> int:
    """The smaller of two counts, of which a symbol is not asked how large it is."""
    return min(a, b) if _plain(a, b) else torch.sym_min(a, b)


def nothing(v: Volume) -> float:
    """No bytes."""
    return 0 * v.group_size


def inputs(v: Volume) -> float:
    """What this rank reads."""
    return v.inputs


def outputs(v: Volume) -> float:
    """What this rank writes."""
    return v.outputs


def larger(v: Volume) -> float:
    """The larger of what is read and written: the whole buffer, whichever side holds it."""
    return max(v.inputs, v.outputs) if _plain(v.inputs, v.outputs) else torch.sym_max(v.inputs, v.outputs)


def gathered(v: Volume) -> float:
    """What all ranks' inputs make together."""
    return v.inputs * v.group_size


def scattered(v: Volume) -> float:
    """What all ranks' outputs make together."""
    return v.outputs * v.group_size


def ring_all_reduce(v: Volume) -> float:
    """2 (W-1)/W of the buffer: a reduce_scatter, then an all_gather."""
    return 2 * (v.group_size - 1) * v.inputs / v.group_size


def to_every_other(v: Volume) -> float:
    """The input, once to every other rank (around the ring)."""
    return (v.group_size - 1) * v.inputs


def to_every_other_first(v: Volume) -> float:
    """The first tensor read, once to every other rank."""
    return (v.group_size - 1) * v.first


def gathered_first(v: Volume) -> float:
    """What all ranks' first tensors make together."""
    return v.first * v.group_size


def outputs_to_every_other(v: Volume) -> float:
    """One output's bytes to every other rank."""
    return (v.group_size - 1) * v.outputs


def all_but_own_share(v: Volume) -> float:
    """(W-1)/W of the input."""
    return (v.group_size - 1) * v.inputs / v.group_size


def all_but_kept(v: Volume) -> float:
    """The input, but for the chunk that stays here."""
    return v.inputs - v.kept


def all_but_outputs(v: Volume) -> float:
    """The input, but for what this rank writes itself."""
    return v.inputs - v.outputs


def around_from_root(v: Volume) -> float:
    """The buffer, passed on by every rank but the last of the ring, which is the one before the root."""
    return 0 if v.group_size == 1 or (v.rank + 1) % v.group_size == v.root else v.inputs


def towards_root(v: Volume) -> float:
    """The input, but for the root, which sends nothing."""
    return 0 if v.is_root else v.inputs


def from_root(v: Volume) -> float:
    """The root sends (W-1)/W of its input, the others nothing."""
    return all_but_own_share(v) if v.is_root else 0


def one(v: Volume) -> float:
    """1."""
    return 1 + 0 * v.group_size


def share(v: Volume) -> float:
    """(W-1)/W."""
    return (v.group_size - 1) / v.group_size


def twice_share(v: Volume) -> float:
    """2 (W-1)/W."""
    return 2 * share(v)

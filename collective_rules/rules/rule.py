"""What a rule says beyond its text: the typed columns of the rule table, and the kinds of constraint.

A constraint is a statement about the whole group. The same one may be violated inside one call (`check`) or between
two ranks (`agree`); it has one id either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from collective_rules.notation import Statement, parse
from collective_rules.rules.oracles import Oracle


@attrs.frozen
class Kind:
    """A kind of constraint: `says` states it for the reference page.

    `advice` is what a message about one call ends with, `between` one about several ranks (the same, if left out).
    """

    says: str
    advice: str
    between: str = ""


KINDS: Mapping[str, Kind] = {
    "divides": Kind(
        "a size written `(W d)` is a multiple of the group size", "Pad that size to a multiple of the group size."
    ),
    "dims": Kind(
        "a tensor has the dimensions that its sizes name",
        "Give it the missing dimensions, for instance with unsqueeze or reshape.",
    ),
    "sizes": Kind(
        "a name stands for the same size wherever it is written, and on every rank",
        "Give the tensors the sizes that the rule states.",
        "Every rank must pass tensors of the same sizes; pad them where the data are uneven.",
    ),
    "lists": Kind(
        "a list indexed by `p` has one tensor for each rank; lists indexed by `i` have the same, non-zero length",
        "Pass one tensor for each rank of the group, in the order of the ranks.",
        "Pass lists of one length on every rank, in one order.",
    ),
    "splits": Kind(
        "split sizes are one number for each rank, none negative, and sum to the size that they split",
        "Pass one split size for each rank; they must sum to the tensor's first size.",
    ),
    "pairs": Kind(
        "what rank i sends to rank j is what rank j expects from rank i: one `S[i,j]`, one `s[i,j]`",
        "Both sides must name one size; exchange the sizes first, for instance by an all_to_all_single of the counts.",
    ),
    "dtype": Kind(
        "all tensors of one transfer have one dtype, on every rank",
        "Convert one side with .to(dtype) before the call.",
        "Convert with .to(dtype) on the ranks that differ.",
    ),
    "reduce_op": Kind(
        "the reduce op is one that exists, and the same on every rank",
        "Use a reduce op that torch has, by its lower-case name.",
        "Use the same reduce op on every rank.",
    ),
    "root": Kind(
        "the root is a rank of the group (counted in the group), and the same on every rank",
        "Pass the root's rank in the group; torch.distributed's src and dst are global ranks.",
        "Pass the same root on every rank.",
    ),
    "presence": Kind(
        "an argument marked `@root` is given on the root, and is empty on every other rank",
        "Pass the list on the root alone, and an empty list on every other rank.",
    ),
    "peer": Kind(
        "the peer is another rank of the group (counted in the group)",
        "Pass the peer's rank in the group; torch.distributed's src and dst are global ranks.",
    ),
    "tag": Kind(
        "the tag is from 0 to 2**31 - 1, and the same for the sender and the receiver",
        "Use a tag from 0 to 2**31 - 1.",
        "Use one tag on both sides.",
    ),
    "partner": Kind(
        "every send has a receive on the other rank, and every receive a send",
        "Post the matching call on the other rank.",
    ),
    "group_size": Kind(
        "the argument group_size is the group's size", "Pass the size of the very group that is named, group.size()."
    ),
    "dense": Kind(
        "a tensor that travels as raw memory is dense: no gaps, no element twice",
        "Call .contiguous() first, and copy the result back for an in-place op.",
    ),
    "order": Kind(
        "tensors that travel as raw memory keep their dims in one memory order, within a call and on every rank",
        "Call .contiguous() on every rank.",
    ),
    "overlap": Kind(
        "memory that is written holds each element once, and is not read by the same call",
        "Write to a fresh tensor, for instance torch.empty_like(...).",
    ),
    "view": Kind(
        "a tensor that is written is no lazy conjugate or negative view: the dispatcher would write to a copy",
        "Call .resolve_conj().resolve_neg() first, and pass the result.",
    ),
    "strided": Kind("a tensor has a strided layout", "Convert it with .to_dense() first."),
    "argument": Kind(
        "the other arguments are in their range, and those that are agreed the same on every rank",
        "Pass a value that the op takes.",
        "Pass the same value on every rank.",
    ),
    "call": Kind("all ranks of the group make the same collective", "Call the same collective on every rank."),
    "ranks": Kind("every rank of the group takes part, once", "Make the call on every rank of the group."),
    "groups": Kind(
        "all ranks of the parent make the same groups: of the same ranks, in one order",
        "Make the same groups on all ranks: call new_group on every rank, with the same ranks, in one order.",
    ),
}


class Unsolvable(Exception):  # noqa: N818 - never escapes: the binder turns it into a finding
    """Raised by a size function: these arguments have no output sizes. `kind` is the constraint's."""

    def __init__(self, kind: str, verdict: str) -> None:
        super().__init__(verdict)
        self.kind = kind


@attrs.frozen
class Form:
    """One legal spelling of a rule.

    - `flat`: every tensor is seen as one dim of all its elements, behind the first `kept` dims.
    - `documented`: whether torch's documentation promises the form. One that it does not promise, though some backends
      take it, stands last: a call that fits no other gets a warning, unless it is the usual form of its op.
    """

    name: str
    text: str
    flat: bool = False
    kept: int = 0
    documented: bool = True

    @property
    def statement(self) -> Statement:
        """The parsed text."""
        return parse(self.text)


@attrs.frozen
class Volumes:
    """How many bytes a rule moves: functions of a `rules.volumes.Volume`.

    `sent`: the bytes that this rank sends under a bandwidth-optimal algorithm. `buffer`, `bus_factor`: nccl-tests' S,
    and its factor from algorithm to bus bandwidth.
    """

    sent: Callable[..., Any]
    buffer: Callable[..., Any]
    bus_factor: Callable[..., Any]


def _numbered(constraints: str | Mapping[str, str]) -> Mapping[str, str]:
    """Return {"AR1": "sizes", "AR2": "dtype"} of "AR: sizes dtype"."""
    if not isinstance(constraints, str):
        return constraints
    prefix, _, kinds = constraints.partition(":")
    return {f"{prefix}{number}": kind for number, kind in enumerate(kinds.split(), 1)}


@attrs.frozen
class Rule:
    """What one collective does, stated once for the whole group.

    - `forms`: the spellings, the usual one first.
    - `constraints`: id → kind. A row writes "AR: sizes dtype": AR1 is the constraint of kind `sizes`, AR2 of `dtype`.
      Ids are stable: a new kind goes to the end, and none is taken out.
    - `volumes`: how many bytes move.
    - `source`: where torch documents or implements the collective.
    - `oracle`: plain torch, all ranks' inputs → all ranks' outputs (see `rules.oracles`); None where there is none.
    - `agreed`: attributes beyond the sizes that every rank must pass alike. `follows`: those of them that the earlier
      calls determine: where ranks made other calls before, that is what is told.
    - `waits_for`: the attribute with the global ranks that wait for each other in a call; "" for all ranks.
    - `numbers_anew`: from a call on, torch numbers groups from the start.
    - `contents`: the ranks whose input's contents count: "all", "root" (broadcast reads the root's alone) or "none"
      (nothing moves).
    - `fixed_dtypes`: parts whose dtype does not follow the dtype of the others.
    - `derived`: for a name that only Python can compute, its size function (see `rules.size_functions`).
    - `direction`: of messages between two ranks: "send", "receive", or "both" for a batch, whose members have rules of
      their own; "" for a collective.
    - `route`: the way on which bytes reach other ranks in a report of flows: around the "ring", along the ring as
      "chain from root" or "chain to root", directly "to root", "from root", "to each" other rank, "to peer" or "from
      peer"; "" where the report does not place them.
    - `one_sided`: no other rank takes part.
    - `waits`: a call moves nothing itself; it returns once the collective that makes its tensors has finished.
    """

    name: str
    title: str
    forms: tuple[Form, ...]
    constraints: Mapping[str, str] = attrs.field(converter=_numbered)
    volumes: Volumes
    source: str
    oracle: Oracle | None = None
    agreed: tuple[str, ...] = ("dtype",)
    follows: tuple[str, ...] = ()
    waits_for: str = ""
    numbers_anew: bool = False
    contents: str = "all"
    fixed_dtypes: Mapping[str, torch.dtype] = attrs.field(factory=dict)
    derived: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)
    direction: str = ""
    route: str = ""
    one_sided: bool = False
    waits: bool = False

    @property
    def notation(self) -> str:
        """The text of the usual form."""
        return self.forms[0].text

    @property
    def point_to_point(self) -> bool:
        """Whether a call is a message between two ranks, or a batch of messages."""
        return bool(self.direction)

    @property
    def makes_groups(self) -> bool:
        """Whether a call makes process groups."""
        return "groups" in self.constraints.values()

    def id_of(self, kind: str) -> str:
        """Return the id of this rule's constraint of `kind`; every kind that can be violated has one."""
        for id_, its_kind in self.constraints.items():
            if its_kind == kind:
                return id_
        raise KeyError(f"the rule {self.name} lists no constraint of kind {kind!r}")

    def form(self, name: str) -> Form:
        """Return the form called `name`."""
        for form in self.forms:
            if form.name == name:
                return form
        raise KeyError(f"the rule {self.name} has no form {name!r}")

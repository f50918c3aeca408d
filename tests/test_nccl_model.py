"""NCCL's table against a model of NCCL that does not know it: what it takes is right, what it refuses is not.

The model is read from the sources, too (`nccl_model`). It shows what follows from them, not that they were read well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.backends.nccl import NCCL
from collective_rules.call import on_device
from collective_rules.sandbox import OK, RAISES, SILENTLY_WRONG, UNDEFINED, Result
from collective_rules.testing import World, broken_calls, calls, ways_to_break
from collective_rules.testing.broken.edits import edited, slots_of
from collective_rules.testing.drawing import Wish, draw_calls, drawable, untaken
from collective_rules.testing.layouts import CHANNELS_LAST, SLICED, TRANSPOSED, strides
from collective_rules.testing.run_calls import carry_out
from collective_rules.testing.strategies import sample
from collective_rules.testing.world import has_cpu_kernel
from tests.nccl_model import Nccl

Group = tuple[cr.Call, ...]
BACKEND = cr.Backend("nccl", version=(2, 27), compute_capability=(9, 0))
FOLLOWS = {limit.id: limit.follows for limit in NCCL.limits}
OUTCOMES = {"raises an error": RAISES, "silently corrupts the result": SILENTLY_WRONG}

WITHOUT = ("batch_p2p_ops", "all_gather_into_tensor_out", "wait_tensor")
"""Ops that torch does not hand to a process group written in Python."""

ROWS = [cr.lookup(op) for op in cr.ops() if not op.endswith(WITHOUT)]
OPS = [row.op for row in ROWS if has_cpu_kernel(row) and not drawable(row) and not untaken(row, "nccl")]


class Worlds:
    """One world of each size; another one after a call that raised."""

    def __init__(self) -> None:
        self.worlds: dict[int, World] = {}

    def carry_out(self, group: Group) -> Result:
        size = group[0].group.size
        if size not in self.worlds or self.worlds[size].closed:
            self.worlds[size] = World(size, timeout=10, backend=Nccl)
        result = carry_out(self.worlds[size], [on_device(call, "cpu") for call in group])
        if result.outcome == RAISES and size > 1:
            self.worlds[size].close()
        return result

    def close(self) -> None:
        for world in self.worlds.values():
            world.close()


@pytest.fixture(scope="module")
def worlds() -> Iterator[Worlds]:
    made = Worlds()
    yield made
    made.close()


def judged_otherwise(worlds: Worlds, group: Group) -> str:
    """Return how the table's verdict differs from what the model does, "" where it does not."""
    on_gpu = [on_device(call, "cuda") for call in group]
    found = [each for call in on_gpu for each in cr.check(call, BACKEND)]
    errors = [each for each in found or cr.agree(on_gpu, BACKEND) if each.severity == "error"]
    outcome = worlds.carry_out(group).outcome
    if outcome == UNDEFINED or (outcome == OK) == (not errors):
        own = {OUTCOMES[FOLLOWS[each.id]] for each in errors if each.id in FOLLOWS}
        says = RAISES if RAISES in own else SILENTLY_WRONG
        other = own and len(own) == len({each.id in FOLLOWS for each in errors}) and outcome not in (UNDEFINED, says)
        return f"{group[0].op}: {outcome}, not {says}: {[each.id for each in errors]}" if other else ""
    return f"{group[0].op}: {outcome}, but {[each.id for each in errors]}: {group[0].arguments}"


@pytest.mark.parametrize("backend", ["nccl", None])
def test_drawn_calls(worlds: Worlds, backend: str | None) -> None:
    """What the table takes comes to what the oracle computes; of what the rules allow, the table finds the rest."""
    for op in OPS:
        for group in sample(calls(op, backend=backend, most_ranks=3), 2):
            assert "" == judged_otherwise(worlds, group)


def test_calls_beyond_each_limit(worlds: Worlds) -> None:
    """Each raises, or is silently wrong, as the limit says; of an average, values are compared roughly alone."""
    tried: set[str] = set()
    for op in OPS:
        for way in ways_to_break(op, backend="nccl"):
            id_ = way.removeprefix("beyond ").partition(",")[0]
            if way.startswith("beyond ") and id_ not in tried and not way.endswith("devices"):
                (broken,) = sample(broken_calls(op, way=way, backend="nccl", most_ranks=3), 1)
                if broken.calls[0].attribute("reduce_op") != "avg":
                    tried.add(id_)
                    assert "" == judged_otherwise(worlds, broken.calls), way
    assert len(tried) > 30


LAID_OUT = [op for op in OPS if op != "c10d::scatter_" and (op.startswith("c10d::") or op.endswith(("_", "_out")))]
"""Other functional ops copy what they read; of a scatter, a rank sees one side alone."""


@pytest.mark.parametrize(("size", "some"), [(1, (TRANSPOSED, SLICED)), (2, (TRANSPOSED, CHANNELS_LAST))])
def test_layouts(worlds: Worlds, size: int, some: tuple[str, ...]) -> None:
    """Of each argument on all ranks: in a group of one, where some ops copy, and between two ranks."""
    for op in LAID_OUT:
        row = cr.lookup(op)
        if not row.spellings[0].statement.parts or (row.rule.point_to_point and size == 1):
            continue
        wish = Wish(min_ranks=size, min_dims=4, min_size=2, max_tensors=1, straight=True)
        (group,) = sample(st.composite(draw_calls)(row, None, size, wish), 1)
        names = list(dict.fromkeys(slot.part.path.name for call in group for slot in slots_of(call)))
        for layouts in itertools.product(("", *some), repeat=len(names)):
            chosen = dict(zip(names, layouts, strict=True))
            laid = tuple(map(lambda call, chosen=chosen: laid_out(call, chosen), group))
            assert "" == judged_otherwise(worlds, laid), layouts


def laid_out(call: cr.Call, layouts: dict[str, str]) -> cr.Call:
    for slot in slots_of(call):
        layout = layouts[slot.part.path.name]
        call = edited(call, slot, stride=strides(slot.spec.shape, layout)) if layout else call
    return call


def test_the_model_tells_a_wrong_layout_from_a_right_one(worlds: Worlds) -> None:
    """It moves memory as it lies: from a channels_last tensor into a contiguous one, elements change places."""
    pair = {"input_tensor": cr.Spec((1, 2, 2, 2)), "output_tensor": cr.Spec((2, 2, 2, 2))}
    group = tuple(cr.call("c10d::_allgather_base_", group=cr.Group(2, rank), **pair) for rank in range(2))
    names = {"input_tensor": CHANNELS_LAST, "output_tensor": ""}
    assert [OK, SILENTLY_WRONG, RAISES] == [
        worlds.carry_out(tuple(laid_out(call, {**names, "input_tensor": layout}) for call in group)).outcome
        for layout in ("", CHANNELS_LAST, TRANSPOSED)
    ]

"""The tables of the backends that can be run, held against the real ones: each job in a process with a deadline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

import collective_rules as cr
from collective_rules.backends import BACKENDS, limits_of
from collective_rules.backends.limit import DIES as FOLLOWS_DIES
from collective_rules.backends.limit import RAISES as FOLLOWS_RAISES
from collective_rules.finding import UNDECIDABLE
from collective_rules.sandbox import DIES, HANGS, OK, RAISES, SILENTLY_WRONG, Sandbox
from collective_rules.testing import broken_calls, calls, ways_to_break
from collective_rules.testing.drawing import drawable, untaken
from collective_rules.testing.run_calls import TRY_CALLS, payload_of
from collective_rules.testing.strategies import sample
from collective_rules.testing.tensors import flat
from collective_rules.testing.world import has_cpu_kernel
from tests.backend_cases import BEYOND, Case

Group = Sequence[cr.Call]
MEASURED = ("fake", "threaded")
TIMEOUT = 1.0


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """Processes in which a backend may hang or die."""
    with Sandbox(workers=2, deadline=30.0, warm=["collective_rules.testing.run_calls"]) as made:
        yield made


def outcomes(box: Sandbox, backend: str, groups: Sequence[Group], timeout: float = TIMEOUT) -> list[str]:
    """What the real backend does with each group of calls."""
    payloads = [payload_of(group, timeout=timeout, backend=backend) for group in groups]
    found = dict(box.map(TRY_CALLS, payloads, reuse=True))
    return [found[place].outcome for place in range(len(groups))]


def own_ops(backend: str) -> list[str]:
    """The ops that can be tried here, and that the table has."""
    rows = [cr.lookup(op) for op in cr.ops()]
    return [row.op for row in rows if has_cpu_kernel(row) and not drawable(row) and not untaken(row, backend)]


def everyones(case: Case, backend: str) -> Group:
    """A case in which no rank is a root, on every rank of its group."""
    one = case.call(backend)
    return tuple(cr.call(one.op, group=cr.Group(case.size, rank), **one.arguments) for rank in range(case.size))


def is_beside_the_table(backend: str, group: Group) -> bool:
    """Whether a call is one of those of which the table's module says that the table does not say so."""
    for call in group if backend == "fake" else ():
        split = "all_to_all_single" in call.op or bool(call.arguments.get("output_split_sizes"))
        if split and not call.arguments["input"].shape[0]:
            return True
    return False


def is_odd(group: Group) -> bool:
    """Whether complex values may be -0, of which torch.sum makes 0 in a group of one, or are gathered of no dims.

    Complex tensors without dims torch views as real ones wrongly in the functional all_gathers, whatever the backend.
    """
    specs = [spec for call in group for value in call.arguments.values() for spec in flat(value)]
    complex_ = [spec for spec in specs if isinstance(spec, cr.Spec) and spec.dtype.is_complex]
    return bool(complex_) and (bool(group[0].row.reduce_op) or any(not spec.shape for spec in complex_))


@pytest.mark.parametrize("backend", MEASURED)
def test_what_the_table_takes_raises_nothing(box: Sandbox, backend: str) -> None:
    """Drawn calls of every op; the threaded backend also gives what the oracle computes."""
    groups = [
        group
        for op in own_ops(backend)
        for group in sample(calls(op, backend=backend, most_ranks=3), 5)
        if not is_beside_the_table(backend, group) and not is_odd(group)
    ]
    bad = (RAISES, HANGS, DIES) if backend == "fake" else (RAISES, HANGS, DIES, SILENTLY_WRONG)
    found = zip(groups, outcomes(box, backend, groups, 10.0), strict=True)
    assert [] == [(outcome, group) for group, outcome in found if outcome in bad]
    assert len(groups) > 100


@pytest.mark.parametrize("backend", MEASURED)
def test_what_goes_beyond_the_table_has_the_outcome_that_it_says(box: Sandbox, backend: str) -> None:
    """It raises, or it is silently wrong; where shapes decide, some of it raises."""
    limits = {limit.id: limit for limit in BACKENDS[backend].limits}
    groups: dict[str, list[Group]] = {}
    for op in own_ops(backend):
        for way in ways_to_break(op, backend=backend):
            if way.startswith("beyond "):
                id_ = way.removeprefix("beyond ").partition(",")[0]
                drawn = sample(broken_calls(op, way=way, backend=backend, most_ranks=3), 3)
                if len(groups.setdefault(id_, [])) < 6:
                    groups[id_].extend(each.calls for each in drawn)
    for id_, own in groups.items():
        limit = limits[id_]
        if limit.follows == FOLLOWS_RAISES:
            whole = [everyones(BEYOND[id_], backend)] if limit.severity == UNDECIDABLE else own
            assert {RAISES} == set(outcomes(box, backend, whole)), id_
        elif limit.follows == FOLLOWS_DIES:
            assert {DIES} == set(outcomes(box, backend, own)), id_
        else:
            seen = outcomes(box, backend, own)
            assert SILENTLY_WRONG in seen, id_
            assert {SILENTLY_WRONG, OK} >= set(seen), id_
    assert groups.keys() == {limit.id for limit in limits.values() if not limit.missing}


@pytest.mark.parametrize("backend", MEASURED)
def test_a_missing_op_raises(box: Sandbox, backend: str) -> None:
    """Every call of it."""
    rows = [cr.lookup(op) for op in cr.ops()]
    missing = [
        row.op
        for row in rows
        if has_cpu_kernel(row) and not drawable(row) and any(limit.missing for limit in limits_of(backend, row))
    ]
    groups = [group for op in missing for group in sample(calls(op, backend=None, most_ranks=3), 2)]
    assert {RAISES} == set(outcomes(box, backend, groups))


def test_the_fake_backend_raises_where_a_rank_sends_nothing_and_receives_rows(box: Sandbox) -> None:
    """Which its module tells, since no column says so."""
    rows = {"input": (0, 2), "output": (4, 2), "input_split_sizes": [0, 0], "output_split_sizes": [1, 3]}
    group = [cr.call("c10d::alltoall_base_", group=cr.Group(2, rank), **rows) for rank in range(2)]
    assert box.run(TRY_CALLS, payload_of(group, timeout=TIMEOUT, backend="fake")).outcome == RAISES

"""The backends' tables, row by row: each is broken once, legal calls pass, and what can be run is held against it."""

from __future__ import annotations

import pytest

import collective_rules as cr
from collective_rules.backends import BACKENDS, Limit
from collective_rules.backends.gloo import GLOO
from collective_rules.backends.limit import RAISES
from collective_rules.call import on_device
from collective_rules.testing import broken_calls, calls, ways_to_break
from collective_rules.testing.drawing import drawable, untaken
from collective_rules.testing.strategies import sample
from tests.backend_cases import BEYOND, LEGAL, Case, cases
from tests.gloo_outcomes import OUTCOMES
from tests.test_nccl import F

READ = ("xccl", "hccl", "ucc", "mpi")
MEASURED = ("fake", "threaded")
TABLES = (*READ, *MEASURED)

BETWEEN_RANKS = {"NCCL34", "XCCL24", "HCCL24"}
"""Limits on the order of dims of one tensor alone, which the ranks must have alike."""

UNDRAWN = {"XCCL6", "XCCL7", "XCCL8", "HCCL10", "HCCL2", "UCC6"}
"""Limits on premul_sum, or on a dtype, that are not drawn."""


def found_by(call: cr.Call, backend: str | cr.Backend) -> list[cr.Finding]:
    """What the backend's table finds, and the rules."""
    return list(cr.check(call, backend))


def test_every_limit_has_a_case() -> None:
    """And no case is of a limit that is no more."""
    ids = {limit.id for name in ("nccl", *TABLES) for limit in BACKENDS[name].limits}
    assert ids == BEYOND.keys() | BETWEEN_RANKS


@pytest.mark.parametrize("limit", [limit for limit in GLOO.limits if limit.follows], ids=lambda limit: limit.id)
def test_gloo_was_seen_to_do_what_follows(limit: Limit) -> None:
    """By the record of what broken calls come to; of symmetric memory no call can be made."""
    seen = OUTCOMES.get(limit.id, ("raises",))
    assert (seen == ("raises",)) if limit.follows == RAISES else ("silently wrong" in seen)


@pytest.mark.parametrize(("backend", "id_", "case"), [pytest.param(*each, id=each[1]) for each in cases()])
def test_a_call_beyond_a_limit_is_found_by_its_id(backend: str, id_: str, case: Case) -> None:
    """Its message names the backend, the id and what follows; the rules alone find no error in it."""
    call = case.call(backend)
    (limit,) = [limit for limit in BACKENDS[backend].limits if limit.id == id_]
    found = {one.id: one for one in found_by(call, case.backend(backend))}
    assert id_ in found
    assert (limit.severity, call.op) == (found[id_].severity, found[id_].op)
    first, *_, last = found[id_].message.splitlines()
    assert f"{call.op}: {backend} " in first
    assert first.endswith(f": it {limit.follows}   [{id_}]")
    assert limit.advice == last
    assert [] == [one.id for one in cr.check(call) if one.severity == "error"]


ALONE = {"XCCL14": "XCCL14"}


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        pytest.param(name, case, id=f"{name}, {case.op}, {place}")
        for name in LEGAL
        for place, case in enumerate(LEGAL[name])
    ],
)
def test_a_legal_call_passes(backend: str, case: Case) -> None:
    """No error and no warning, in any of the layouts and dtypes that the backend takes."""
    assert [] == found_by(case.call(backend), case.backend(backend))


@pytest.mark.parametrize("backend", TABLES)
def test_every_row_says_what_follows(backend: str) -> None:
    """And the table, by what it was verified."""
    table = BACKENDS[backend]
    assert ("measured on torch" if backend in MEASURED else "; not run") in table.verified
    assert all(limit.follows and limit.says and limit.advice for limit in table.limits)


@pytest.mark.parametrize("backend", ["xccl", "hccl"])
def test_one_order_of_dims_on_every_rank(backend: str) -> None:
    """A coalesced all-reduce sends memory as it is."""
    device = {"xccl": "xpu", "hccl": "npu"}[backend]
    ranks = [
        cr.call(
            "c10d::allreduce_coalesced_",
            group=cr.Group(2, rank),
            tensors=[cr.Spec((2, 3), stride=stride, device=device)],
        )
        for rank, stride in enumerate(((3, 1), (1, 2)))
    ]
    assert ["error"] == [found.severity for found in cr.agree(ranks, backend)]


# -- what is not known


def test_a_limit_that_depends_on_the_version_is_undecidable() -> None:
    """Until the version is told, or the chip."""
    for id_ in ("XCCL7", "HCCL8"):
        case, backend = BEYOND[id_], id_[:4].lower()
        assert [(id_, "undecidable")] == [(one.id, one.severity) for one in cr.check(case.call(backend), backend)]


def test_habanas_backend_has_the_name_of_ascends() -> None:
    """Of tensors on an hpu nothing is said; of meta tensors it is not known whose they are."""
    call = cr.call("c10d::allreduce_", group=cr.Group(2), tensors=[(4,)], reduce_op="band")
    assert () == cr.check(on_device(call, "hpu"), "hccl")
    assert ["undecidable"] == [found.severity for found in cr.check(on_device(call, "meta"), "hccl")]
    assert ["error"] == [found.severity for found in cr.check(on_device(call, "npu"), "hccl")]


@pytest.mark.parametrize("backend", ["ucc", "mpi"])
def test_a_functional_gather_needs_the_coalesced_method(backend: str) -> None:
    """The c10d op, which torch.distributed calls, does not."""
    functional = cr.call(F + "all_gather_into_tensor", group=cr.Group(4), input=(4,))
    plain = cr.call("c10d::_allgather_base_", group=cr.Group(4), input_tensor=(4,), output_tensor=(16,))
    assert ["error"] == [found.severity for found in cr.check(functional, backend)]
    assert () == cr.check(plain, backend)


# -- drawn calls


@pytest.mark.parametrize("backend", TABLES)
def test_drawn_calls_are_within_the_table(backend: str) -> None:
    """Of every op that the backend has."""
    for op in cr.ops():
        row = cr.lookup(op)
        if not row.available or drawable(row) or untaken(row, backend):
            continue
        for group in sample(calls(op, backend=backend, most_ranks=4), 6):
            for call in group:
                assert [] == [str(one) for one in found_by(call, backend) if one.severity == "error"]


@pytest.mark.parametrize("backend", TABLES)
def test_each_way_to_go_beyond_the_table_is_found(backend: str) -> None:
    """By the limit's id, on one op of each limit and column."""
    seen: set[str] = set()
    for op in cr.ops():
        row = cr.lookup(op)
        if not row.available or drawable(row) or untaken(row, backend):
            continue
        for way in ways_to_break(op, backend=backend):
            if way.startswith("beyond ") and way not in seen:
                seen.add(way)
                for broken in sample(broken_calls(op, way=way, backend=backend, most_ranks=4), 2):
                    ids = [found.id for call in broken.calls for found in cr.check(call, backend)]
                    assert broken.id in ids, (op, way)
    limits = {limit.id for limit in BACKENDS[backend].limits if not limit.missing}
    assert limits - BETWEEN_RANKS - UNDRAWN == {way.split(",")[0].removeprefix("beyond ") for way in seen}

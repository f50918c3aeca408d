"""Every table with one thing changed is noticed by some law, or says the same as before: here is the reason.

A mutant is killed by the first law that it violates. Those that say the same are known beforehand: where a column says
nothing of a row, `mutants` knows why; the others are listed here. A mutant that survives without a reason fails, and so
does a reason whose mutant is killed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pytest
from hypothesis import settings

import collective_rules as cr
from collective_rules.backends import BACKENDS, BackendTable
from collective_rules.backends.columns import demands_of
from collective_rules.backends.gloo import GLOO
from collective_rules.ops import OPS
from collective_rules.rules import RULES
from collective_rules.testing.drawing import drawable
from tests.backend_cases import BEYOND
from tests.laws import Law, in_form, laws_of, laws_of_rule, symm_mem_laws_of
from tests.limit_laws import generated_laws_of, laws_by_hand
from tests.limit_mutants import limit_mutants, limited_otherwise
from tests.mutants import Mutant, op_mutants, rule_mutants

THOROUGH = settings.default.max_examples >= 1_000

_TIED = "`k` is tied to the last size of `*s`, on which the ranks agree"

EQUIVALENT: Mapping[str, str] = {
    "c10d::gather_into_tensor_: scratch, also output_tensor": "what becomes of it off the root, torch 2.13 cannot show",
    "symm_mem::_low_contention_reduce_scatter: forms, also stacked": "whatever fits it fits the concatenated one",
    "symm_mem::fused_matmul_reduce_scatter: forms, also reshaped": "it has no output_shape, without which none fits",
    "symm_mem::multi_root_tile_reduce: one_tensor, turned": "its one output has the shape of every tile",
    "all_gather_matmul: even, input: *s, weights[i]: k[r] n[r] -> output: *g, outputs[i]: *o": _TIED,
    "matmul_reduce_scatter: even, input: *s, weight: k[r] n -> output: *o": _TIED,
    "matmul_reduce_scatter: reshaped, input: *s, weight: k[r] n -> output: *q": _TIED,
    "GLOO5: forms, also last_dim": "ops of symm_mem alone have that form, and GLOO14 refuses them",
    "GLOO6: from_size, 1 → 2": "in a group of one every list is even",
    "GLOO21: from_size, 1 → 2": "in a group of one all that is read is this rank's own",
    "FAKE3: from_size, 2 → 1": "in a group of one every list is even",
    "FAKE4: from_size, 2 → 1": "in a group of one what fits a row, or a scalar, fits the stacked form",
}
"""Mutants that survive, each with the reason why it is the same statement."""

LIMITS = {limit.id: (backend, limit.id) for backend in BACKENDS.values() for limit in backend.limits}


def survivors(mutants: Iterable[Mutant], laws_for: Callable[[Mutant], Sequence[Law]]) -> dict[str, str]:
    """Return the mutants that no law notices, with the reasons that are known. What killed others is tried first."""
    killers: list[Law] = []
    found = {}
    for mutant in mutants:
        laws = laws_for(mutant)
        known = set(laws)
        order = [*(law for law in killers if law in known), *laws]
        with mutant.in_place():
            killer = next((law for law in order if is_violated(law, again=bool(reason(mutant)))), None)
        if killer is None and (reason(mutant) or not admits_nothing(mutant)):
            found[mutant.name] = reason(mutant)
        elif killer is not None:
            killers = [killer, *(law for law in killers if law is not killer)]
    return found


def is_violated(law: Law, *, again: bool = False) -> bool:
    """Whether the tables contradict the law, or choke on what it asks: a broken table may break anything.

    `again`: only if they do so twice; a law that asks gloo may fail once on a busy machine.
    """
    try:
        law.holds()
    except Exception:
        return not again or is_violated(law)
    return False


def reason(mutant: Mutant) -> str:
    return mutant.same or EQUIVALENT.get(mutant.name, "")


def admits_nothing(mutant: Mutant) -> bool:
    """Whether another form of an op makes nothing legal: all that is drawn in that form fits a form that it takes."""
    op, _, change = mutant.name.partition(": ")
    form = change.removeprefix("forms, also ")
    return op in OPS and form != change and not drawable(cr.lookup(op)) and not in_form(op, form)


def expected(mutants: Iterable[Mutant]) -> dict[str, str]:
    return {mutant.name: reason(mutant) for mutant in mutants if reason(mutant)}


def known_laws(op: str) -> tuple[Law, ...]:
    return symm_mem_laws_of(op) if op.startswith("symm_mem::") else laws_of(op)


def laws_of_followers(rule: str) -> list[Law]:
    """The laws of a rule, and of the ops that follow it: the cheap ones of all ops first."""
    ops = [op for op, entry in OPS.items() if entry.rule == rule]
    return [*laws_of_rule(rule), *in_turn(known_laws(op) for op in ops)]


def in_turn(groups: Iterable[Sequence[Law]]) -> Iterator[Law]:
    """The first of each, then the second of each, and so on."""
    for laws in itertools.zip_longest(*groups):
        yield from (law for law in laws if law is not None)


def laws_of_limits(backend: BackendTable) -> Callable[[Mutant], list[Law]]:
    """Return what gives the laws of a mutant: what is known of the ops that the mutant limits in another way."""

    def laws(mutant: Mutant) -> list[Law]:
        ops = limited_otherwise(backend, mutant)
        some_ops = ops[:3] if mutant.same and not THOROUGH else ops
        by_hand = () if backend.name == "gloo" or reason(mutant) else laws_by_hand(backend.name)
        return [
            *by_hand,
            *(law for op in some_ops for law in limit_laws_of(backend.name, op, by_id=not reason(mutant))),
        ]

    return laws


@functools.cache
def limit_laws_of(backend: str, op: str, *, by_id: bool = True) -> tuple[Law, ...]:
    """What is known of a backend's limits: of gloo by running it, every dtype and reduce op first.

    `by_id`: also by which limit a call is refused, which a mutant may change that refuses the same calls.
    """
    if backend != "gloo":
        return generated_laws_of(backend, op, by_id=by_id)
    laws = [law for law in known_laws(op) if law.of_gloo]
    return tuple(sorted(laws, key=lambda law: "ranks, " not in law.name))


def some(mutants: Iterable[Mutant], one_in: int = 6) -> list[Mutant]:
    """In the thorough profile all of them; else a share of those that may be killed, and a third of it of the others.

    Those that are known to survive take the longest.
    """
    found, counts = [], {True: 0, False: 0}
    for mutant in mutants:
        counts[bool(mutant.same)] += 1
        step = 10 * one_in // 3 if mutant.same else one_in
        if THOROUGH or counts[bool(mutant.same)] % step == 1 or mutant.name in EQUIVALENT:
            found.append(mutant)
    return found


@pytest.mark.parametrize("op", OPS)
def test_no_law_speaks_against_a_row_as_it_is(op: str) -> None:
    """What the tests below notice is the change alone."""
    with Mutant("none").in_place():
        assert [] == [law.name for law in known_laws(op) if is_violated(law)]


@pytest.mark.parametrize("rule", RULES)
def test_no_law_speaks_against_a_rule_as_it_is(rule: str) -> None:
    """Nor against its oracle and its ids."""
    with Mutant("none").in_place():
        assert [] == [law.name for law in laws_of_rule(rule) if is_violated(law)]


@pytest.mark.parametrize("op", OPS)
def test_a_changed_row_is_noticed(op: str) -> None:
    """Each entry of each column says something that a call shows."""
    mutants, laws = some(op_mutants(op)), known_laws(op)
    assert expected(mutants) == survivors(mutants, lambda mutant: laws)


@pytest.mark.parametrize("rule", RULES)
def test_a_changed_rule_is_noticed(rule: str) -> None:
    """Each part and each size of its text, its agreements, constraints, functions and flags."""
    mutants, laws = some(rule_mutants(rule)), laws_of_followers(rule)
    assert expected(mutants) == survivors(mutants, lambda mutant: laws)


@pytest.mark.parametrize(("backend", "id_"), LIMITS.values(), ids=LIMITS)
def test_a_changed_limit_is_noticed(backend: BackendTable, id_: str) -> None:
    """Each op, dtype and reduce op that a limit names, and each other column."""
    if backend.name != "gloo" and not THOROUGH:
        pytest.skip("the laws of a backend that cannot be run are generated: a minute or more for each limit")
    mutants = some(limit_mutants(backend, id_), one_in=12)
    assert expected(mutants) == survivors(mutants, laws_of_limits(backend))


@pytest.mark.parametrize("id_", BEYOND)
def test_a_limit_that_is_left_out_or_says_another_thing_is_noticed(id_: str) -> None:
    """By the calls that are written by hand, which take no time: its id, how bad it is, and each of its demands."""
    backend, _ = LIMITS[id_]
    (limit,) = [each for each in backend.limits if each.id == id_]
    whole = {f"{id_}: left out", f"{id_}: id, another"}
    whole |= {f"{id_}: {column}, left out" for column in demands_of(limit)}
    start = f"{id_}: severity, "
    mutants = list(limit_mutants(backend, id_, lambda name: name in whole or name.startswith(start)))
    assert len(mutants) > 2
    assert {} == survivors(mutants, lambda mutant: laws_by_hand(backend.name))


def test_every_reason_is_a_mutants() -> None:
    """None is listed that is not made, and none that a column knows already."""
    made: set[str] = set()
    for changed in {name.partition(": ")[0] for name in EQUIVALENT}:
        if changed in LIMITS:
            mutants = limit_mutants(*LIMITS[changed])
        else:
            mutants = op_mutants(changed) if changed in OPS else rule_mutants(changed)
        made |= {mutant.name for mutant in mutants if not mutant.same}
    assert EQUIVALENT.keys() <= made


def test_the_tables_are_as_they_were() -> None:
    """A mutant leaves nothing behind, whatever it breaks."""
    row, limits = cr.lookup("c10d::allreduce_"), GLOO.limits
    for mutant in (next(op_mutants(row.op)), next(rule_mutants("all_reduce")), next(limit_mutants(GLOO, "GLOO1"))):
        with pytest.raises(KeyError, match="broken"), mutant.in_place():
            raise KeyError("broken")
    assert (cr.lookup("c10d::allreduce_"), cr.backends.BACKENDS["gloo"].limits) == (row, limits)

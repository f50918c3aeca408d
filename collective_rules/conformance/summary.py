"""A conformance run in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from collective_rules.conformance.results import Conformance, KindResult, OpResult

__all__ = ["NONE", "alike", "headline", "left_out", "legal_text", "settings_line"]

NONE = "–"


def headline(found: Conformance) -> str:
    """Return whether the backend conforms, and the numbers behind that.

    >>> headline(Conformance("x", None, "2.13.0", (2,), 1, 0, 1.0, 0.5, ()))
    'x does not conform: no legal call passed.'
    """
    totals = found.totals
    ended = f" {found.ended}" if found.ended else ""
    if not totals["passed"] + totals["failed"]:
        return f"{found.backend} does not conform: no legal call passed.{ended}"
    verdict = "conforms" if found.conforms else "does not conform"
    failing = [op for op in found.ops if op.failed]
    where = f", in {_many(len(failing), 'op')}" if failing else ""
    legal = f"{totals['passed']} legal calls passed, {totals['failed']} failed{where}"
    tried = sum(totals[each] for each in ("raises", "hangs", "dies", "accepted"))
    broken = (
        f" Of {tried} broken calls, {totals['raises']} raised, {totals['hangs']} hung, {totals['dies']} killed the "
        f"process, and {totals['accepted']} were accepted."
    )
    without = [op for op in found.ops if op.unsupported]
    lacking = f" {_many(len(without), 'op')} not supported." if without else ""
    wrong = sum(len(op.disagreements) for op in found.ops)
    table = f" The table of limits is wrong about {_many(wrong, 'dtype')}." if wrong else ""
    return f"{found.backend} {verdict}: {legal}.{broken if tried else ''}{lacking}{table}{ended}"


def settings_line(found: Conformance) -> str:
    """Return the settings of the run, and how long it took."""
    limits = f"the limits of {found.table}" if found.table else "the rules alone"
    where = "" if found.ranks == "threads" else f", which are {found.ranks}, on {found.device}"
    return (
        f"torch {found.torch}; groups of {_numbers(found.sizes)}{where}; {_many(found.examples, 'legal call')} of each "
        f"op, as {limits} have it; seed {found.seed}; deadline {found.deadline:g} s; took {found.seconds:g} s."
    )


def left_out(found: Conformance) -> list[str]:
    """Return a line for each reason for which ops were left out."""
    by_reason: dict[str, list[str]] = {}
    for op, why in found.left_out.items():
        by_reason.setdefault(why, []).append(op)
    return [f"{_many(len(ops), 'op')}: {why} ({', '.join(ops)})" for why, ops in by_reason.items()]


def legal_text(op: OpResult) -> str:
    """Return how many of an op's legal calls passed."""
    tried = op.passed + op.failed
    skipped = f" ({op.skipped} given up)" if op.skipped else ""
    return f"{op.passed}/{tried}{skipped}" if tried else NONE


def alike(found: Conformance) -> list[tuple[list[str], tuple[KindResult, ...]]]:
    """Return the ops with the same results of dtypes and reduce ops, and those results."""
    groups: dict[tuple[tuple[str, str, str, bool], ...], tuple[list[str], tuple[KindResult, ...]]] = {}
    for op in found.ops:
        if op.kinds:
            picture = tuple((kind.reduce_op, kind.dtype, kind.outcome, kind.agrees) for kind in op.kinds)
            groups.setdefault(picture, ([], op.kinds))[0].append(op.op)
    return list(groups.values())


def _numbers(sizes: Sequence[int]) -> str:
    if len(sizes) > 2 and list(sizes) == list(range(sizes[0], sizes[-1] + 1)):
        return f"{sizes[0]} to {sizes[-1]} ranks"
    return f"{' and '.join(map(str, sizes))} rank{'s' if sizes != (1,) else ''}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

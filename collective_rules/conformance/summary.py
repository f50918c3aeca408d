"""A conformance run in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from collective_rules.conformance.results import Conformance, Failure, KindResult, OpResult
from collective_rules.sandbox import OK

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
    expected = sum(op.verdict == "fails as expected" for op in found.ops)
    known = f" {_many(expected, 'op')} failed as expected." if expected else ""
    wrong = sum(len(op.disagreements) for op in found.ops)
    named = "declaration" if found.is_declared else "table of limits"
    table = f" The {named} is wrong about {_many(wrong, 'dtype')}." if wrong else ""
    return f"{found.backend} {found.verdict}: {legal}.{broken if tried else ''}{lacking}{known}{table}{ended}"


def settings_line(found: Conformance) -> str:
    """Return the settings of the run, and how long it took."""
    limits = f"the limits of {found.table}" if found.table else "the rules alone"
    where = "" if found.ranks == "threads" else f", which are {found.ranks}, on {found.device}"
    return (
        f"torch {found.torch}; groups of {_numbers(found.sizes)}{where}; {_many(found.examples, 'legal call')} of each "
        f"op, as {limits} have it; seed {found.seed}; deadline {found.deadline:g} s; took {found.seconds:g} s."
    )


def notes(found: Conformance) -> list[str]:
    """Return a line for each thing worth a look: the notes, the expected failures, and what is optional."""
    expected = [f"{op.op} fails as expected: {op.expected}" for op in found.ops if op.verdict == "fails as expected"]
    optional = [
        f"{op.op}: of {sum(op.optional.values())} calls with lists of several tensors, which a backend may take or "
        f"not, {op.optional.get(OK, 0)} passed"
        for op in found.ops
        if op.optional and not op.unsupported
    ]
    return [*found.notes, *expected, *optional]


def failing_title(failure: Failure) -> str:
    """Return what fails, and what the table claims where it claims too much."""
    return f"{failure.op} ({failure.claim})" if failure.claim else failure.op


def badge(found: Conformance) -> str:
    """Return a badge in Markdown, an image by shields.io, which says whether the backend conforms."""
    colour = "brightgreen" if found.conforms else "red"
    text = quote(found.verdict.replace("-", "--").replace("_", "__").replace(" ", "_"), safe="")
    return f"![collective-rules: {found.verdict}](https://img.shields.io/badge/collective--rules-{text}-{colour})"


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

"""A conformance run as one page of HTML: no scripts, no other files, readable in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from collective_rules.conformance.results import BROKEN_OUTCOMES, Conformance, KindResult, OpResult
from collective_rules.conformance.summary import alike, headline, left_out, legal_text, notes, settings_line
from collective_rules.pages import render
from collective_rules.sandbox import DIES, HANGS, OK, RAISES

_BROKEN = {RAISES: "good", HANGS: "mild", DIES: "bad", "accepted": "worse"}
_KINDS = {
    OK: ("good", "yes"),
    RAISES: ("plain", "no"),
    "refused": ("plain", "no"),
    "undefined": ("plain", "undefined"),
    "not tried": ("", "?"),
    HANGS: ("mild", "hangs"),
    DIES: ("bad", "dies"),
}
_WRONG = ("bad", "wrong")


@attrs.frozen
class Cell:
    """A cell of a table: its text, the class of its colour, and its tooltip."""

    text: str
    css: str = ""
    title: str = ""


def page(run: Conformance) -> str:
    """Return the whole page."""
    return render(
        "conformance/page.html",
        title=f"Conformance of {run.backend}",
        headline=headline(run),
        settings=settings_line(run),
        broken_legend=[(css, outcome) for outcome, css in _BROKEN.items()],
        op_columns=("op", "verdict", "legal passed", *(f"broken: {each}" for each in BROKEN_OUTCOMES)),
        op_rows=[_op(op) for op in run.ops],
        kind_legend=dict.fromkeys([*_KINDS.values(), _WRONG, ("otherwise", "the table of limits says otherwise")]),
        kinds=[(ops, *_kinds(kinds)) for ops, kinds in alike(run)],
        failures=run.failures,
        notes=notes(run),
        way_columns=("what is broken", "violates", *BROKEN_OUTCOMES),
        ways=[
            (op.op, [(Cell(way.way), Cell(" ".join(way.ids)), *_counts(way.counts)) for way in op.ways])
            for op in run.ops
            if op.ways
        ],
        left_out=left_out(run),
    )


def _op(op: OpResult) -> tuple[Cell, ...]:
    css = {"conforms": "good", "fails": "bad", "fails as expected": "mild"}.get(op.verdict, "plain")
    verdict = Cell(op.verdict, css, op.unsupported or "")
    return Cell(op.op), verdict, Cell(legal_text(op), css if op.passed + op.failed else ""), *_counts(op.broken)


def _counts(counts: Mapping[str, int]) -> tuple[Cell, ...]:
    return tuple(Cell(str(counts[each]), _BROKEN[each]) if counts.get(each) else Cell("–") for each in BROKEN_OUTCOMES)


def _kinds(kinds: Sequence[KindResult]) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Return the columns, one for each reduce op, and the rows, one for each dtype."""
    reduce_ops = dict.fromkeys(kind.reduce_op for kind in kinds)
    by_dtype: dict[str, dict[str, Cell]] = {}
    for kind in kinds:
        by_dtype.setdefault(kind.dtype, {})[kind.reduce_op] = _kind(kind)
    columns = ("dtype", *(reduce_op or "taken" for reduce_op in reduce_ops))
    return columns, [(Cell(dtype), *(row[each] for each in reduce_ops)) for dtype, row in by_dtype.items()]


def _kind(kind: KindResult) -> Cell:
    css, text = _KINDS.get(kind.outcome, _WRONG)
    if not kind.agrees:
        css, text = f"{css} otherwise", f"{text}, table: {'yes' if kind.table else 'no'}"
    return Cell(text, css, kind.message)

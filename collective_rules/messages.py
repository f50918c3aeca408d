"""The messages of findings, written from data.

A message has four parts: the verdict with the constraint's id; the op's rule with a caret; the values; the advice.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import ne
from typing import Any

from collective_rules.binding.bound import Problem
from collective_rules.call import Call
from collective_rules.finding import SEVERITIES, Finding
from collective_rules.notation import Part, Size, Statement
from collective_rules.ops import Row, Spelling
from collective_rules.rules import KINDS
from collective_rules.spec import Spec

_MOST_VALUES, _MOST_SOURCES, _MOST_RANKS = 12, 3, 32
_WORLD = "0"
_ABOUT_RANKS = ("root", "peer", "presence")


def finding_of(call: Call, spelling: Spelling, problem: Problem) -> Finding:
    """Return the finding for one problem of this rank's call."""
    row = call.row
    id_ = row.rule.id_of(problem.kind)
    rows = [(name, value_text(value), "") for name, value in problem.values.items()]
    advice = problem.advice or KINDS[problem.kind].advice
    if problem.kind in _ABOUT_RANKS and any(map(ne, call.group.ranks, itertools.count())):
        rows.append(("", f"ranks are counted here in {group_text(call.group.name, call.group.ranks)}", ""))
    message = compose(row, spelling, (problem.part, problem.size), problem.verdict, id_, rows, advice)
    names = {**problem.names, **problem.values}
    return Finding(id_, problem.severity, message, (call.group.global_rank,), names, op=row.op)


def compose(
    row: Row,
    spelling: Spelling,
    place: tuple[Part | None, Size | None],
    verdict: str,
    id_: str,
    values: Iterable[tuple[str, str, str]],
    advice: str,
) -> str:
    """Return a message. `place`: where the caret stands. `values`: (name, value, where); no name for a whole line."""
    lines = [f"{row.op}: {verdict}   [{id_}]"]
    text = str(spelling.statement)
    if text != "->":
        lines.append(f"    {text}")
        start, stop = _span(spelling.statement, *place)
        if stop > start:
            lines.append("    " + " " * start + "^" * (stop - start))
    rows = list(values)
    shown = [f"{name} = {value}" if name else value for name, value, _ in rows[:_MOST_VALUES]]
    width = max(map(len, shown), default=0)
    lines += [f"  {text:<{width}}   {where}".rstrip() for text, (_, _, where) in zip(shown, rows, strict=False)]
    if len(rows) > _MOST_VALUES:
        lines.append(f"  … and {len(rows) - _MOST_VALUES} more")
    lines.append(advice)
    return "\n".join(lines)


def _span(statement: Statement, part: Part | None, size: Size | None) -> tuple[int, int]:
    """Return where `part`, or `size` in it, stands in the statement's text; (0, 0) for no part."""
    text, start = str(statement), 0
    for each in statement.parts if part is not None else ():
        start = text.index(str(each), start)
        if each is not part:
            start += len(str(each))
        elif size is None:
            return start, start + len(str(each))
        else:
            place = each.sizes.index(size)
            start += len(" ".join([f"{each.path}:", *map(str, each.sizes[:place])])) + 1
            return start, start + len(str(size))
    return 0, 0


def value_text(value: Any) -> str:
    """Write a value as messages show it."""
    if isinstance(value, Spec):
        dtype = str(value.dtype).removeprefix("torch.")
        shape = "?" if value.shape is None else "x".join(map(str, value.shape)) or "0-d"
        plain = value.is_contiguous_or_unknown or len(value.stride) == 0
        return f"{shape} {dtype}" if plain else f"{shape} {dtype}, stride {value.stride}"
    if isinstance(value, tuple) and len(value) > 16:
        return f"({', '.join(map(str, value[:8]))}, … {len(value)} numbers)"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {value_text(item)}" for name, item in value.items())
    return str(value)


def ranks_text(ranks: Iterable[int]) -> str:
    """Write ranks as a person would: `rank 1`, `ranks 0, 2, 3`, `ranks 0-6, 8`.

    >>> ranks_text([0, 1, 2, 3, 7])
    'ranks 0-3, 7'
    """
    ordered = sorted(ranks)
    runs: list[list[int]] = []
    for rank in ordered:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"{'rank' if len(ordered) == 1 else 'ranks'} {', '.join(parts)}"


def group_text(name: str, ranks: Sequence[int]) -> str:
    """Name a group, with its global ranks where it is not the world; "" for a group of which nothing is known.

    torch names the world "0". A group of other ranks, or of another name, is shown with its ranks.

    >>> group_text("5", (2, 3)), group_text("0", (0, 1)), group_text("", ())
    ('group 5 (ranks 2, 3)', 'group 0', '')
    """
    named = f"group {name}" if name else ""
    is_world = name in ("", _WORLD) and [*ranks] == [*range(len(ranks))]
    if not ranks or is_world:
        return named
    which = ranks_text(ranks) if len(ranks) <= _MOST_RANKS else f"{ranks_text(ranks[:3])}, … {len(ranks):,} ranks"
    if named.endswith(which):  # a name that was made of them
        return named
    return f"{named or 'a group'} ({which})"


_PLURALS = {"does": "do", "has": "have", "is": "are", "was": "were"}


def ranks_verb(ranks: Collection[int], verb: str) -> str:
    """Write ranks with a verb ("does", "makes", "was") in the number that agrees.

    >>> ranks_verb([1], "does"), ranks_verb([1, 2], "makes")
    ('rank 1 does', 'ranks 1, 2 make')
    """
    return f"{ranks_text(ranks)} {verb if len(ranks) == 1 else _PLURALS.get(verb, verb.removesuffix('s'))}"


def where_text(calls: Collection[Call]) -> str:
    """Write the ranks of calls, and the first lines that made them."""
    sources = [*dict.fromkeys(call.source for call in calls if call.source)]
    ranks = ranks_text({call.group.global_rank for call in calls})
    return f"{ranks}   {', '.join(sources[:_MOST_SOURCES])}" if sources else ranks


def call_text(call: Call) -> str:
    """Write a call in short: its op, its first tensor, its reduce op and its root, the ranks of the groups it makes."""
    root = call.attribute("root")
    attributes = {
        "reduce_op": call.attribute("reduce_op"),
        "root": call.group.to_global(root) if isinstance(root, int) else root,
        "members": call.attribute("members"),
        "parts": call.attribute("parts"),
    }
    more = "".join(f", {name} {value_text(value)}" for name, value in attributes.items() if value is not None)
    for name in (*call.row.reads, *call.row.writes):
        value = call.arguments.get(name)
        while isinstance(value, tuple) and value:
            value = value[0]
        if isinstance(value, Spec):
            return f"{call.op} of {value_text(value)}{more}"
    return call.op + more


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings with errors first, otherwise in order."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))

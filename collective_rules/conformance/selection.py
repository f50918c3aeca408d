"""Chooses the ops and constraints of a run, and the failures that are expected, by what a user writes."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from collective_rules.backends import table_of
from collective_rules.backends.columns import holds_for
from collective_rules.backends.declared import constraint_ids
from collective_rules.errors import CallError, UnknownOpError
from collective_rules.ops import OPS, lookup


@attrs.frozen
class Selection:
    """The choice of a run.

    - `ops`: patterns of the ops, all where it is empty; `ignored`: patterns of those to leave out.
    - `ids`: the constraints and limits to break, all where it is empty; `spared`: those not to break.
    - `table`: whose limits are meant.
    """

    ops: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    ids: frozenset[str] = frozenset()
    spared: frozenset[str] = frozenset()
    table: str | None = None

    def selects(self, op: str) -> bool:
        """Return whether the op is chosen: its name, where names are, and one of its ids, where ids are."""
        return (not self.ops or _matches(op, self.ops)) and (not self.ids or bool(self.ids & _ids_of(op, self.table)))

    def ignores(self, op: str) -> bool:
        """Return whether the op is to be left out."""
        return _matches(op, self.ignored)


def selection_of(select: Sequence[str], ignore: Sequence[str], table: str | None) -> Selection:
    """Return the choice that was written as patterns of ops and as ids, such as "c10d::*" and "AG7".

    Raises `CallError` for what is neither.

    >>> selection_of(["c10d::*", "AG7"], ["GLOO1"], "gloo")
    Selection(ops=('c10d::*',), ignored=(), ids=frozenset({'AG7'}), spared=frozenset({'GLOO1'}), table='gloo')
    """
    ids = constraint_ids() | {limit.id for limit in (table_of(table).limits if table else ())}
    for text in (*select, *ignore):
        if text not in ids:
            must_match(text, ids)
    return Selection(
        tuple(text for text in select if text not in ids),
        tuple(text for text in ignore if text not in ids),
        ids & {*select},
        ids & {*ignore},
        table,
    )


def must_match(pattern: str, others: Iterable[str] = ()) -> None:
    """Raise `CallError` where no op matches; `others` may have been meant, too."""
    if not fnmatch.filter(OPS, pattern):
        names = [] if set(pattern) & set("*?[") else [*OPS, *others]
        near = difflib.get_close_matches(pattern, names, n=1)
        raise CallError(f"no op matches {pattern!r}{f'; did you mean {near[0]!r}?' if near else ''}")


def expectations_of(reasons: Mapping[str, str]) -> dict[str, str]:
    """Return op → why it is expected to fail; the keys of `reasons` are ops or patterns.

    Raises `CallError` for a pattern that no op matches, and for an empty reason.

    >>> expectations_of({"c10d::gather*": "no kernel yet"})
    {'c10d::gather_': 'no kernel yet', 'c10d::gather_into_tensor_': 'no kernel yet'}
    """
    for pattern, reason in reasons.items():
        must_match(pattern)
        if not reason.strip():
            raise CallError(f"the expected failure of {pattern} has no reason")
    found = ((op, [why for pattern, why in reasons.items() if _matches(op, [pattern])]) for op in OPS)
    return {op: why[0] for op, why in found if why}


def expected_failures_in(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (op or pattern, reason) of each line "ID=REASON"; empty lines and those with a "#" in front say nothing.

    >>> [*expected_failures_in(["# not yet", "c10d::gather_ = no kernel"])]
    [('c10d::gather_', 'no kernel')]
    """
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            op, equals, reason = line.partition("=")
            if not equals:
                raise CallError(f"{line.strip()!r} should be ID=REASON, such as 'c10d::gather_=no kernel yet'")
            yield op.strip(), reason.strip()


def _matches(op: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(op, pattern) for pattern in patterns)


def _ids_of(op: str, table: str | None) -> set[str]:
    try:
        row = lookup(op)
    except UnknownOpError:
        return set()
    limits = table_of(table).limits if table else ()
    return {*row.rule.constraints, *(limit.id for limit in limits if holds_for(limit, row))}

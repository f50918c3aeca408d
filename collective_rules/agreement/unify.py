"""Names that several ranks bind: a name with different values becomes a finding."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch

from collective_rules.binding.bound import Bound, Key, Slot
from collective_rules.call import UNKNOWN, Call
from collective_rules.finding import ERROR, SEVERITIES, UNDECIDABLE, WARNING, Finding
from collective_rules.messages import compose, ranks_verb, value_text, where_text
from collective_rules.notation import Part, Rest, Size
from collective_rules.ops import Row
from collective_rules.rules import KINDS
from collective_rules.symbols import hint

_MOST_IN_MATRIX, _MOST_OF_LIST = 8, 3
_OUT_OF_STEP = (
    "The ranks stand at different lines of the program, so they are out of step: "
    "look for an earlier call that one side leaves out, or makes too often."
)


@attrs.frozen
class Binding:
    """One rank binds `key` to `value`; `slot` is the tensor that did, if one did. `rank` and `key.ranks` are global."""

    key: Key
    value: Any
    rank: int
    bound: Bound
    slot: Slot | None


def unify(bindings: Iterable[Binding], ranks: frozenset[int]) -> Iterator[Finding]:
    """Yield a finding for every name that the ranks bind to different values, or that only some of `ranks` bind.

    An `UNKNOWN` value disagrees with none. Several pairs of ranks that disagree on one name, as `S[i,j]`, are one
    finding with a matrix.
    """
    by_key: dict[Key, list[Binding]] = {}
    pairs: dict[Key, dict[Key, list[list[Binding]]]] = {}
    named: dict[Any, dict[Key, list[list[Binding]]]] = {}
    for binding in bindings:
        by_key.setdefault(binding.key, []).append(binding)
    for key, bound in by_key.items():
        values: dict[Any, list[Binding]] = {}
        for binding in bound:
            if binding.value is not UNKNOWN:
                values.setdefault(_comparable(binding.value), []).append(binding)
        silent = ranks - {binding.rank for binding in bound}
        if len(values) > 1:
            different = list(values.values())
            if key.is_pair:
                pairs.setdefault(key._replace(ranks=()), {})[key] = different
            else:
                different.sort(key=lambda group: (-len(group), group[0].rank))
                who = tuple(tuple([binding.rank for binding in group]) for group in different)
                named.setdefault((key.name, _severity(different), who), {})[key] = different
        elif values and silent and key.is_shared and key.name != "order":  # an order may be any
            yield _unbound(key, bound[0], silent)
    yield from map(_different, named.values())
    for bad in pairs.values():
        yield _several(bad) if len(bad) > 1 else _different(bad)


def _comparable(value: Any) -> Any:
    """Return `value` as something to compare and hash: a SymInt's hint, or its name where it has none."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_comparable, value))
    if isinstance(value, torch.SymInt):
        number = hint(value)
        return str(value) if number is None else number
    return value if isinstance(value, Hashable) else str(value)


def _is_open(value: Any) -> bool:
    """Return whether only the run will tell the value."""
    if isinstance(value, tuple):
        return any(map(_is_open, value))
    return value is None or (isinstance(value, torch.SymInt) and hint(value) is None)


def _different(bad: Mapping[Key, list[list[Binding]]]) -> Finding:
    """Return the finding that the same ranks disagree on one name, in one or several tensors of a list."""
    key, groups = next(iter(bad.items()))
    groups.sort(key=lambda group: (-len(group), group[0].rank))
    speaker = groups[-1][0]
    names = {str(each): values for each, values in bad.items()}
    shown = [*names][:_MOST_OF_LIST]
    severity = _severity(groups)
    who = f"ranks {key.ranks[0]} and {key.ranks[1]}" if key.is_pair else "ranks"
    verb = "may disagree" if severity == UNDECIDABLE else "disagree"
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return disagreement(
        speaker.bound,
        _constraint_kind(speaker.bound.call.row, key),
        f"{who} {verb} on {', '.join(shown)}{more}",
        rows=[(name, _text_of(group[0]), _where(group)) for name in shown for group in names[name]],
        names={name: _by_rank(values) for name, values in names.items()},
        ranks=odd_ones([[binding.rank for binding in group] for group in groups]),
        sides=[[binding.bound.call for binding in group] for group in groups],
        place=_place(speaker),
        severity=severity,
    )


def _several(bad: Mapping[Key, list[list[Binding]]]) -> Finding:
    """Return the finding that several pairs of ranks disagree on one name."""
    severity = min(map(_severity, bad.values()), key=SEVERITIES.index)
    key, groups = next((key, groups) for key, groups in bad.items() if _severity(groups) == severity)
    speaker = groups[-1][0]
    row, name = speaker.bound.call.row, f"{key._replace(ranks=())}[i,j]"
    verb = "may disagree" if severity == UNDECIDABLE else "disagree"
    in_all = frozenset.intersection(*(frozenset(pair.ranks) for pair in bad))
    ranks = in_all or {rank for pair in bad for rank in pair.ranks}
    sources = dict.fromkeys(each.bound.call.source for group in bad.values() for part in group for each in part)
    lines = [("", line, "") for line in _matrix(name, bad)]
    if any(sources):
        lines.append(("", f"at {', '.join(list(filter(None, sources))[:3])}", ""))
    return disagreement(
        speaker.bound,
        _constraint_kind(row, key),
        f"{len(bad)} pairs of ranks {verb} on {name}: what i sends is not what j expects",
        rows=lines,
        names={str(pair): _by_rank(groups) for pair, groups in bad.items()},
        ranks=tuple(sorted(ranks)),
        place=_place(speaker),
        severity=severity,
    )


def _matrix(name: str, bad: Mapping[Key, list[list[Binding]]]) -> list[str]:
    """Return the lines of a matrix: senders by receivers, with `sent≠expected` for each bad pair."""
    cells: dict[tuple[int, int], str] = {}
    for key, groups in bad.items():
        values = _by_rank(groups)
        cells[key.ranks] = "≠".join(value_text(_shown(values.get(rank, "?"))) for rank in key.ranks)
    senders, receivers = (sorted({pair[side] for pair in cells}) for side in (0, 1))
    table = [[name, *(f"j={j}" for j in receivers[:_MOST_IN_MATRIX])]]
    for i in senders[:_MOST_IN_MATRIX]:
        table.append([f"i={i}", *(cells.get((i, j), ".") for j in receivers[:_MOST_IN_MATRIX])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]
    hidden = len(senders) - _MOST_IN_MATRIX, len(receivers) - _MOST_IN_MATRIX
    if max(hidden) > 0:
        lines.append(f"… and {max(hidden[0], 0)} more senders, {max(hidden[1], 0)} more receivers")
    return lines


def _severity(groups: list[list[Binding]]) -> str:
    if any(_is_open(group[0].value) for group in groups):
        return UNDECIDABLE
    return WARNING if _same_elements(groups[-1][0], groups) else ERROR


def _by_rank(groups: list[list[Binding]]) -> dict[int, Any]:
    return {each.rank: each.value for each in sorted((b for group in groups for b in group), key=lambda b: b.rank)}


def _unbound(key: Key, example: Binding, silent: frozenset[int]) -> Finding:
    """Return the finding that some ranks do not tell a name; `example` is another rank's binding."""
    name = str(key)
    verdict = f"{ranks_verb(silent, 'does')} not tell {name}"
    return disagreement(
        example.bound,
        _constraint_kind(example.bound.call.row, key),
        verdict,
        rows=[(name, value_text(_shown(example.value)), _where([example]))],
        names={name: {example.rank: example.value}},
        ranks=tuple(sorted(silent)),
        place=_place(example),
        severity=UNDECIDABLE,
    )


def odd_ones(groups: list[list[int]]) -> tuple[int, ...]:
    """Return the ranks outside the largest group; all ranks if there is no majority."""
    groups = sorted(groups, key=len, reverse=True)
    majority = len(groups) < 2 or len(groups[0]) > len(groups[1])
    return tuple(sorted(rank for group in groups[1 if majority else 0 :] for rank in group))


def disagreement(
    bound: Bound,
    kind: str,
    verdict: str,
    *,
    rows: list[tuple[str, str, str]],
    names: Mapping[Any, Any],
    ranks: tuple[int, ...],
    sides: list[list[Call]] | None = None,
    place: tuple[Part | None, Size | None] = (None, None),
    severity: str = ERROR,
    advice: str = "",
) -> Finding:
    """Return the finding that several ranks' calls violate one constraint.

    `sides`: the calls of each of the sides that disagree, where all make one collective. `advice`: in place of what is
    said for the kind of constraint.
    """
    row = bound.call.row
    id_ = row.rule.id_of(kind)
    told = KINDS["groups" if row.rule.makes_groups else kind]
    advice = advice or told.between or told.advice
    if sides and not row.rule.point_to_point and _are_apart(sides):
        advice = f"{_OUT_OF_STEP}\nIf these lines are meant to be one collective: {advice[0].lower()}{advice[1:]}"
    message = compose(row, bound.spelling, place, verdict, id_, rows, advice)
    return Finding(id_, severity, message, ranks, names, op=row.op)


def _are_apart(sides: list[list[Call]]) -> bool:
    """Return whether no two sides have a line of the program in common."""
    lines = [{call.source for call in side} for side in sides]
    return all(lines) and not any("" in side for side in lines) and sum(map(len, lines)) == len(set().union(*lines))


def _place(speaker: Binding) -> tuple[Part | None, Size | None]:
    """Return the part and the size of the rule's text that hold the speaker's name."""
    slot = speaker.slot
    if slot is None or not any(slot.part is part for part in speaker.bound.spelling.statement.parts):
        return None, None
    return slot.part, next((size for size in slot.part.sizes if getattr(size, "name", "") == speaker.key.name), None)


def _shown(value: Any) -> Any:
    return value if isinstance(value, tuple) else str(value).removeprefix("torch.")


def _text_of(binding: Binding) -> str:
    """Return the value as messages show it: with the global rank of a root, which the op counts in the group."""
    value, text = binding.value, value_text(_shown(binding.value))
    if binding.key.name == "root" and isinstance(value, int):
        rank = binding.bound.call.group.to_global(value)
        return f"{text}, which is rank {rank}" if rank != value else text
    return text


def _where(group: list[Binding]) -> str:
    return where_text([binding.bound.call for binding in group])


def _constraint_kind(row: Row, key: Key) -> str:
    name = {"length": "lists", "roots": "root"}.get(key.name, key.name)
    if name in ("dtype", "lists", "order", "reduce_op", "root", "tag"):
        return name
    if name in row.rule.agreed:
        return "groups" if row.rule.makes_groups else "argument"
    return "pairs" if key.ranks and "pairs" in row.rule.constraints.values() else "sizes"


def _same_elements(speaker: Binding, groups: list[list[Binding]]) -> bool:
    """Return whether a part that is one `*s` differs in its shape alone, not in its number of elements."""
    slot = speaker.slot
    if slot is None or len(slot.part.sizes) != 1:
        return False
    size = slot.part.sizes[0]
    if not isinstance(size, Rest) or speaker.key.name != size.name:
        return False
    shapes = [_comparable(group[0].value) for group in groups]
    return all(isinstance(n, int) for shape in shapes for n in shape) and len(set(map(math.prod, shapes))) == 1

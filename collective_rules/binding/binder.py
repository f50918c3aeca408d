"""From a `Call` to the names that it binds: the one place where a rule's text meets a call's sizes.

`bind` tries the forms that the op admits and keeps the nearest. `infer`, `check` and `agree` only read the result. It
knows sizes, lists, splits, dtypes and size functions; it does not know layouts, backends or other ranks.

One call, on rank 1 of a group of 4, by `input: d *s -> output: (W d) *s`:

1. The parts that are read. `input` has shape (5, 3): `d` solves 5, so `d = 5`; the rest is `s = (3,)`.
2. `derive`: the names for which the rule has size functions. A function needs the names of step 1, and what is written
   is compared with its result; so it stands between the two. This rule has none.
3. The parts that are written. `output` has shape (21, 3): 21 does not solve `(W d)`, which is a problem ("divides").
   Of (24, 3), `d` is 6 and `unify` finds `d = 5`: a problem ("sizes"). Of (20, 3), all holds.
4. The requirements of the op, in Python: they see all names.

Failure: every problem is kept in `Bound.problems`, and an error of lists ends its part, one of sizes its tensor, and
one that a size function demands this function (`_Stop`, caught in `part`, `promised` and `solve`). Names that are not
bound by then stay unbound, all other tensors are still matched, and what needs an unbound name is left out.

Words: a *part* is one argument in the rule's text, and a *slot* is one tensor of it. A *form* is one text of the rule,
and a *spelling* is that text with the op's own argument names; `behind_of` leads from an op's part to the rule's. A
part is *promised* if its tensor is not given, but its split sizes are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from collective_rules.binding.bound import LENGTH, Bound, Demand, Key, Problem, Slot, walk
from collective_rules.binding.splits import split_sizes
from collective_rules.call import UNKNOWN, Call
from collective_rules.finding import ERROR, WARNING
from collective_rules.notation import GroupSize, Number, Part, Rest, Shares, Size, Splits
from collective_rules.notation.sizes import pairs, solve
from collective_rules.ops import Spelling
from collective_rules.ops.op import EVEN
from collective_rules.rules import Unsolvable
from collective_rules.rules.size_functions import Sizing
from collective_rules.spec import Spec
from collective_rules.symbols import known, same


def bind(call: Call) -> Bound:
    """Bind the names of `call` under the form that fits, or is nearest.

    A form that torch does not promise counts only where no other fits, and it fits without an error.
    """
    return _nearest(call, call.row.spellings)


def bind_as(call: Call, forms: tuple[str, ...]) -> Bound | None:
    """Bind the names of `call` under the nearest of `forms`; None where its op admits none of them."""
    admitted = tuple(spelling for spelling in call.row.spellings if spelling.form.name in forms)
    return _nearest(call, admitted) if admitted else None


def _nearest(call: Call, spellings: tuple[Spelling, ...]) -> Bound:
    tried: list[Bound] = []
    for spelling in spellings:
        if not spelling.documented and tried and not _gives_all(call, spelling):
            continue  # what is left out has the shape that torch documents
        bound = _Binder(call, spelling).run()
        if not bound.problems and spelling.documented:
            return bound
        if not bound.problems:
            bound.problems.append(_unpromised(bound))
        elif not spelling.documented and tried:
            continue
        tried.append(bound)
    return min(tried, key=lambda bound: bound.badness)


def _gives_all(call: Call, spelling: Spelling) -> bool:
    return all(call.arguments.get(part.path.name) is not None for part in spelling.statement.parts)


def _unpromised(bound: Bound) -> Problem:
    """Return the warning that a call fits a form which torch does not promise."""
    verdict = "the shapes fit by their numbers of elements alone, which torch does not document"
    shapes = {f"{slot.label}.shape": slot.spec.shape for slot in bound.slots}
    advice = "The memory is read as the other shape; reshape the tensors if that is not meant."
    return Problem("sizes", verdict, values=shapes, severity=WARNING, advice=advice)


_Values = Mapping[str, Any] | None


class _Stop(Exception):  # noqa: N818 - control flow inside the binder
    """The rest of this part cannot be matched."""


class _Binder:
    def __init__(self, call: Call, spelling: Spelling) -> None:
        self.call = call
        self.bound = Bound(call, spelling)
        self.group_size = call.group.size
        self.entry = call.row.entry

    def run(self) -> Bound:
        statement = self.bound.spelling.statement
        for part in statement.reads:
            self.part(part)
        self.derive()
        read = {part.path.name for part in statement.reads}
        for part in statement.writes:
            if part.path.name not in read:
                self.part(part)
        for requirement in self.entry.requirements:
            self.solve(requirement, None, None)
        return self.bound

    # -- lists

    def part(self, part: Part) -> None:
        if part.root_only and not self.call.is_root and not self.entry.everywhere:
            if part.path.name in self.call.row.in_place:
                return
            value = self.call.arguments.get(part.path.name)
            if part.path.index and value:
                root, rank = self.call.attribute("root"), self.call.group.rank
                verdict = f"{part.path.name} is given on rank {rank}, which is not the root ({root})"
                self.problem("presence", verdict, part)
            return
        value = self.call.arguments.get(part.path.name)
        if value is None:
            self.promised(part)
            return
        if part.root_only and part.path.index and not value:
            self.problem("presence", f"{part.path.name} is empty on the root", part)
            return
        try:
            self.lengths(part, value, part.path.index, part.path.name)
        except _Stop:
            return
        for slot in walk(value, part, part.path.index, None, None):
            self.bound.slots.append(slot)
            self.bound.fitting += not self.bound.problems
            try:
                self.dtype(slot)
                self.match(slot)
            except _Stop:
                continue

    def lengths(self, part: Part, value: Any, index: tuple[str, ...], label: str) -> None:
        if not index:
            if not isinstance(value, Spec):
                self.fail("lists", f"{label} is {value!r}, not a tensor", part)
            return
        length, over = len(value), index[0]
        if over == "i" and self.bound.count is None:
            self.bound.count = self.bound.names[LENGTH] = length
        if over == "i" and not length:
            self.fail("lists", f"{label} is empty", part, advice="Pass at least one tensor.")
        wanted, but, advice = {
            "1": (1, "but takes exactly one", "Pass a list of one."),
            "p": (self.group_size, f"but the group has {self.group_size} ranks", ""),
            "i": (self.bound.count, f"another list {self.bound.count}", "Pass lists of one length."),
        }[over]
        if length != wanted:
            self.fail("lists", f"{label} has {length} elements, {but}", part, advice=advice)
        for place, item in enumerate(value):
            self.lengths(part, item, index[1:], f"{label}[{place}]")

    # -- sizes

    def dtype(self, slot: Slot) -> None:
        rule, dtype = self.call.row.rule, slot.spec.dtype
        behind = self.bound.spelling.behind_of(slot.part)
        fixed = rule.fixed_dtypes.get(behind)
        if dtype is None or "dtype" not in rule.agreed or behind in self.entry.dtypes:
            return
        if fixed is not None:
            if dtype is not fixed:
                self.wrong_dtype(slot, f"must have {_dtype(fixed)}")
            return
        if self.entry.kernel_dtypes and dtype not in self.entry.kernel_dtypes:
            self.wrong_dtype(slot, f"its kernels take only {', '.join(map(_dtype, self.entry.kernel_dtypes))}")
        forms, form = self.entry.complex_forms, self.bound.spelling.form.name
        if forms and dtype.is_complex and form not in forms:
            self.wrong_dtype(slot, f"the op takes complex tensors in the {' or '.join(forms)} form alone, not {form}")
        key = Key("dtype", None if self.bound.spelling.one_dtype else slot.element)
        first = self.bound.names.setdefault(key, dtype)
        origin = self.bound.origins.setdefault(key, slot)
        if first is not dtype:
            self.wrong_dtype(slot, f"{origin.label} has {_dtype(first)}", origin)

    def wrong_dtype(self, slot: Slot, but: str, *others: Slot) -> None:
        verdict = f"{slot.label} has dtype {_dtype(slot.spec.dtype)}, but {but}"
        self.problem("dtype", verdict, slot.part, {each.label: each.spec for each in (*others, slot)})

    def match(self, slot: Slot) -> None:
        part, shape = slot.part, slot.spec.shape
        if shape is None:
            return
        form = self.bound.spelling.form
        if form.flat:
            shape = (*shape[: form.kept], math.prod(shape[form.kept :]))
        least, more = part.dims
        if len(shape) < least or (len(shape) > least and not more):
            kind = "sizes" if "dims" not in self.call.row.rule.constraints.values() else "dims"
            wanted = f"{'at least ' if more else ''}{least}"
            verdict = f"{slot.label} has {_count(len(shape), 'dim')}, but needs {wanted}"
            self.fail(kind, verdict, part, {slot.label + ".shape": shape})
        for size, place in part.places:
            value = shape[place]
            if isinstance(size, Splits):
                self.split(size, value, slot)
                continue
            holds, number = solve(size, value, self.group_size)
            if holds is not True:
                dim = range(len(shape))[place]
                self.demand(holds, self.misfit(size, value, f"dim {dim} of {slot.label}", slot))
            if not isinstance(size, (GroupSize, Number)):
                self.unify(self.bound.key(size, slot.element, slot.rank), number, slot, size)

    def misfit(self, size: Size, value: Any, dim: str, slot: Slot) -> Problem:
        """A dim whose size does not solve `size`."""
        if isinstance(size, Shares):
            verdict = f"{dim} has {value} elements, which is no multiple of W={self.group_size}"
        else:
            meant = f"W={self.group_size}" if isinstance(size, GroupSize) else str(size)
            verdict = f"{dim} has size {value}, but should have {meant}"
        kind = "divides" if isinstance(size, Shares) else "sizes"
        return Problem(kind, verdict, slot.part, self.sizes(slot), size=size)

    def split(self, size: Splits, value: Any, slot: Slot) -> None:
        """Bind the pairs of `size`, whose sum is `value` (None: not known)."""
        rank = self.call.group.rank
        shares = self.shares(size, slot, value)
        for pair, share in zip(pairs(size, rank, self.group_size), shares, strict=bool(shares)):
            self.unify(Key(size.name, None, pair), share, slot, size)

    def shares(self, size: Splits, slot: Slot, value: Any) -> tuple[Any, ...]:
        """Return the split sizes of `size`, checked against `value`; () where they are not known."""
        behind, rank = self.bound.spelling.behind_of(slot.part), self.call.group.rank
        given = split_sizes(self.call, behind)
        if given is UNKNOWN:
            return ()
        if given == EVEN:
            if value is None:
                own = self.bound.names.get(Key(size.name, None, (rank, rank)))
                return (own,) * self.group_size if own is not None else ()
            holds, share = solve(Shares(size.name), value, self.group_size)
            verdict = f"{slot.label} has {value} rows, which is no multiple of W={self.group_size}, and no split sizes"
            self.demand(holds, Problem("divides", verdict, slot.part, self.sizes(slot), size=size))
            return (share,) * self.group_size
        argument = self.entry.splits[behind].argument
        values: dict[str, Any] = {str(argument): given}
        if self.bound.spelling.form.flat and not self.bound.spelling.documented and not self.bound.spelling.form.kept:
            self.fail("splits", f"{argument} splits rows, and not elements", slot.part, values, size=size)
        if len(given) != self.group_size:
            count = _count(len(given), "split size")
            verdict = f"{argument} names {count}, but the group has {self.group_size} ranks"
            self.fail("splits", verdict, slot.part, values, size=size)
        for number in given:
            if known(number < 0):
                verdict = f"{argument} holds a negative number, {number}"
                self.fail("splits", verdict, slot.part, values, size=size)
        if value is not None:
            added = sum(given)
            verdict = f"{argument} sums to {added}, but {slot.label} has {value} rows"
            self.demand(added == value, Problem("splits", verdict, slot.part, values, size=size))
        return tuple(given)

    def promised(self, part: Part) -> None:
        """Bind the split sizes of a tensor that is not given."""
        for size in part.sizes:
            if isinstance(size, Splits):
                with contextlib.suppress(_Stop):
                    self.split(size, None, Slot(part, None, None, Spec(None, None)))

    def sizes(self, slot: Slot) -> dict[str, Any]:
        return {"W": self.group_size, slot.label + ".shape": slot.spec.shape}

    def unify(self, key: Key, value: Any, slot: Slot, size: Size) -> None:
        names, origins = self.bound.names, self.bound.origins
        if key not in names:
            names[key], origins[key] = value, slot
            return
        first, origin = names[key], origins.get(key, slot)
        answer = same(first, value)
        if answer:
            return
        problem = self.clash(key, first, value, origin, slot, size)
        if answer is None:
            pairs = zip(first, value, strict=True) if isinstance(first, tuple) else ((first, value),)
            self.bound.demands += [Demand(a == b, problem) for a, b in pairs]
            return
        self.bound.problems.append(problem)
        if problem.severity == ERROR:
            raise _Stop

    def clash(self, key: Key, first: Any, value: Any, origin: Slot, slot: Slot, size: Size) -> Problem:
        """One name, bound to two values."""
        indexed = key.ranks and "pairs" in self.call.row.rule.constraints.values()
        text = str(key)
        verdict = f"{slot.label} has {text} = {value}, but {origin.label} has {text} = {first}"
        if origin.label == slot.label:
            verdict = f"{slot.label} has both {text} = {first} and {text} = {value}"
        shapes = {origin.label + ".shape": origin.spec.shape, slot.label + ".shape": slot.spec.shape}
        shapes = {name: shape for name, shape in shapes.items() if shape is not None}
        problem = Problem(
            "pairs" if indexed else "sizes", verdict, slot.part, shapes, size=size, names={text: (first, value)}
        )
        if self.entry.exact or not _same_elements(slot, first, value):
            return problem
        advice = "The memory is read as the other shape; reshape one side if that is not meant."
        return attrs.evolve(problem, severity=WARNING, advice=advice)

    # -- size functions

    def derive(self) -> None:
        derived = self.call.row.rule.derived
        statement = self.bound.spelling.statement
        listed = LENGTH not in self.bound.names
        if "length" in derived and listed and self.solve(derived["length"], LENGTH, None):
            self.bound.count = self.bound.names[LENGTH]
        for part in statement.writes:
            for size in part.sizes:
                if isinstance(size, Rest) and size.name in derived:
                    elements = range(self.bound.count or 0) if "i" in part.path.index else (None,)
                    for element in elements:
                        key = self.bound.key(size, element, None)
                        if not self.solve(derived[size.name], key, element):
                            return

    def solve(self, function: Any, key: Key | None, element: int | None) -> bool:
        def require(condition: Any, kind: str, verdict: str) -> None:
            self.demand(condition, Problem(kind, verdict, self.bound.spelling.statement.parts[0]))

        view = _NameView(self.bound.names, element)
        sizing = Sizing(view, self.group_size, self.call.group.rank, element or 0, self.call.arguments, require)
        try:
            value = function(sizing)
        except Unsolvable as error:
            self.problem(error.kind, str(error), self.bound.spelling.statement.parts[0])
            return False
        except (_Stop, _Unbound):
            return False
        if key is not None:
            self.bound.names[key] = value
            self.bound.origins[key] = self.bound.slots[0]
        return True

    # -- problems

    def demand(self, condition: Any, problem: Problem) -> None:
        holds = known(condition)
        if holds is False:
            self.bound.problems.append(problem)
            raise _Stop
        if not isinstance(condition, bool):
            self.bound.demands.append(Demand(condition, problem))

    def problem(self, kind: str, verdict: str, part: Part | None, values: _Values = None, **more: Any) -> None:
        self.bound.problems.append(Problem(kind, verdict, part, values or {}, **more))

    def fail(self, kind: str, verdict: str, part: Part | None, values: _Values = None, **more: Any) -> None:
        self.problem(kind, verdict, part, values, **more)
        raise _Stop


class _Unbound(Exception):  # noqa: N818 - control flow inside the binder
    """A size function asked for a name that this call does not bind."""


class _NameView(Mapping[str, Any]):
    """The bound names as a size function sees them, in one element of a list."""

    def __init__(self, names: Mapping[Key, Any], element: int | None) -> None:
        self.names, self.element = names, element

    def __getitem__(self, name: str) -> Any:
        for key, value in self.names.items():
            if key.name == name and key.element in (None, self.element):
                return value
        raise _Unbound(name)

    def __iter__(self) -> Iterator[str]:
        return iter({key.name for key in self.names})

    def __len__(self) -> int:
        return len({key.name for key in self.names})


def _same_elements(slot: Slot, first: Any, value: Any) -> bool:
    """Whether the whole part is one `*s`, and both shapes have equally many elements."""
    if len(slot.part.sizes) != 1 or not isinstance(first, tuple):
        return False
    return known(math.prod(first) == math.prod(value)) is True


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

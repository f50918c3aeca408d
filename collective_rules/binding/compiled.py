"""The fast path: the usual form of each op, compiled to Python on first use.

A plan handles the plain case alone (contiguous tensors with int sizes, the usual form, nothing wrong) and returns None
for every other call, which `bind` then takes: it gives the same answer, and can say why. The text of a plan is made by
the reader that `bind` uses, `notation.sizes`, which is given pieces of text in place of numbers. An op with a column
that is not named here has no plan.

A plan holds the tables' own names and nothing that a caller passes. Tracebacks and debuggers show its lines.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from collective_rules.binding.attributes import CONDITIONS, fixed_values
from collective_rules.binding.bound import aliased
from collective_rules.binding.splits import meaning, own_share
from collective_rules.call import UNKNOWN, Call
from collective_rules.notation import Name, Part, Rest, Shares, Splits
from collective_rules.notation.sizes import evaluate, solve
from collective_rules.ops import Row
from collective_rules.ops.op import EVEN, Op
from collective_rules.rules import Form, Rule
from collective_rules.spec import Spec

_UNDERSTOOD = {
    Op: "op rule parts forms attributes splits returns also_reads row_scales one_tensor layouts layouts_from overlap "
    "sparse reduce_ops complex_forms elements exact everywhere group_size_ignored meets done since schema",
    Rule: "name title forms constraints volumes oracle source agreed contents direction route one_sided waits",
    Form: "name text",
}
"""The columns that a plan follows, or that change nothing for plain tensors. Any other must have its default."""


@attrs.frozen
class Plan:
    """The fast functions of one op, each of which returns None to give up.

    - `infer`: a call → what `infer` returns.
    - `legal`: a call → its tensors, if it is certainly legal.
    """

    infer: Callable[[Call], dict[str, Any] | None]
    legal: Callable[[Call], list[Spec] | None]


def _give_up(call: Call) -> None:
    """Return None: the plan of an op that has none."""


_NO_PLAN = Plan(_give_up, _give_up)
_PLANS: dict[Row, Plan] = {}


def plan_of(row: Row) -> Plan:
    """Return the plan of `row`, compiled on first use."""
    try:
        return _PLANS[row]
    except KeyError:
        plan = Plan(_compile(row, "infer"), _compile(row, "legal")) if _is_simple(row) else _NO_PLAN
        return _PLANS.setdefault(row, plan)


def _is_simple(row: Row) -> bool:
    spelling = row.spellings[0]
    statement, form = spelling.statement, spelling.form
    sizes = {side: {s for part in getattr(statement, side) for s in part.sizes} for side in ("reads", "writes")}
    named = {side: {s.name for s in each if isinstance(s, _NAMED)} for side, each in sizes.items()}
    listed = [part for part in statement.parts if "i" in part.path.index]
    varying = [s.name for s in sizes["reads"] | sizes["writes"] if isinstance(s, (Name, Rest))]
    return (
        bool(statement.parts)
        and not any(part.root_only for part in statement.parts)
        and all(_is_understood(table, record) for table, record in ((Op, row.entry), (Rule, row.rule), (Form, form)))
        and len(varying) == len(set(varying))  # a name has one index, which is the same on both sides
        and (not statement.reads or named["writes"] <= named["reads"])
        and (not listed or (listed[0] in statement.reads and listed[0].path.index[0] == "i"))
    )


_NAMED = (Name, Shares, Rest, Splits)


def _is_understood(table: type, record: Any) -> bool:
    """Whether the columns of `record` that a plan does not follow have their defaults."""
    for column in attrs.fields(type(record)):
        if column.name not in _UNDERSTOOD[table].split():
            default = getattr(column.default, "factory", lambda column=column: column.default)()
            if getattr(record, column.name) != default:
                return False
    return True


def _compile(row: Row, function: str) -> Callable[[Call], Any]:
    space = {
        "Spec": Spec,
        "UNKNOWN": UNKNOWN,
        "aliased": aliased,
        "own_share": own_share,
        **{f"column_{column.argument}": column for column in row.entry.splits.values()},
        "may_share_memory": _may_share_memory,
        **fixed_values(row),
    }
    source, file = _Writer(row, infers=function == "infer").source(), f"<collective_rules: {function} of {row.op}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), space)  # our own text, made from the tables
    compiled: Callable[[Call], Any] = space["plan"]
    return compiled


def _may_share_memory(specs: list[Spec]) -> bool:
    """Return whether any two may lie in one allocation: then it takes a closer look."""
    seen = {spec.memory.storage if spec.memory is not None else id(spec) for spec in specs}
    return len(seen) < len(specs)


class _Text:
    """A piece of a plan's text, in place of a number."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __mod__(self, other: Any) -> _Text:
        return _Text(f"{self} % {other}")

    def __floordiv__(self, other: Any) -> _Text:
        return _Text(f"{self} // {other}")

    def __mul__(self, other: Any) -> _Text:
        return _Text(f"{self} * {other}")

    def __eq__(self, other: object) -> Any:
        return _Text(f"{self} == {other}")

    __hash__ = None  # type: ignore[assignment]  # it is compared in the plan, not here


_W = _Text("W")


class _Writer:
    """Writes the text of one function. Its methods yield lines, and remember which names are bound by then."""

    def __init__(self, row: Row, *, infers: bool) -> None:
        self.row, self.infers = row, infers
        self.spelling = row.spellings[0]
        self.statement = self.spelling.statement
        self.read = {part.path.name for part in self.statement.reads}
        self.lists = [part for part in self.statement.parts if "i" in part.path.index]
        made = any(part.path.name not in self.read for part in self.statement.writes)
        self.keeps_specs = not infers or made or any(output.kind == "empty" for output in row.returns)
        self.bound: set[str] = set()
        of_lists = {name for part in self.lists for name in self.names(part)}
        shared = {f"_{name}" for name in self.spelling.shared} | ({"t"} if self.spelling.one_dtype else set())
        self.per_element = of_lists - shared

    def source(self) -> str:
        return "def plan(call):\n" + "".join(f"    {line}\n" for line in self.lines())

    def lines(self) -> Iterator[str]:
        yield "a = call.arguments"
        yield "W = call.group.size"
        yield "r = call.group.rank"
        if self.keeps_specs:
            yield "specs = []"
        for attribute, argument in self.row.entry.attributes.items():
            if attribute in CONDITIONS:
                yield f"value = a[{argument!r}]"
                yield f"if value is None or value is UNKNOWN or not ({CONDITIONS[attribute]}): return None"
        if self.lists:
            yield f"n = len(a[{self.lists[0].path.name!r}])"
            yield "if not n: return None"
        for part in self.statement.reads:
            yield f"v = a[{part.path.name!r}]"
            yield from self.tensors(part)
        items = []
        for number, part in enumerate(self.statement.writes):
            yield from self.written(part, f"out{number}")
            items.append(f"{part.path.name!r}: out{number}")
        if self.infers:
            yield f"return {{{', '.join([*items, *self.returned()])}}}"
        else:
            yield "if len(specs) > 1 and may_share_memory(specs): return None"
            yield "return specs"

    def names(self, part: Part) -> set[str]:
        """Return the variables that `part` binds: `t` for the dtype, and one for each name in its sizes."""
        dtype = {"t"} if "dtype" in self.row.rule.agreed else set()
        return dtype | {f"_{size.name}" for size in part.sizes if isinstance(size, _NAMED)}

    def value_of(self, variable: str) -> str:
        return f"{variable}[i]" if variable in self.per_element else variable

    # -- tensors that are given

    def tensors(self, part: Part) -> Iterator[str]:
        """Match `v`, the argument that plays `part`."""
        if set(part.path.index) & {"i", "p"}:
            for variable in sorted(self.names(part) - self.bound):
                yield f"{variable} = {'[None] * n' if variable in self.per_element else 'None'}"
        yield from self.walk(part, part.path.index, "v")

    def walk(self, part: Part, index: tuple[str, ...], value: str) -> Iterator[str]:
        if not index:
            yield from self.tensor(part, value)
            return
        inner = f"{value}_{index[0]}"
        length = {"1": "1", "p": "W", "i": "n"}[index[0]]
        yield f"if len({value}) != {length}: return None"
        if index[0] == "1":
            yield f"{inner} = {value}[0]"
            yield from self.walk(part, index[1:], inner)
            return
        yield f"for i, {inner} in enumerate({value}):" if index[0] == "i" else f"for {inner} in {value}:"
        for line in self.walk(part, index[1:], inner):
            yield f"    {line}"

    def tensor(self, part: Part, value: str) -> Iterator[str]:
        yield f"if {value} is None or not {value}.plain: return None"
        if self.keeps_specs:
            yield f"specs.append({value})"
        yield f"s = {value}.shape"
        if "dtype" in self.row.rule.agreed:
            yield from self.unify("t", f"{value}.dtype", part, "is not")
        least, more = part.dims
        if least or not more:
            yield f"if len(s) {'<' if more else '!='} {least}: return None"
        for size, place in part.places:
            at = f"s[{place}]"
            if isinstance(place, slice):
                at = f"s[{place.start}:{'' if place.stop is None else place.stop}]" if least else "s"
            if isinstance(size, Splits):
                yield from self.own_share(part, at, None)
                at = "w[0]"
            condition, number = solve(size, _Text(at), _W)
            if condition is not True:
                yield f"if not ({condition}): return None"
            if number is not None and isinstance(size, _NAMED):
                yield from self.unify(f"_{size.name}", number, part)

    def unify(self, variable: str, value: Any, part: Part, differs: str = "!=") -> Iterator[str]:
        """Bind a variable, or compare it where it is bound; in a loop, the first turn binds."""
        target = self.value_of(variable)
        if variable in self.bound:
            yield f"if {target} {differs} {value}: return None"
            return
        self.bound.add(variable)
        if "p" in part.path.index or ("i" in part.path.index and target == variable):
            yield f"if {target} is None: {target} = {value}"
            yield f"elif {target} {differs} {value}: return None"
        else:
            yield f"{target} = {value}"

    def own_share(self, part: Part, rows: Any, own: Any) -> Iterator[str]:
        column = self.row.entry.splits[self.spelling.behind_of(part)]
        argument = column.argument
        given = f"a[{argument!r}]" if argument else None
        even = next(value for value in ((), None) if meaning(value, column, 1) == EVEN)
        quick = "" if rows is None else f"({rows} // W, {rows}) if {given} == {even} and not {rows} % W else "
        yield f"w = {quick}own_share({given}, column_{argument}, W, r, {rows}, {own})"
        yield "if w is None: return None"

    # -- results

    def written(self, part: Part, result: str) -> Iterator[str]:
        """Match a written argument where it is given, and make the result of `infer`."""
        name = part.path.name
        alias = [f"{result} = aliased(a[{name!r}], {name!r})"] if self.infers else []
        if name in self.read:
            yield from alias
        elif name in self.row.fresh:
            yield from self.made(part, result)
        else:
            yield f"v = a.get({name!r})"
            if self.infers and self.read:
                yield "if v is None:"
                yield from (f"    {line}" for line in self.made(part, result))
                yield "else:"
                yield from (f"    {line}" for line in (*self.tensors(part), *alias))
            else:
                if part.path.index:
                    yield "if v is None: return None"
                yield from (*self.tensors(part), *alias)

    def made(self, part: Part, result: str) -> Iterator[str]:
        """Make what is not given from the bound names; its split sizes must fit what is read."""
        for size in part.sizes:
            if isinstance(size, Splits):
                yield from self.own_share(part, None, f"_{size.name}")
        if self.infers:
            yield f"{result} = {self.fresh(part, part.path.index)}"

    def fresh(self, part: Part, index: tuple[str, ...]) -> str:
        if index:
            inner = self.fresh(part, index[1:])
            loops = {"p": "for _ in range(W)", "i": "for i in range(n)"}
            return f"({inner},)" if index[0] == "1" else f"tuple([{inner} {loops[index[0]]}])"
        shape = evaluate(part.sizes, _W, self.text_of) or ()
        text = f"({''.join(f'{each}, ' for each in shape)})"
        if len(shape) == 1 and isinstance(part.sizes[0], Rest):
            text = str(shape[0]).removeprefix("*")
        alias = "" if part.path.name in self.row.fresh else f", alias={part.path.name!r}"
        return f"Spec({text}, {self.value_of('t')}, None, specs[0].device{alias})"

    def text_of(self, size: Name | Shares | Splits | Rest) -> Any:
        value = self.value_of(f"_{size.name}")
        if isinstance(size, Rest):
            return (_Text(f"*{value}"),)
        return _Text("w[1]" if isinstance(size, Splits) else value)

    def returned(self) -> Iterator[str]:
        """Yield what is returned, but not written."""
        written = {part.path.name for part in self.statement.writes}
        for output in self.row.returns:
            if output.kind == "argument" and output.name not in written:
                yield f"{output.name!r}: aliased(a[{output.name!r}], {output.name!r})"
            elif output.kind == "empty":
                yield f"{output.name!r}: Spec((0,), specs[0].dtype, None, specs[0].device)"

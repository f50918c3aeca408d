"""The fast path: each op's usual form, compiled to Python on first use.

A plan handles the plain case alone (contiguous tensors with int sizes, the usual form, nothing wrong) and returns None
for every other, which `bind` then takes: it gives the same answer, and can say why. Plans are made from the same
statement that `bind` interprets; a property test compares the two. A statement with size functions, roots, flat forms
or a batch gets no plan.

What is compiled is made of the tables' own names and of nothing that a caller passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs

from collective_rules.binding.attributes import REDUCE_OPS, TAGS
from collective_rules.call import UNKNOWN, Call
from collective_rules.notation import GroupSize, Name, Number, Part, Rest, Shares, Splits
from collective_rules.ops import Row
from collective_rules.ops.op import EVEN, SplitSizes
from collective_rules.spec import Spec

__all__ = ["Plan", "plan_of"]


@attrs.frozen
class Plan:
    """The fast functions of one op, each None where the op is not plain enough.

    - `infer`: a call → what `infer` returns, or None: ask `bind`.
    - `legal`: a call → its tensors, if it is certainly legal, or None: ask `bind`.
    """

    infer: Callable[[Call], dict[str, Any] | None]
    legal: Callable[[Call], list[Spec] | None]


def _ask(call: Call) -> None:
    """The plan of an op that has none."""


_NO_PLAN = Plan(_ask, _ask)
_PLANS: dict[Row, Plan] = {}


def plan_of(row: Row) -> Plan:
    """Return the plan of `row`, compiled on first use."""
    try:
        return _PLANS[row]
    except KeyError:
        plan = _compile(row) if _is_simple(row) else _NO_PLAN
        return _PLANS.setdefault(row, plan)


def _is_simple(row: Row) -> bool:
    entry, rule, spelling = row.entry, row.rule, row.spellings[0]
    parts = spelling.statement.parts
    special = (
        entry.batch
        or entry.demands
        or entry.kernel_dtypes
        or entry.promotes
        or entry.omits
        or entry.dtypes
        or entry.strides
        or entry.own
        or entry.scratch
    )
    indexed: dict[str, set[tuple[str, ...]]] = {}
    for part in parts:
        for size in part.sizes:
            if isinstance(size, (Name, Rest)):
                indexed.setdefault(size.name, set()).add(size.index)
    one_index = all(len(indices) == 1 for indices in indexed.values())
    rooted = any(part.root_only for part in parts)
    return bool(parts) and not (
        special or rooted or rule.derived or rule.fixed_dtypes or spelling.form.flat or not one_index
    )


def _compile(row: Row) -> Plan:
    space: dict[str, Any] = {
        "Spec": Spec,
        "shared": _share_memory,
        "REDUCE_OPS": REDUCE_OPS,
        "UNKNOWN": UNKNOWN,
        "aliased": _aliased,
        "symbolic": _symbolic,
    }
    for name, writer in (("legal", _Writer(row, infers=False)), ("infer", _Writer(row, infers=True))):
        code = compile(writer.source(name), f"<plan of {row.op}: {name}>", "exec")
        exec(code, space)  # our own text, made from the tables
    return Plan(space["infer"], space["legal"])


def _share_memory(specs: list[Spec]) -> bool:
    """Whether any two may lie in one allocation: then it takes a closer look."""
    seen = set()
    for spec in specs:
        at = spec.memory.storage if spec.memory is not None else id(spec)
        if at in seen:
            return True
        seen.add(at)
    return False


def _symbolic(numbers: tuple[Any, ...]) -> bool:
    return any(type(number) is not int for number in numbers)


def _aliased(spec: Spec, name: str) -> Spec:
    return Spec(spec.shape, spec.dtype, None, spec.device, memory=spec.memory, alias=name)


class _Writer:
    """Writes the source of one fast function."""

    def __init__(self, row: Row, *, infers: bool) -> None:
        self.row, self.infers = row, infers
        self.spelling = row.spellings[0]
        self.lines: list[str] = []
        self.depth = 1
        self.bound: set[str] = set()
        self.loops: list[tuple[str, int, int]] = []  # index, line and depth at which each open loop begins

    def source(self, name: str) -> str:
        statement = self.spelling.statement
        read = {part.path.name for part in statement.reads}
        self.add("a = call.arguments", "W = call.group.size", "r = call.group.rank", "specs = []")
        self.attributes()
        for part in statement.reads:
            self.read(part)
        written = [part for part in statement.writes if part.path.name not in read]
        if not self.infers:
            for part in written:
                self.given(part)
            self.add("if len(specs) > 1 and shared(specs): return None", "return specs")
        else:
            self.results(statement.writes, written)
        return "\n".join([f"def {name}(call):", *self.lines])

    def add(self, *lines: str) -> None:
        self.lines += ["    " * self.depth + line for line in lines]

    def give_up_if(self, condition: str) -> None:
        self.add(f"if {condition}: return None")

    # -- arguments that are no tensors

    def attributes(self) -> None:
        attributes = self.row.entry.attributes
        checks = {
            "group_size": "{0} != W",
            "root": "{0} is None or not 0 <= {0} < W",  # a recording need not tell it
            "root_tensor": "{0} != 0",
            "reduce_op": "{0} not in "
            + (repr(self.row.entry.reduce_ops) if self.row.entry.reduce_ops else "REDUCE_OPS"),
            "peer": f"{{0}} is None or not 0 <= {{0}} < W{' or {0} == r' if self.row.rule.point_to_point else ''}",
            "tag": f"{{0}} is None or not 0 <= {{0}} < {TAGS}",
        }
        for attribute, argument in attributes.items():
            if attribute in checks:
                value = f"a[{argument!r}]"
                self.give_up_if(f"{value} is UNKNOWN or {checks[attribute].format(value)}")

    # -- tensors that are given

    def read(self, part: Part) -> None:
        self.add(f"v = a[{part.path.name!r}]")
        self.tensors(part, part.path.index)

    def given(self, part: Part) -> None:
        """Match a written argument, which may have been left out."""
        if part.path.name in self.row.fresh:
            if any(isinstance(size, Splits) for size in part.sizes):
                self.promised(part)
            return
        self.add(f"v = a.get({part.path.name!r})")
        self.give_up_if("v is None")
        self.tensors(part, part.path.index)

    def tensors(self, part: Part, index: tuple[str, ...], value: str = "v") -> None:
        """Walk the lists of one argument down to its tensors."""
        if not index:
            self.tensor(part, value)
            return
        inner = f"{value}{index[0] if index[0] != '1' else '0'}"
        if index[0] == "1":
            self.give_up_if(f"len({value}) != 1")
            self.add(f"{inner} = {value}[0]")
            self.tensors(part, index[1:], inner)
            return
        if index[0] == "p":
            self.give_up_if(f"len({value}) != W")
        else:
            self.elements(f"len({value})")
        self.loops.append((index[0], len(self.lines), self.depth))
        self.add(f"for {inner} in {value}:" if index[0] == "p" else f"for i, {inner} in enumerate({value}):")
        self.depth += 1
        self.tensors(part, index[1:], inner)
        self.depth -= 1
        self.loops.pop()

    def elements(self, length: str) -> None:
        if "n" in self.bound:
            self.give_up_if(f"{length} != n")
            return
        self.bound.add("n")
        self.add(f"n = {length}")
        self.give_up_if("not n")
        for name in dict.fromkeys(self.per_element()):
            self.add(f"{name} = [None] * n")

    def per_element(self) -> Iterator[str]:
        """The variables that have a value for each element of a list."""
        for part in self.spelling.statement.parts:
            if "i" in part.path.index:
                for size in part.sizes:
                    if isinstance(size, (Name, Shares, Rest)) and size.name not in self.spelling.shared:
                        yield _variable(size.name)
        if not self.spelling.one_dtype:
            yield "t"

    def tensor(self, part: Part, value: str) -> None:
        self.give_up_if(f"{value} is None or not {value}.plain")
        self.add(f"specs.append({value})", f"s = {value}.shape")
        in_list = "i" in part.path.index
        if "dtype" in self.row.rule.agreed:
            self.unify("t", f"{value}.dtype", in_list and not self.spelling.one_dtype, same="is not")
        self.sizes(part, in_list)

    def sizes(self, part: Part, in_list: bool) -> None:
        rest = next((place for place, size in enumerate(part.sizes) if isinstance(size, Rest)), None)
        fixed = len(part.sizes) - (rest is not None)
        if rest is None:
            self.give_up_if(f"len(s) != {fixed}")
        elif fixed:
            self.give_up_if(f"len(s) < {fixed}")
        for place, size in enumerate(part.sizes):
            each = in_list and getattr(size, "name", "") not in self.spelling.shared
            at = f"s[{place if rest is None or place <= rest else place - len(part.sizes)}]"
            if isinstance(size, Rest):
                after = len(part.sizes) - 1 - place
                span = f"s[{place or ''}:{-after or ''}]" if fixed else "s"
                self.unify(_variable(size.name), span, each)
            elif isinstance(size, Name):
                self.unify(_variable(size.name), at, each)
            elif isinstance(size, (GroupSize, Number)):
                self.give_up_if(f"{at} != {size}")
            elif isinstance(size, Shares):
                self.give_up_if(f"{at} % W")
                self.unify(_variable(size.name), f"{at} // W", each)
            else:
                self.splits(part, size, at)

    def unify(self, variable: str, value: str, each: bool, same: str = "!=") -> None:
        """Bind a variable, or compare it where it is bound; inside a loop, the first turn binds."""
        target = f"{variable}[i]" if each else variable
        if variable in self.bound:
            self.give_up_if(f"{target} {same} {value}")
            return
        self.bound.add(variable)
        repeats = [loop for loop in self.loops if loop[0] == "p"] if each else self.loops
        if not repeats:
            self.add(f"{target} = {value}")
            return
        if not each:
            _, line, depth = self.loops[0]
            self.lines.insert(line, "    " * depth + f"{variable} = None")
            self.loops = [(index, start + 1, depth) for index, start, depth in self.loops]
        self.add(f"if {target} is None: {target} = {value}", f"elif {target} {same} {value}: return None")

    # -- split sizes

    def splits(self, part: Part, size: Splits, at: str) -> None:
        column = self.column(part)
        own = f"own_{size.name}"
        given = f"a[{column.argument!r}]" if column.argument else "()"
        self.add(f"g = {given}")
        self.give_up_if("g is UNKNOWN")
        self.add("if g:")
        self.depth += 1
        self.give_up_if(f"len(g) != W or symbolic(g) or min(g) < 0 or sum(g) != {at}")
        self.add("w = g[r]")
        self.depth -= 1
        self.add("else:")
        self.depth += 1
        self.give_up_if(f"{at} % W")
        self.add(f"w = {at} // W" if column.empty == EVEN else f"w = {at} // W if g is None else 0")
        self.depth -= 1
        self.unify(own, "w", False)

    def promised(self, part: Part) -> None:
        """Bind the split sizes of a fresh output."""
        size = next(size for size in part.sizes if isinstance(size, Splits))
        column = self.column(part)
        self.add(f"g = a[{column.argument!r}]")
        self.give_up_if("g is UNKNOWN")
        if column.empty != EVEN:
            self.give_up_if("g is not None and not g")
        self.add("if g:")
        self.depth += 1
        self.give_up_if(f"len(g) != W or symbolic(g) or min(g) < 0 or g[r] != own_{size.name}")
        self.depth -= 1

    def column(self, part: Part) -> SplitSizes:
        return self.row.entry.splits[self.spelling.behind_of(part)]

    # -- results

    def results(self, writes: tuple[Part, ...], written: list[Part]) -> None:
        items = []
        for number, part in enumerate(writes):
            name, variable = part.path.name, f"out{number}"
            if part in written:
                if any(isinstance(size, Splits) for size in part.sizes):
                    self.promised(part)
                self.result(part, variable)
            else:
                self.add(f"v = a[{name!r}]", f"{variable} = {self.alias(part, part.path.index, 'v')}")
            items.append(f"{name!r}: {variable}")
        self.returned(items, {part.path.name for part in writes})
        self.add(f"return {{{', '.join(items)}}}")

    def result(self, part: Part, variable: str) -> None:
        name = part.path.name
        if name in self.row.fresh:
            self.add(f"{variable} = {self.fresh(part, part.path.index)}")
            return
        self.add(f"v = a.get({name!r})")
        if not self.spelling.statement.reads:  # nothing else binds the names
            self.give_up_if("v is None")
            self.tensors(part, part.path.index)
            self.add(f"{variable} = {self.alias(part, part.path.index, 'v')}")
            return
        self.add("if v is None:")
        self.depth += 1
        self.add(f"{variable} = {self.fresh(part, part.path.index)}")
        self.depth -= 1
        self.add("else:")
        self.depth += 1
        self.tensors(part, part.path.index)
        self.add(f"{variable} = {self.alias(part, part.path.index, 'v')}")
        self.depth -= 1

    def returned(self, items: list[str], known: set[str]) -> None:
        for output in self.row.returns:
            if output.kind == "argument" and output.name not in known:
                part = next(part for part in self.spelling.statement.parts if part.path.name == output.name)
                items.append(f"{output.name!r}: {self.alias(part, part.path.index, f'a[{output.name!r}]')}")
            elif output.kind == "empty":
                items.append(f"{output.name!r}: Spec((0,), t, None, specs[0].device)")

    def alias(self, part: Part, index: tuple[str, ...], value: str) -> str:
        if not index:
            return f"aliased({value}, {part.path.name!r})"
        inner = f"{value[0] if value[0] == 'v' else 'x'}_{len(index)}"
        return f"tuple([{self.alias(part, index[1:], inner)} for {inner} in {value}])"

    def fresh(self, part: Part, index: tuple[str, ...]) -> str:
        """The expression that makes a part from the bound names."""
        if index:
            inner = self.fresh(part, index[1:])
            return {
                "1": f"({inner},)",
                "p": f"tuple([{inner} for _ in range(W)])",
                "i": f"tuple([{inner} for i in range(n)])",
            }[index[0]]
        in_list = "i" in part.path.index
        dtype = "t[i]" if in_list and not self.spelling.one_dtype else "t"
        alias = "" if part.path.name in self.row.fresh else f", alias={part.path.name!r}"
        return f"Spec({self.shape(part, in_list)}, {dtype}, None, specs[0].device{alias})"

    def shape(self, part: Part, in_list: bool) -> str:
        terms = []
        for size in part.sizes:
            variable = _variable(getattr(size, "name", ""))
            if in_list and getattr(size, "name", "") not in self.spelling.shared:
                variable += "[i]"
            if isinstance(size, Rest):
                terms.append(f"*{variable}")
            elif isinstance(size, Shares):
                terms.append(f"W * {variable}")
            elif isinstance(size, Splits):
                terms.append(f"(sum(g) if g else W * own_{size.name})")
            else:
                terms.append(variable if isinstance(size, Name) else str(size))
        if len(terms) == 1 and terms[0].startswith("*"):
            return terms[0][1:]
        return f"({', '.join(terms)},)"


def _variable(name: str) -> str:
    """The local that holds a bound name; it cannot clash with the writer's own."""
    return f"_{name}"

"""The reference page `docs/rules.md`, drawn from the tables, and the sentences that it shares with the command line.

    python -m collective_rules.reference > docs/rules.md

Knows how to word what a row says, and nothing that a row does not say. The page is the same whichever torch runs it:
what it takes from a schema (the returns) does not change from version to version.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from collective_rules.ops import EXCLUSIONS, GROUP_OPS, OPS, Output, Row, lookup
from collective_rules.ops.op import EVEN, FREE, NEVER, OWN, UP_TO_OWN, Op
from collective_rules.rules import GROUP_RULES, KINDS, RULES, Form, Rule

_INTRODUCTION = """\
# The rules

What every PyTorch collective's sizes must be. This page is drawn from the tables of the package, with

    python -m collective_rules.reference > docs/rules.md

## How to read a rule

A rule is a statement about the whole group: what is read, an arrow, what is written. A bare name is the same number
on every rank, and wherever it is written; only an index makes it vary.

    input: d *s -> output: (W d) *s

On each of the `W` ranks the input has a first dim of `d` elements and whatever dims follow; the output's first dim has
`W` times as many, and the same dims follow.
"""

_NOTATION = (
    ("`W`", "the number of ranks in the group, the group size"),
    ("`d`", "the size of one dim"),
    ("`*s`", "any number of dims, none among them"),
    ("`2`", "a size that is always the same"),
    ("`(W d)`", "one dim of W times `d` elements: the ranks' pieces, one after another"),
    ("`S[r,:]`, `S[:,r]`", "one dim: a row, or a column, of the matrix of split sizes, summed; `S[i,j]` is what rank i "
     "sends to rank j"),
    ("`*s[r]`, `*s[r,p]`, `m[r]`", "sizes that vary with the rank, or with a pair of ranks"),
    ("`r`, `p`, `peer`", "this rank; each rank of the group in turn; the partner of a point-to-point op"),
    ("`outputs[p]`", "a list with one tensor for each rank"),
    ("`tensors[i]`", "a list of any length; every name has a value for each tensor"),
    ("`tensors[1]`", "a list of exactly one"),
    ("`@root`", "on the root alone; elsewhere it is absent, or left alone"),
    ("nothing", "`input: -> …` is a tensor without dims; a side without arguments reads, or writes, no tensor"),
)  # fmt: skip

_AFTER_NOTATION = """\
A rule that has several forms admits each of them; an op names those that it takes, the usual one first. A *flat* form
sees every tensor as one dim of all its elements. One that is *not documented* gets a warning: torch does not promise
it, and some backends refuse it. A constraint's id is the one that messages show. What all ranks must
pass alike stands under *agreed*.

*Sent* is what one rank sends under a bandwidth-optimal algorithm. *S* and *bus factor* are nccl-tests': S divided by
the time is the algorithm bandwidth, and that times the factor the bus bandwidth.

A fresh tensor that an op returns is called `output`, or `outputs` if it is a list. *Since* is the first torch version
that has the op; it is left out for those that 2.13 has.

Layouts, from the laxest to the strictest:
"""

_LAYOUTS = (
    ("any", "copied element by element (an argument without a layout is of this kind)"),
    ("order", "copied too, but a dense tensor keeps its memory order, and all such tensors must have one order"),
    ("sent", "as dense where it goes to another rank or comes from one; what stays on this rank is copied"),
    ("dense", "travels as raw memory: no gaps, no element twice, one order"),
    ("format", "dense, and contiguous or channels_last; another is refused"),
    ("contiguous", "another is refused"),
)

_OVERLAPS = {
    OWN: "Of the tensors that are read, only this rank's own may be written.",
    UP_TO_OWN: "Of the tensors that are read, only those up to this rank's own may be written.",
    NEVER: "No memory that is read may be written.",
}


def summary(function: Callable[..., Any]) -> str:
    """Return the first paragraph of a formula's or size function's docstring, as one line.

    >>> summary(RULES["all_reduce"].volumes.sent)
    '2 (W-1)/W of the buffer: a reduce_scatter, then an all_gather.'
    """
    return " ".join((function.__doc__ or "").partition("\n\n")[0].split())


def returned(output: Output) -> str:
    """Say what one return of an op is."""
    kinds = {"work": "a Work", "fresh": f"{output.name} (fresh)", "empty": f"{output.name} (no data: empty(0))"}
    return kinds.get(output.kind, output.name)


def notes(row: Row) -> Iterator[str]:
    """Yield, as sentences, what the op's row says beyond its rule, its arguments' parts and their layouts.

    >>> list(notes(lookup("_c10d_functional::all_gather_into_tensor_out")))
    ['torch ignores `group_size`.']
    """
    entry = row.entry
    for part, split in entry.splits.items():
        empty = "equal shares" if split.empty == EVEN else "no rows at all"
        if split.argument:
            yield f"`{split.argument}` splits the {part}; an empty list means {empty}."
        else:
            yield f"The {part} is always split evenly."
    if entry.reduce_ops:
        yield f"Of the reduce ops it takes {', '.join(entry.reduce_ops)} alone."
    if entry.overlap != FREE:
        yield _OVERLAPS[entry.overlap]
    if entry.layouts_from > 1:
        yield f"Layouts matter in groups of {entry.layouts_from} ranks or more."
    yield from _more_notes(row)


def _more_notes(row: Row) -> Iterator[str]:
    entry = row.entry
    if entry.one_tensor:
        yield "All tensors of the list have one shape."
    if entry.sparse:
        yield f"It takes tensors of layout {', '.join(entry.sparse)} too."
    for argument in entry.scratch:
        yield f"What `{argument}` holds afterwards is undefined, on ranks where it is no output."
    yield from _kernel_notes(entry)
    for part, argument in entry.dtypes.items():
        yield f"`{argument}` chooses the dtype of the {part}."
    for argument, scale in entry.row_scales.items():
        yield f"`{scale}` travels with `{argument}` where it is one number for each of its rows."
    for part, argument in entry.own.items():
        yield f"This rank's own place in `{part}` is `{argument}` itself."
    if entry.batch is not None:
        kinds = " or ".join(f"`{kind}` (`{op}`)" for kind, op in entry.batch.ops.items())
        yield f"`{entry.batch.kinds}` says what each element is: {kinds}."
    if entry.group_size_ignored:
        yield f"torch ignores `{row.group_size}`."
    for function in dict.fromkeys((*entry.requirements, *entry.promotes.values(), *entry.strides.values())):
        yield summary(function)


def _kernel_notes(entry: Op) -> Iterator[str]:
    if entry.kernel_dtypes:
        yield f"Its kernels take {', '.join(str(dtype).removeprefix('torch.') for dtype in entry.kernel_dtypes)} alone."
    if entry.complex_forms:
        yield f"It takes complex tensors in the {' or '.join(entry.complex_forms)} form alone."
    if entry.exact:
        yield "Its kernels compare shapes, not only the number of elements."
    if entry.everywhere:
        yield "Off the root, too, what the root writes must fit."
    if entry.elements:
        yield f"`{entry.elements}` elements move, however many the tensor has."
    for part, argument in entry.omits.items():
        yield f"With `{argument}=False` the {part} is left out."


def reference() -> str:
    """Return the page, as Markdown."""
    sections = [
        _INTRODUCTION,
        markdown_table(("written", "means"), _NOTATION),
        _AFTER_NOTATION,
        markdown_table(("layout", "the tensor is"), _LAYOUTS),
        "## Contents\n",
        "\n".join([*(_contents()), ""]),
        *(_rule(rule) for rule in (*RULES.values(), *GROUP_RULES.values())),
        "## Ops without a rule\n",
        markdown_table(("op", "why"), ((code(op), prose(reason)) for op, reason in EXCLUSIONS.items())),
    ]
    return "\n".join(sections)


def _contents() -> Iterator[str]:
    for rule in (*RULES.values(), *GROUP_RULES.values()):
        yield f"- [{rule.name}](#{rule.name}): {prose(rule.title)}"
    yield "- What each backend takes less than a rule allows: [backends.md](backends.md)"
    yield "- [Ops without a rule](#ops-without-a-rule)"


def _rule(rule: Rule) -> str:
    rows = [lookup(op) for op, entry in {**OPS, **GROUP_OPS}.items() if entry.rule == rule.name]
    constraints = ((id_, prose(KINDS[kind].says)) for id_, kind in rule.constraints.items())
    blocks = [
        f"## {rule.name}\n",
        f"{prose(rule.title)}\n",
        _forms(rule),
        "\n".join([*(f"- {fact}" for fact in _facts(rule)), ""]),
        markdown_table(("id", "what holds"), constraints),
        markdown_table(("op", "notation", "reads", "writes", "returns", "layouts", "since"), map(_op, rows)),
    ]
    return "\n".join([*blocks, *_besides(rows)])


def _besides(rows: Iterable[Row]) -> Iterator[str]:
    """Yield a list of what rows say beyond their rule, each sentence once, with the ops that it holds for."""
    holds: dict[str, list[str]] = {}
    for row in rows:
        for note in notes(row):
            holds.setdefault(note, []).append(code(row.op))
    if holds:
        yield "\n".join(["Besides:\n", *(f"- {', '.join(ops)}: {prose(note)}" for note, ops in holds.items()), ""])


def _forms(rule: Rule) -> str:
    width = max(len(form.name) for form in rule.forms)
    lines = [f"    {form.name:<{width}}  {form.text}{_besides_text(form)}" for form in rule.forms]
    return "\n".join([*lines, ""])


def _besides_text(form: Form) -> str:
    behind = " behind the first dim" if form.kept else ""
    words = [f"flat{behind}"] * form.flat + ["not documented"] * (not form.documented)
    return f"  ({', '.join(words)})" if words else ""


def _facts(rule: Rule) -> Iterator[str]:
    for name, function in rule.derived.items():
        yield f"`{name}`: {prose(summary(function))}"
    for part, dtype in rule.fixed_dtypes.items():
        yield f"`{part}` is always of dtype {str(dtype).removeprefix('torch.')}."
    if rule.contents == "root":
        yield "Only what the root's input holds counts."
    if rule.one_sided:
        yield "No other rank need take part."
    if not rule.one_sided:
        yield f"Agreed, besides the sizes: {', '.join(map(code, rule.agreed)) or 'nothing'}"
    yield f"Sent: {prose(summary(rule.volumes.sent))}"
    yield f"S: {prose(summary(rule.volumes.buffer))}"
    yield f"Bus factor: {prose(summary(rule.volumes.bus_factor))}"
    yield f"Source: {prose(rule.source)}"


def _op(row: Row) -> tuple[str, ...]:
    several = len(row.spellings) > 1
    notation = "<br>".join(
        code(str(spelling.statement)) + (f" ({spelling.form.name})" if several else "") for spelling in row.spellings
    )
    layouts = (f"`{argument}` {layout}" for argument, layout in row.entry.layouts.items())
    return (
        code(row.op),
        notation,
        ", ".join(map(code, row.reads)),
        ", ".join(map(code, row.writes)),
        ", ".join(prose(returned(output)) for output in row.returns),
        ", ".join(layouts),
        row.entry.since,
    )


def code(text: str) -> str:
    """Return `text` as code."""
    return f"`{text}`"


_SIGNS = re.compile(r"[*<]|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")
"""What Markdown takes for a sign: an underscore inside a word is none."""


def prose(text: str) -> str:
    """Return `text` with the signs outside of its code escaped."""
    pieces = text.split("`")
    pieces[::2] = [_SIGNS.sub(lambda found: "".join(f"\\{c}" for c in found[0]), piece) for piece in pieces[::2]]
    return "`".join(pieces)


def markdown_table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table of Markdown."""
    lines = [columns, tuple("---" for _ in columns), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), ""])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.stdout.buffer.write(reference().encode())

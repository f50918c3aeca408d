"""The page `docs/backends.md`: what each backend takes, drawn from the backends' tables.

    python -m collective_rules.backend_reference > docs/backends.md

Knows how to word a limit, and which letter stands for a column. Of symmetric memory it says nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

from collective_rules.backends import BACKENDS, BackendTable, Limit, limits_of
from collective_rules.backends.columns import CONDITIONS, SCOPES, demands_of, refuses
from collective_rules.backends.limit import CORRUPTS, OVERWRITES
from collective_rules.backends.matching import AS_DOCUMENTED
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.finding import UNDECIDABLE, WARNING
from collective_rules.ops import OPS, Row, lookup
from collective_rules.reference import code, markdown_table, prose

_INTRODUCTION = """\
# Backends

What each backend takes, where that is less than [the rules](rules.md) allow. This page is drawn from the tables of the
package, with

    python -m collective_rules.backend_reference > docs/backends.md

`cr.check(call, backend="nccl")` judges a call by a backend's table, and so do `agree`, `RuleMode`, `guard` and the
`--backend` of the command line. A limit that depends on the backend's version, on the devices or on torch is
undecidable until a `cr.Backend("nccl", version=(2, 27), compute_capability=(9, 0))` tells them.
"""

_LETTERS: Mapping[str, str] = {
    "dtypes": "d",
    "reduces": "r",
    "sparse_reduces": "r",
    "single": "r",
    "layouts": "l",
    "ordered": "l",
    "fresh_strides": "l",
    "forms": "f",
    "exact": "f",
    "divides": "f",
    "splits_with": "f",
    "overlap": "o",
    "most_tensors": "n",
    "one_dtype": "n",
    "promotes": "n",
    "nonempty": "n",
    "to_others": "p",
}
"""Column → the letter that stands for it in the matrix. What devices it takes is said once for each backend."""

_ALL, _NONE, _PERHAPS = "●", "–", "?"

_LEGEND = (
    (_ALL, "all that the rules allow"),
    (_NONE, "no kernel: every call raises"),
    (_PERHAPS, "whether there is a kernel depends on the device, and on how it is set up"),
    ("d", "not every dtype"),
    ("r", "not every reduce op, or not of every dtype, or not of sparse tensors"),
    ("l", "not every layout in memory, or not tensors of several orders of dims"),
    ("f", "not every form of the rule: uneven, stacked, equally many elements in another shape"),
    ("o", "not every overlap of memory that is read with memory that is written"),
    ("n", "not every list: how many tensors, of several dtypes, empty ones"),
    ("p", "no message to the rank itself"),
    (
        "l",
        "where the letter is **bold**, nothing is raised: the result is silently corrupted, or the input overwritten",
    ),
    ("d?", "with a question mark, it depends on what the call does not tell: the version, the device, how shapes fit"),
)

_KINDS: Mapping[str, tuple[torch.dtype, ...]] = {
    "F": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    "I": (torch.int8, torch.uint8, torch.int32, torch.int64),
    "S": (torch.int16,),
    "U": (torch.uint16, torch.uint32, torch.uint64),
    "B": (torch.bool,),
    "C": (torch.complex64, torch.complex128),
    "8": (torch.float8_e4m3fn, torch.float8_e5m2),
}

_ABOUT_DTYPES = """\
`F`: float16, bfloat16, float32 and float64. `I`: int8, uint8, int32 and int64. `S`: int16. `U`: uint16, uint32 and
uint64. `B`: bool. `C`: complex64 and complex128. `8`: float8_e4m3fn and float8_e5m2.

**Bold**: every op that the backend has takes all of these dtypes. Else some ops do, or they take some of these dtypes.
What depends on a version or on the device, and what is taken with a warning alone, counts as taken.
"""

_CORRUPTIONS = """\
## What NCCL does not tell you

Nor the others: what raises no error, and silently corrupts the result or overwrites what it reads. Of the fake
backend's results, none is right but in a group of one.
"""


def backends_page() -> str:
    """Return the page, as Markdown."""
    tables = list(BACKENDS.values())
    sections = [
        _INTRODUCTION,
        markdown_table(("backend", "source", "verified"), map(_origin, tables)),
        "## Ops\n",
        "Ops of torch 2.13. gloo has no symmetric memory; nothing is said of that of the other backends.\n",
        markdown_table(("sign", "the backend takes"), _LEGEND),
        *_matrices(),
        "## Dtypes and reduce ops\n",
        _ABOUT_DTYPES,
        _dtypes(tables),
        *map(_section, tables),
        _CORRUPTIONS,
        *_corruptions(tables),
    ]
    return "\n".join(sections)


def _origin(table: BackendTable) -> tuple[str, str, str]:
    return f"[{table.name}](#what-{table.name}-takes)", prose(table.source), prose(table.verified)


# -- the matrix


def _matrices() -> Iterator[str]:
    """Yield a table of ops by backends for each namespace."""
    rows = [lookup(op) for op in OPS]
    for namespace in dict.fromkeys(row.namespace for row in rows if row.namespace != "symm_mem"):
        own = [row for row in rows if row.namespace == namespace and not row.rule.waits and not row.entry.since]
        yield f"### `{namespace}`\n"
        yield markdown_table(
            ("op", *BACKENDS),
            ((code(row.op.partition("::")[2]), *(_cell(row, name) for name in BACKENDS)) for row in own),
        )


def _cell(row: Row, backend: str) -> str:
    """Return the signs of what the backend limits of an op."""
    limits = limits_of(backend, row)
    takes_tensors = bool(row.spellings[0].statement.parts)
    missing = [limit for limit in limits if limit.missing]
    if missing:
        return _PERHAPS if any(limit.severity == UNDECIDABLE for limit in missing) else _NONE
    letters = dict.fromkeys(_LETTERS.values()) if takes_tensors else ()
    return " ".join(filter(None, (_mark(letter, limits) for letter in letters))) or _ALL


def _mark(letter: str, limits: Sequence[Limit]) -> str:
    """Return the letter as the limits have it: bold where one corrupts, with a question mark where all may depend."""
    own = [limit for limit in limits if any(_LETTERS.get(column) == letter for column in demands_of(limit))]
    if not own:
        return ""
    silent = any(limit.follows in (CORRUPTS, OVERWRITES) for limit in own)
    depends = all(limit.before or limit.severity == UNDECIDABLE for limit in own)
    return (f"**{letter}**" if silent else letter) + ("?" if depends else "")


# -- dtypes


def _dtypes(tables: Sequence[BackendTable]) -> str:
    moving = [row for row in map(lookup, OPS) if _moves(row) and not row.reduce_op]
    reducing = [row for row in map(lookup, OPS) if _moves(row) and row.reduce_op]
    lines = [("nothing is reduced", *(_taken(moving, table.name, "") for table in tables))]
    lines += [(reduce_op, *(_taken(reducing, table.name, reduce_op) for table in tables)) for reduce_op in REDUCE_OPS]
    return markdown_table(("reduce op", *BACKENDS), lines)


def _moves(row: Row) -> bool:
    return row.namespace != "symm_mem" and row.rule.name not in ("barrier", "wait", "batch_p2p") and not row.entry.since


def _taken(rows: Sequence[Row], backend: str, reduce_op: str) -> str:
    """Return the kinds of dtypes that the backend takes, bold where every op takes every dtype of the kind."""
    limits = [
        [limit for limit in limits_of(backend, row) if not limit.before and limit.severity != WARNING]
        for row in rows
        if not reduce_op or reduce_op in (row.entry.reduce_ops or REDUCE_OPS)
    ]
    present = [own for own in limits if not any(limit.missing for limit in own)]
    found = []
    for kind, dtypes in _KINDS.items():
        taken = [not any(refuses(limit, reduce_op, dtype) for limit in own) for own in present for dtype in dtypes]
        found += [f"**{kind}**" if all(taken) else kind] if any(taken) else []
    return " ".join(found) or _NONE


# -- sections


_BUILT_IN = tuple(BACKENDS)
"""Those with a module of their own, whose docstring says what was not looked into."""


def _section(table: BackendTable) -> str:
    columns = ("id", "it takes", "severity", "beyond", "instead", "where")
    return "\n".join(
        [
            f"## What {table.name} takes\n",
            f"Source: {prose(table.source)}; {prose(table.verified)}.\n",
            *_notes(table),
            _matching(table),
            markdown_table(columns, map(limit_row, table.limits)),
        ]
    )


def _notes(table: BackendTable) -> Iterator[str]:
    """Yield what the docstring of the table's module says behind its first line."""
    if table.name in _BUILT_IN:
        text = importlib.import_module(f"collective_rules.backends.{table.name}").__doc__ or ""
        yield from (f"{prose(paragraph.strip())}\n" for paragraph in text.split("\n\n")[1:])


def _matching(table: BackendTable) -> str:
    """Return how the backend brings the ranks' calls together, as a paragraph."""
    matching = table.matching
    if matching == AS_DOCUMENTED:
        return f"Between the ranks, {table.name} is taken to bring calls together as torch documents it.\n"
    tags = "matches the messages of two ranks by their tags"
    if not matching.tags:
        tags = "ignores tags: it matches the messages of two ranks in order"
    said = [f"Between the ranks, {table.name} {tags}."]
    alike = [" and ".join(map(_name, names)) for names in matching.alike]
    if alike:
        said.append(f"It does not tell apart {'; nor '.join(alike)}: their calls meet.")
    if matching.one_form:
        said.append(f"All ranks take the same form of {' and of '.join(map(_name, matching.one_form))}.")
    if matching.joins:
        said.append(
            "A group's first batch of messages connects all its ranks: each must take part, unless the group "
            "was made with its connections (`cr.Backend(..., eager=True)`)."
        )
    if matching.one_stream:
        said.append("The messages and the collectives of such a group are carried out in the order of the program.")
    return " ".join(said) + "\n"


def _name(op_or_rule: str) -> str:
    return code(op_or_rule) if "::" in op_or_rule else f"[{prose(op_or_rule)}](rules.md#{op_or_rule})"


def limit_row(limit: Limit) -> tuple[str, ...]:
    """Return the cells of a limit."""
    when = [words for words in (condition.words(limit) for condition in CONDITIONS.values()) if words]
    place = _where(limit) + (f" ({', '.join(when)})" if when else "")
    return limit.id, prose(limit.says), limit.severity, limit.follows, prose(limit.advice), place


def _where(limit: Limit) -> str:
    return ", ".join(scope.words(name) for column, scope in SCOPES.items() for name in getattr(limit, column))


def _corruptions(tables: Sequence[BackendTable]) -> Iterator[str]:
    for table in tables:
        silent = [limit for limit in table.limits if limit.follows in (CORRUPTS, OVERWRITES)]
        if silent:
            lines = map(_corruption, silent)
            yield "\n".join([f"### {table.name}\n", *lines, ""])


def _corruption(limit: Limit) -> str:
    return (
        f"- {limit.id}, {_where(limit)}: *{prose(limit.says)}*. Beyond that it {limit.follows}. {prose(limit.advice)}"
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(backends_page().encode())

"""The page of the backends: that it is up to date, complete, and sound Markdown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import collective_rules as cr
from collective_rules.backend_reference import _LETTERS, backends_page
from collective_rules.backends import BACKENDS
from collective_rules.backends.columns import DEMANDS
from collective_rules.backends.limit import CORRUPTS, OVERWRITES

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def page() -> str:
    """The page, as the tables say it now."""
    return backends_page()


def section(page: str, title: str) -> str:
    """What stands under a heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def test_the_page_in_docs_is_the_one_that_the_tables_make(page: str) -> None:
    """A row was changed, and the page was not written anew."""
    if page != (DOCS / "backends.md").read_text(encoding="utf-8"):
        pytest.fail(
            "docs/backends.md is stale; run: python -m collective_rules.backend_reference > docs/backends.md",
            pytrace=False,
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_s_section_lists_every_limit_once(page: str, backend: str) -> None:
    """By the id that messages show, with the table's source and by what it was verified."""
    table, own = BACKENDS[backend], section(page, f"What {backend} takes")
    assert [limit.id for limit in table.limits] == re.findall(r"^\| ([A-Z]+\d+) \|", own, re.MULTILINE)
    assert table.verified in own


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_s_section_says_how_calls_meet(page: str, backend: str) -> None:
    """Each column of its `matching` that is not as torch documents it, and no other."""
    own, matching = section(page, f"What {backend} takes"), BACKENDS[backend].matching
    (said,) = re.findall(r"^Between the ranks, .*$", own, re.MULTILINE)
    told = ("ignores tags", "not tell apart", "same form", "connects all", "order of the program")
    set_ = (not matching.tags, *map(bool, (matching.alike, matching.one_form, matching.joins, matching.one_stream)))
    assert set_ == tuple(words in said for words in told)
    assert all(name in said for names in matching.alike for name in names)


def test_the_matrix_has_a_row_for_each_op(page: str) -> None:
    """In its namespace, with a cell for each backend."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", section(page, "Ops"), re.MULTILINE)
    own = [cr.lookup(op) for op in cr.ops()]
    own = [row for row in own if row.namespace != "symm_mem" and not row.rule.waits and not row.entry.since]
    assert [row.op.partition("::")[2] for row in own] == [name for name, _ in rows]
    assert {len(BACKENDS)} == {cells.count("|") + 1 for _, cells in rows}


@pytest.mark.parametrize(
    ("op", "backend", "cell"),
    [
        ("send", "fake", "●"),
        ("send", "threaded", "–"),
        ("gather_", "hccl", "?"),
        ("alltoall_", "ucc", "**l**"),
        ("barrier", "nccl", "●"),
        ("alltoall_base_", "xccl", "d **f**"),
        ("allgather_", "fake", "f? o?"),
    ],
)
def test_a_cell_says_what_is_limited(page: str, op: str, backend: str, cell: str) -> None:
    """Bold is silent, and a question mark depends."""
    (line,) = re.findall(rf"^\| `{op}` \|(.*)\|$", section(page, "Ops").partition("### `_c10d")[0], re.MULTILINE)
    assert cell == line.split("|")[list(BACKENDS).index(backend)].strip()


def test_every_column_has_a_letter() -> None:
    """But the two that stand for a whole cell, and for the backend's devices."""
    assert DEMANDS.keys() == {*_LETTERS, "missing", "devices"}


def test_every_silent_corruption_is_listed(page: str) -> None:
    """Of each backend, and nothing else."""
    listed = re.findall(r"^- ([A-Z]+\d+), ", section(page, "What NCCL does not tell you"), re.MULTILINE)
    limits = [limit for table in BACKENDS.values() for limit in table.limits]
    assert [limit.id for limit in limits if limit.follows in (CORRUPTS, OVERWRITES)] == listed


def test_every_row_of_a_table_has_as_many_cells_as_its_head(page: str) -> None:
    """Or Markdown would drop cells without a word."""
    tables = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    widths = [{len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} for table in tables]
    assert len(tables) > len(BACKENDS)
    assert [1] * len(tables) == [len(width) for width in widths]


def test_every_link_leads_to_a_section(page: str) -> None:
    """Of this page, or of the rules'."""
    pages = {"": page, "rules.md": (DOCS / "rules.md").read_text(encoding="utf-8")}
    for name, title in re.findall(r"\]\(([^#)]*)#([^)]*)\)", page):
        headings = {line.lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", pages[name], re.MULTILINE)}
        assert title in headings

"""The reference page: that it is up to date, complete, and sound Markdown."""

import re
from pathlib import Path

import pytest

import collective_rules as cr
from collective_rules.reference import notes, reference, returned, summary

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "rules.md"


@pytest.fixture(scope="module")
def page():
    """The page, as the tables say it now."""
    return reference()


def _section(page, title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)[1]


def test_the_page_in_docs_is_the_one_that_the_tables_make(page):
    """A row was changed, and the page was not written anew."""
    written = _PAGE.read_text(encoding="utf-8") if _PAGE.exists() else ""
    if page != written:
        pytest.fail("docs/rules.md is stale; run: python -m collective_rules.reference > docs/rules.md", pytrace=False)


def test_the_page_is_the_same_under_every_torch(page, monkeypatch):
    """It does not tell which torch made it, nor which ops that one has."""
    monkeypatch.setattr("torch.__version__", "9.9.9")

    assert page == reference()
    assert "9.9.9" not in page


@pytest.mark.parametrize("rule", cr.rules().values(), ids=lambda rule: rule.name)
def test_a_rule_s_section_states_all_of_it(page, rule):
    """Its forms as they are written, every constraint, its traffic, and each op that follows it."""
    section = _section(page, rule.name)
    rows = [cr.lookup(op) for op in cr.ops() if cr.lookup(op).rule is rule]
    ids = re.findall(r"^\| ([A-Z]+\d+) \|", section, re.MULTILINE)
    told = [form.text for form in rule.forms] + [f"`{name}`: {summary(size)}" for name, size in rule.derived.items()]
    told += [f"`{spelling.statement}`" for row in rows for spelling in row.spellings]
    told += [f"`{argument}` {layout}" for row in rows for argument, layout in row.entry.layouts.items()]

    assert list(rule.constraints) == ids
    assert [text for text in told if text not in section] == []
    assert [row.op for row in rows] == re.findall(r"^\| `(\w+::\w+)` \|", section, re.MULTILINE)


def test_every_op_without_a_rule_is_listed_with_the_reason(page):
    """Ops and reasons, in the order of the table."""
    assert list(cr.exclusions()) == re.findall(
        r"^\| `(\w+::\w+)` \|", _section(page, "Ops without a rule"), re.MULTILINE
    )


def test_every_row_of_a_table_has_as_many_cells_as_its_head(page):
    """Or Markdown would drop cells without a word."""
    tables = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    widths = [{len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} for table in tables]

    assert len(tables) > 2 * len(cr.rules())
    assert [1] * len(tables) == [len(width) for width in widths]


def test_every_link_leads_to_a_section(page):
    """Links are to headings of this page."""
    headings = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}

    assert set() == set(re.findall(r"\]\(#([^)]*)\)", page)) - headings


def test_signs_of_markdown_are_escaped_outside_of_code(page):
    """`__init__` in a path is not bold."""
    assert "torch/distributed/\\_symmetric_memory/\\_\\_init\\_\\_.py" in page


@pytest.mark.parametrize("op", cr.ops())
def test_notes_are_sentences(op):
    """Each ends in a full stop, and none is said twice."""
    said = list(notes(cr.lookup(op)))

    assert [note for note in said if not note.endswith(".")] == []
    assert len(set(said)) == len(said)


def test_each_kind_of_return_is_said_in_words():
    """A Work, a fresh tensor, an empty one, an argument."""
    ops = ("c10d::_allgather_base_", "_c10d_functional::all_reduce", "_c10d_functional::isend")

    assert [[returned(output) for output in cr.lookup(op).returns] for op in ops] == [
        ["output_tensor", "a Work"],
        ["output (fresh)"],
        ["output (no data: empty(0))"],
    ]

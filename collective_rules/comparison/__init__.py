"""Compares the recordings of several ranks: findings, where each group first parts, the calls of each rank there.

`compare` judges with `agree` and `check`, and knows no file format; `read_all` opens the files. `rehearsal` makes
recordings: it dry-runs a script once for each rank.
"""

from collective_rules.comparison.compare import Comparison, File, compare
from collective_rules.comparison.context import Column, Context, Divergence, Line
from collective_rules.comparison.files import read_all
from collective_rules.comparison.page import page
from collective_rules.comparison.text import as_json, blocks, headline, markdown
from collective_rules.pages import Writer

__all__ = [
    "Column",
    "Comparison",
    "Context",
    "Divergence",
    "File",
    "Line",
    "as_json",
    "blocks",
    "compare",
    "headline",
    "markdown",
    "page",
    "read_all",
    "write",
]

write = Writer(page, markdown, as_json)

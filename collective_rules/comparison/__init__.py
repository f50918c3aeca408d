"""The recordings of several ranks side by side: what is wrong, where each group first parts, what each rank did then.

`compare` judges with `agree` and `check`, and knows no file format; `read_all` opens the files. `running.rehearse`
makes recordings by dry-running a script once for each rank.
"""

from collective_rules.comparison.compare import Comparison, File, compare
from collective_rules.comparison.context import Column, Context, Divergence, Line
from collective_rules.comparison.files import read_all
from collective_rules.comparison.page import page
from collective_rules.comparison.text import as_json, blocks, headline, markdown
from collective_rules.comparison.writer import must_be_writable, write

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
    "must_be_writable",
    "page",
    "read_all",
    "write",
]

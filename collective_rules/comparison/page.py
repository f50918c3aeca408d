"""A comparison as one page of HTML: nothing is loaded, no script is needed, readable in light and in dark."""

from __future__ import annotations

from collective_rules.comparison.compare import Comparison
from collective_rules.comparison.text import context_title, divergence_title, file_table, finding_text, headline
from collective_rules.pages import render

_MOST_FILES = 2000


def page(comparison: Comparison) -> str:
    """Return the whole page: the findings, where each group first parts, the files; its size has a bound."""
    return render(
        "comparison/page.html",
        title="Comparison of ranks",
        comparison=comparison,
        headline=headline(comparison),
        files=file_table(comparison, _MOST_FILES),
        finding_text=finding_text,
        divergence_title=divergence_title,
        context_title=context_title,
    )

"""The report as Markdown."""

from __future__ import annotations

from collective_rules.ledger import Ledger
from collective_rules.pages.markdown import document, escaped, fenced, table_text
from collective_rules.reports.modules import tree
from collective_rules.reports.sections import findings, group_table, headline, notes, op_table, phase_table


def markdown(ledger: Ledger) -> str:
    """Return the report as Markdown.

    >>> from collective_rules.ledger import Ledger
    >>> print(markdown(Ledger()))
    # Communication
    <BLANKLINE>
    No collective was called.
    <BLANKLINE>
    """
    parts = ["# Communication"]
    count, *texts = findings(ledger) or ("",)
    if count:
        parts += ["## Findings", escaped(count), *map(fenced, texts)]
    if ledger.count:
        parts.append(escaped(headline(ledger)))
        for table in (op_table(ledger), phase_table(ledger), group_table(ledger)):
            parts += [f"## {escaped(table.title)}", table_text(table)]
        parts += ["## By module", fenced(tree(ledger))]
    else:
        parts.append("No collective was called.")
    return document([*parts, *map(escaped, notes(ledger))])

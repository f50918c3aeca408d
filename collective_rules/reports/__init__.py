"""A ledger as a report: blocks for a terminal, Markdown, JSON, and one self-contained page of HTML with plots."""

from collective_rules.pages import Writer
from collective_rules.reports.data import as_json
from collective_rules.reports.markdown import markdown
from collective_rules.reports.modules import tree
from collective_rules.reports.page import page
from collective_rules.reports.sections import blocks

__all__ = ["as_json", "blocks", "markdown", "page", "tree", "write"]

write = Writer(page, markdown, as_json)

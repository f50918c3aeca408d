"""The parts of all reports: one page of HTML, its tables and style, Markdown, wording, and a writer of files.

A report is in the rooms above: `reports` of one rank's ledger, `comparison` of several ranks, `conformance` of a
backend. This room knows none of them.
"""

from collective_rules.pages.html import render
from collective_rules.pages.writer import Writer, must_be_in_folder, must_be_writable, write_text

__all__ = ["Writer", "must_be_in_folder", "must_be_writable", "render", "write_text"]

"""A ledger as a report: blocks for a terminal, Markdown, JSON, and one self-contained page of HTML with plots."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from collective_rules.errors import CollectiveRulesError
from collective_rules.reports.data import as_json
from collective_rules.reports.markdown import markdown
from collective_rules.reports.modules import tree
from collective_rules.reports.page import page
from collective_rules.reports.sections import blocks
from collective_rules.reports.wording import bytes_text

if TYPE_CHECKING:
    from collective_rules.ledger import Ledger

__all__ = ["as_json", "blocks", "bytes_text", "markdown", "must_be_writable", "page", "tree", "write"]


def _json_text(ledger: Ledger) -> str:
    return json.dumps(as_json(ledger), indent=1) + "\n"


_BY_SUFFIX: Mapping[str, Callable[[Ledger], str]] = {".html": page, ".md": markdown, ".json": _json_text}


def must_be_writable(path: str | Path) -> Path:
    """Return `path`; raise `CollectiveRulesError` where `write` would refuse it, before a long run and not after it.

    >>> must_be_writable("report.pdf")
    Traceback (most recent call last):
    collective_rules.errors.CollectiveRulesError: report.pdf: a report ends in .html, .md or .json
    """
    target = Path(path)
    if target.suffix.lower() not in _BY_SUFFIX:
        raise CollectiveRulesError(f"{target}: a report ends in .html, .md or .json")
    if not os.path.isdir(target.parent):
        raise CollectiveRulesError(f"{target}: there is no folder {target.parent}; make it first")
    if os.path.isdir(target):
        raise CollectiveRulesError(f"{target} is a folder; name a file in it")
    if not os.access(target if os.path.exists(target) else target.parent, os.W_OK):
        raise CollectiveRulesError(f"{target} cannot be written: this user may not, or the file system is read-only")
    return target


def write(ledger: Ledger, path: str | Path) -> Path:
    """Write the report to `path`, as its suffix says (.html, .md or .json), and return the path.

    Raises `CollectiveRulesError` for another suffix, and where the file cannot be written.
    """
    target = must_be_writable(path)
    text = _BY_SUFFIX[target.suffix.lower()](ledger)
    try:
        target.write_text(text, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CollectiveRulesError(f"{target} cannot be written: {said}") from error
    return target

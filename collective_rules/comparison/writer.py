"""A comparison as a file: a page of HTML, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from collective_rules.comparison.compare import Comparison
from collective_rules.comparison.page import page
from collective_rules.comparison.text import as_json, markdown
from collective_rules.errors import CollectiveRulesError
from collective_rules.reports import must_be_writable

__all__ = ["must_be_writable", "write"]


def _json_text(found: Comparison) -> str:
    return json.dumps(as_json(found), indent=1) + "\n"


_BY_SUFFIX: Mapping[str, Callable[[Comparison], str]] = {".html": page, ".md": markdown, ".json": _json_text}


def write(found: Comparison, path: str | Path) -> Path:
    """Write the report to `path`, as its suffix says (.html, .md or .json), and return the path.

    Raises `CollectiveRulesError` for another suffix, and where the file cannot be written.
    """
    target = must_be_writable(path)
    try:
        target.write_text(_BY_SUFFIX[target.suffix.lower()](found), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise CollectiveRulesError(f"{target} cannot be written: {error.strerror or error}") from error
    return target

"""Writes reports into files: HTML, Markdown or JSON, by the file's suffix."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs

from collective_rules.errors import CollectiveRulesError

T = TypeVar("T")

_SUFFIXES = (".html", ".md", ".json")


def must_be_writable(path: str | Path) -> Path:
    """Return `path`; raise `CollectiveRulesError` if no report can be written to it, before a long run.

    >>> must_be_writable("report.pdf")
    Traceback (most recent call last):
    collective_rules.errors.CollectiveRulesError: report.pdf: a report ends in .html, .md or .json
    """
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise CollectiveRulesError(f"{path}: a report ends in .html, .md or .json")
    return must_be_in_folder(path)


def must_be_in_folder(path: str | Path) -> Path:
    """Return `path`; raise `CollectiveRulesError` if no file can be written there."""
    target = Path(path)
    if not os.path.isdir(target.parent):
        raise CollectiveRulesError(f"{target}: there is no folder {target.parent}; make it first")
    if os.path.isdir(target):
        raise CollectiveRulesError(f"{target} is a folder; name a file in it")
    if not os.access(target if os.path.exists(target) else target.parent, os.W_OK):
        raise CollectiveRulesError(f"{target} cannot be written: this user may not, or the file system is read-only")
    return target


@attrs.frozen
class Writer(Generic[T]):
    """Writes reports of one type: `page` returns the HTML, `markdown` the Markdown, and `data` the JSON."""

    page: Callable[[T], str]
    markdown: Callable[[T], str]
    data: Callable[[T], Any]

    def text(self, report: T, suffix: str) -> str:
        """Return the text of a file with this suffix."""
        if suffix == ".json":
            return json.dumps(self.data(report), indent=1) + "\n"
        return self.page(report) if suffix == ".html" else self.markdown(report)

    def __call__(self, report: T, path: str | Path) -> Path:
        """Write the report to `path` in the format of its suffix (.html, .md or .json), and return the path.

        Raises `CollectiveRulesError` for another suffix, and if the file cannot be written.
        """
        target = must_be_writable(path)
        return write_text(target, self.text(report, target.suffix.lower()))


def write_text(path: str | Path, text: str) -> Path:
    """Write the text to `path`, and return the path; raise `CollectiveRulesError` if that fails."""
    target = must_be_in_folder(path)
    try:
        target.write_text(text, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CollectiveRulesError(f"{target} cannot be written: {reason}") from error
    return target

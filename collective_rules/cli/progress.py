"""Bars of progress on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each stage, if standard error is a terminal; yield a function of stage, done and total."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    import rich.console
    import rich.progress

    columns: tuple[Any, ...] = (
        rich.progress.TextColumn("{task.description:<22}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    tasks: dict[str, Any] = {}
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as progress:

        def watch(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage)
            progress.update(tasks[stage], completed=done, total=total)

        yield watch

"""The options of a precheck: the ranks to run, and how to run them. Only this module validates them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from collective_rules.backends import limits_of
from collective_rules.dryrun.options import DryRunOptions, JobOptions, must_be_whole
from collective_rules.errors import CallError
from collective_rules.messages import ranks_text
from collective_rules.ops import lookup

_LEAST_SECONDS, _MOST_SECONDS = 0.1, 10**8
_MOST_CALLS = 5_000_000


def _tuple(ranks: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if ranks is None else tuple(dict.fromkeys(ranks))


def _tuples(classes: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(dict.fromkeys(each)) for each in classes)


@attrs.frozen(kw_only=True)
class PrecheckOptions(JobOptions):
    """The options of a script's dry runs as several ranks, which are compared.

    - `ranks`: the ranks that are compared; all, where it is None.
    - `alike`: classes of ranks that do the same: of each class only the first of the `ranks` is run.
    - `backend`: each call is checked against this backend's limits, too.
    - `deadline`: the seconds that a rank may take. `jobs`: the ranks that run side by side; None for one a core.
    - `context`: the calls to show before and after the place where ranks part.

    Raises `CollectiveRulesError` for values that do not fit; of ranks and backends, `CallError`.

    >>> PrecheckOptions(world_size=8, ranks=range(6), alike=[(0, 2, 4), (1, 3)]).representatives
    (0, 1, 5)
    """

    ranks: tuple[int, ...] | None = attrs.field(default=None, converter=_tuple)
    alike: tuple[tuple[int, ...], ...] = attrs.field(default=(), converter=_tuples)
    backend: str | None = None
    deadline: float = 300.0
    jobs: int | None = None
    context: int = 3

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not _LEAST_SECONDS <= self.deadline < _MOST_SECONDS:
            wanted = f"{_LEAST_SECONDS} to {_MOST_SECONDS:,} seconds"
            raise CallError(f"deadline={self.deadline!r}, but should be {wanted}")
        must_be_whole("context", self.context, 0)
        if self.jobs is not None:
            must_be_whole("jobs", self.jobs, 1)
        limits_of(self.backend, lookup("c10d::barrier"))  # refuses an unknown backend
        if self.ranks is not None:
            self._must_be_ranks("ranks", self.ranks)
        seen: set[int] = set()
        for ranks in self.alike:
            self._must_be_ranks("alike", ranks)
            if not seen.isdisjoint(ranks):
                twice = ranks_text(seen.intersection(ranks))
                raise CallError(f"alike: {twice} cannot be in two classes of ranks that do the same")
            seen.update(ranks)

    def _must_be_ranks(self, name: str, ranks: Sequence[int]) -> None:
        if not ranks or not all(0 <= rank < self.world_size for rank in ranks):
            wanted = f"ranks from 0 to {self.world_size - 1}, for world_size={self.world_size}"
            raise CallError(f"{name}={list(ranks)[:8]}, but should be {wanted}")

    @property
    def compared(self) -> Sequence[int]:
        """The ranks that the user asks for."""
        return range(self.world_size) if self.ranks is None else self.ranks

    @property
    def representatives(self) -> tuple[int, ...]:
        """The ranks that are run: the first of each class, and the ranks in no class."""
        class_of = {rank: ranks for ranks in self.alike for rank in ranks}
        first: dict[Any, int] = {}
        for rank in self.compared:
            first.setdefault(class_of.get(rank, rank), rank)
        return tuple(first.values())

    def of_rank(self, rank: int) -> DryRunOptions:
        """Return the options of one rank's dry run."""
        shared = {field.name: getattr(self, field.name) for field in attrs.fields(JobOptions)}
        return DryRunOptions(rank=rank, keep=_MOST_CALLS, **shared)

"""The options of a dry run. They are validated here, and nowhere else."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from collective_rules.errors import CollectiveRulesError

_NODE, _MOST_RANKS = 8, 2**31 - 1


def must_be_whole(name: str, value: Any, least: int, most: int | None = None, why: str = "") -> None:
    """Raise `CollectiveRulesError` for a value that is no whole number from `least` to `most`."""
    if type(value) is not int or value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}{why}"
        raise CollectiveRulesError(f"{name}={value!r}, but should be {wanted}")


@attrs.frozen(kw_only=True)
class JobOptions:
    """The job that a dry run pretends to be part of, and when a dry run ends; the same for each rank.

    - `world_size`: the number of ranks. `local_world_size`: the ranks on a node, 8 (or all, if fewer) where it is None.
    - `steps`: the run ends after this number of optimizer steps.
    - `item`: the value of a number that a dry run does not know; where it is None, reading such a number is an error.

    Raises `CollectiveRulesError` for values that do not fit.

    >>> JobOptions(world_size=4, local_world_size=8)
    Traceback (most recent call last):
    collective_rules.errors.CollectiveRulesError: local_world_size=8, but should be 1 to 4, the world size
    """

    world_size: int
    local_world_size: int | None = None
    steps: int | None = None
    item: float | None = None

    def __attrs_post_init__(self) -> None:
        must_be_whole("world_size", self.world_size, 1, _MOST_RANKS)
        if self.local_world_size is not None:
            must_be_whole("local_world_size", self.local_world_size, 1, self.world_size, ", the world size")
        if self.steps is not None:
            must_be_whole("steps", self.steps, 1)
        if self.item is not None and (isinstance(self.item, bool) or not isinstance(self.item, (int, float))):
            raise CollectiveRulesError(f"item={self.item!r}, but should be a number, or None")

    @property
    def node_size(self) -> int:
        """The number of ranks on a node."""
        return min(_NODE, self.world_size) if self.local_world_size is None else self.local_world_size


@attrs.frozen(kw_only=True)
class DryRunOptions(JobOptions):
    """The options of one rank's dry run, as `dry_run` describes them. `RuleMode` validates those that are its own.

    >>> DryRunOptions(world_size=4, rank=4)
    Traceback (most recent call last):
    collective_rules.errors.CollectiveRulesError: rank=4, but should be 0 to 3 for world_size=4
    """

    rank: int = 0
    check: bool | Literal["raise", "warn", "record"] = "raise"
    fake: bool = True
    keep: int = 100_000
    backend: str | None = "auto"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        must_be_whole("rank", self.rank, 0, self.world_size - 1, f" for world_size={self.world_size}")
        if not isinstance(self.fake, bool):
            raise CollectiveRulesError(f"fake={self.fake!r}, but should be True or False")

"""A pytest plugin: a fixture with real gloo ranks.

A conftest.py asks for it, by `pytest_plugins = ["collective_rules.testing.pytest_plugin"]`; it is not loaded by itself,
since importing anything of this package imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from collective_rules.testing.world import World, close_worlds, world


class GlooWorld(Protocol):
    """The type of `gloo_world`: `gloo_world(4)` is a world of four ranks, made on first use and then used again."""

    def __call__(self, size: int, timeout: float = 10.0) -> World:
        """Return the world of `size` ranks, whose calls have `timeout` seconds each."""


@pytest.fixture(scope="session")
def gloo_world() -> Iterator[GlooWorld]:
    """W real gloo ranks in this process, by their number: `gloo_world(4).run("c10d::allreduce_", calls)`.

    They are closed at the end of the session.
    """
    yield world
    close_worlds()

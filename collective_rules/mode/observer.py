"""The interface of whoever follows the calls that a mode sees, such as a comparison with the other ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from collective_rules.finding import Finding
from collective_rules.ledger import Entry


class Observer(Protocol):
    """Follows the calls of one block. Every method may raise: the program then gets that error."""

    def start(self, note: Callable[[tuple[Finding, ...]], None]) -> None:
        """Begin the block. `note` takes the findings that raise no error."""

    def before(self, entry: Entry, backend: str | None) -> None:
        """See a call that is about to be sent, and is judged by the limits of `backend`."""

    def limit(self) -> float | None:
        """Return the most seconds that a group may take to be made; None for as long as the program says."""

    def after(self, entry: Entry, returned: Any) -> Any:
        """See a call that was sent, and return the value that the program gets in place of `returned`."""

    def waited(self, entry: Entry) -> None:
        """See that the program is about to wait for the result of a functional collective."""

    def leave(self, error: BaseException | None) -> None:
        """End the block, which `error` left."""

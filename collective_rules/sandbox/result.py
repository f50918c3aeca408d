"""The result of a job: one word, and the lines that explain it.

It knows no process and no collective. Results cross between processes as JSON.
"""

from __future__ import annotations

import json
import reprlib
import signal as signals
from collections.abc import Iterable
from typing import Any

import attrs

from collective_rules.errors import CallError

OK, RAISES, HANGS, DIES, SILENTLY_WRONG, REFUSED, UNDEFINED, FAILS = OUTCOMES = (
    "ok",
    "raises",
    "hangs",
    "dies",
    "silently wrong",
    "refused",
    "undefined",
    "fails",
)
"""The values of `Result.outcome`. The last three say that the job was no test of a backend: calls that no backend could
be given are "refused" before one sees them, calls that ran although they have no right answer are "undefined", and a
job "fails" by an error outside of the backend."""


def _lines(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(lines)


def _is_outcome(_: Result, __: object, value: str) -> None:
    if value not in OUTCOMES:
        raise CallError(f"outcome={value!r}, but should be one of {', '.join(map(repr, OUTCOMES))}")


@attrs.frozen(str=False, repr=False)
class Result:
    """The result of a job, such as a group of calls on a backend.

    - `outcome`: one of `OUTCOMES`. Where some ranks raise and others wait for them in vain, it is "raises".
    - `details`: the lines that explain it: the type and text of an error, the last output of a job that died, a line
      for each rank that raised or did not answer, or for each wrong value.
    - `signal`: the signal that ended the job, or 0; `exit_status`: with which it left without an answer, or None.
    - `value`: the JSON data that the job returned.
    - `started`: False where the job raised before it did anything that another process may see.

    >>> print(Result(RAISES, ["ValueError: no"]), Result(DIES, signal=11), Result(DIES, exit_status=3), sep="; ")
    raises ValueError: no; dies by signal 11 (SIGSEGV); dies with exit status 3
    >>> Result(OK, value=5)
    Result('ok', value=5)
    """

    outcome: str = attrs.field(validator=_is_outcome)
    details: tuple[str, ...] = attrs.field(default=(), converter=_lines)
    signal: int = 0
    exit_status: int | None = None
    value: Any = None
    started: bool = True

    @property
    def message(self) -> str:
        """The details as one text."""
        return "\n".join(self.details)

    def text(self) -> str:
        """Return it as one line of JSON. Raises as `json.dumps` does where `value` is no JSON data."""
        return json.dumps(attrs.asdict(self, recurse=False))

    def __str__(self) -> str:
        if self.outcome == RAISES:
            return f"{self.outcome} {self.message}".rstrip()
        if self.outcome != DIES:
            return self.outcome
        if self.signal:
            return f"dies by {signal_text(self.signal)}"
        return "dies" if self.exit_status is None else f"dies with exit status {self.exit_status}"

    def __repr__(self) -> str:
        fields = [each for each in attrs.fields(Result)[1:] if getattr(self, each.name) != each.default]
        shown = [repr(self.outcome), *(f"{each.name}={getattr(self, each.name)!r}" for each in fields)]
        return f"Result({', '.join(shown)})"


def read_result(text: str | bytes) -> Result:
    """Return the result that another process wrote as JSON; text that is no result counts as `RAISES`.

    >>> print(read_result('{"outcome": "hangs"}'), read_result("[1"), sep="; ")
    hangs; raises an answer that is not a result: '[1'
    """
    try:
        return Result(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        shown = text if isinstance(text, str) else text.decode(errors="replace")
        return Result(RAISES, [f"an answer that is not a result: {reprlib.repr(shown)}"])


def signal_text(number: int) -> str:
    """Return a signal's number, with its name where it has one.

    >>> signal_text(9), signal_text(40)
    ('signal 9 (SIGKILL)', 'signal 40')
    """
    names = {each.value: f" ({each.name})" for each in signals.Signals}
    return f"signal {number}{names.get(number, '')}"

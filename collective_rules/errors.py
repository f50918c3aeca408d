"""The exceptions, by who is to blame: the author of a row, this rank's call, or the group.

Each is a `CollectiveRulesError`, and carries its data as attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collective_rules.finding import Finding


class CollectiveRulesError(Exception):
    """Anything that this library raises on purpose."""


@attrs.frozen(str=False, eq=False)
class NotationError(CollectiveRulesError):
    """A rule's text is malformed: the author of the row is to blame.

    `text` is the whole text, `start` and `stop` bound the offending part (0-based characters, `stop` exclusive).

    >>> from collective_rules.notation import parse
    >>> parse("input: (d W) -> output: d")
    Traceback (most recent call last):
    collective_rules.errors.NotationError: write (W d): the ranks' pieces lie one after another
      input: (d W) -> output: d
              ^
    """

    message: str
    text: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.message}\n{pointed(self.text, self.start, self.stop)}"


@attrs.frozen(str=False, eq=False)
class UnknownFormError(CollectiveRulesError):
    """A rule got a new form, and `asked` computes only `forms`: `where` says where to add the form."""

    asked: str
    form: str
    forms: tuple[str, ...]
    where: str

    def __str__(self) -> str:
        return (
            f"{self.asked} does not know the form {self.form!r}, only {', '.join(self.forms)}: "
            f"compute that form in {self.where}, and name it there"
        )


def pointed(text: str, start: int, stop: int, *, indent: str = "  ", width: int = 100) -> str:
    """Return `text` with a caret line under `[start, stop)`; a long text is cut around the place."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    left = max(0, start - width // 2) if len(text) > width else 0
    shown = text[left : left + width]
    marks = "^" + "~" * (min(stop, left + width) - start - 1)
    return f"{indent}{shown}\n{indent}{' ' * (start - left)}{marks}"


def text_of(error: BaseException | None) -> str:
    """Return the text of an error that a program raised; its `__str__` may itself raise."""
    try:
        return str(error)
    except Exception as failure:
        return f"(no text: its __str__ raised {type(failure).__name__})"


def plain_text_of(error: BaseException) -> str:
    """Return the text of an error that a program raised, without a call of the program's own code.

    An error whose class has a `__str__` of its own, or that carries objects, is told by the plain data that it carries.

    >>> plain_text_of(KeyError("lr")), plain_text_of(ValueError("lr", object(), 3))
    ("'lr'", 'lr, 3')
    """
    plain = [each for each in error.args if type(each) in _PLAIN]
    whole = isinstance(type(error).__str__, _SLOT) and len(plain) == len(error.args)
    return str(error) if whole or isinstance(error, CollectiveRulesError) else ", ".join(map(str, plain))


_PLAIN = (str, bytes, int, float, bool, type(None))
_SLOT = type(BaseException.__str__)


class _FindingsError(CollectiveRulesError, ValueError):
    """A message, and the findings behind it."""

    def __init__(self, message: str, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(message)
        self.findings = findings


class CallError(_FindingsError):
    """This rank's call is wrong, whatever the other ranks do. `findings` are its findings, worst first."""


class UnknownOpError(CallError, LookupError):
    """No rule for this op: it is misspelt, not a collective (the text says why), or newer than the tables."""

    __str__ = Exception.__str__


class DisagreementError(_FindingsError):
    """The ranks' calls do not belong to one collective. `findings` names the ranks and both values."""


class SimulationError(CollectiveRulesError):
    """Nothing is to be sent, and the program needs a value that only another rank has, or sends unseen."""

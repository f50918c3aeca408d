"""The arguments of a guard as text: of a command line, and of the environment variable `COLLECTIVE_RULES`."""

from __future__ import annotations

import contextlib
import difflib
import shlex
from typing import Any

import attrs

from collective_rules.errors import CallError
from collective_rules.guarding.guard import Guard, guard

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@attrs.frozen
class GuardSettings:
    """The arguments of `guard`."""

    check: bool | str = True
    agree: bool | str | int = "always"
    backend: str | None = "auto"
    keep: int = 100_000
    deadline: float = 60.0
    ledger: str | None = None
    modules: bool = False

    @classmethod
    def read(cls, text: str) -> GuardSettings:
        """Return what a text such as "agree=100 check=warn ledger=calls/rank{rank}.jsonl" says.

        Raises `CallError` for a setting that does not exist, or is not of the form name=value.

        >>> GuardSettings.read("agree=100 check=warn").agree
        100
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise CallError(f"{text!r} cannot be read: {error}") from None
        given: dict[str, str] = {}
        names = [field.name for field in attrs.fields(cls)]
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or name not in names:
                close = difflib.get_close_matches(name, names, 1)
                known = f"did you mean {close[0]}=?" if close and close[0] != name else f"there are {', '.join(names)}"
                raise CallError(f"{word!r} is no setting of a guard, as check=warn is one: {known}")
            given[name] = value
        return cls.of(**given)

    @classmethod
    def of(cls, **given: str) -> GuardSettings:
        """Return the settings of these texts, by name."""
        values: dict[str, Any] = {name: _value(name, text) for name, text in given.items()}
        return cls(**values)

    def guard(self) -> Guard:
        """Return a guard with these settings. Raises `CallError` for values that do not fit."""
        return guard(**attrs.asdict(self))


def _value(name: str, text: str) -> Any:
    """Return the value of a setting; one that does not fit stays a text, which `guard` refuses."""
    if name == "agree" and text.lower() not in ("true", "yes", "false", "no", "0"):
        return int(text) if text.isdigit() else text
    if name in ("check", "agree", "modules"):
        return _WORDS.get(text.lower(), text)
    if name == "backend":
        return None if text.lower() == "none" else text
    with contextlib.suppress(ValueError):
        return {"keep": int, "deadline": float}.get(name, str)(text)
    return text

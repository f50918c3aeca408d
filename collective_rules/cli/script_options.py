"""Options of this command that stand behind the name of a script, among the script's own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from collective_rules.cli.output import CommandError

__all__ = ["SCRIPT_SETTINGS", "at_least", "with_options_after"]

SCRIPT_SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""The command's context settings: what follows the script's name is the script's, options too."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} ({self.prog} --help says what there is)")


def with_options_after(
    command: str,
    options: Mapping[str, Any],
    behind: list[str],
    kinds: Mapping[str, Callable[[str], Any]],
    repeated: Iterable[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Take options out of what follows the script; return all, and the rest as it was.

    `options` are those before the script. `kinds`: what converts each that may stand `behind` it; `repeated` ones add
    up. Where `world_size` stands before the script, all that follows is the script's, as is all after a "--".

    Raises `CommandError` for a bad value, and for a world size that is in neither place.

    >>> with_options_after(
    ...     "dry-run",
    ...     {"world_size": None, "steps": 2},
    ...     ["--lr", "1", "--world-size", "8"],
    ...     {"world_size": at_least(1), "steps": at_least(1)},
    ... )
    ({'world_size': 8, 'steps': 2}, ['--lr', '1'])
    """
    if options["world_size"] is not None:
        return dict(options), behind
    parser = _Parser(
        f"collective-rules {command}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for name, kind in kinds.items():
        parser.add_argument(_flag(name), type=kind, required=name == "world_size")
    for name in repeated:
        parser.add_argument(_flag(name), action="append")
    parser.add_argument("--json", action="store_true", dest="as_json")
    end = behind.index("--") if "--" in behind else len(behind)
    own, rest = parser.parse_known_args(behind[:end])
    given = {name: [*options[name], *value] if name in repeated else value for name, value in vars(own).items()}
    return {**options, **given}, [*rest, *behind[end + 1 :]]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def at_least(least: float) -> Callable[[str], float]:
    """Return what converts text to a number of the kind of `least`, and refuses smaller ones."""

    def number(text: str) -> float:
        value = type(least)(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{value} is not in the range x>={least}.")
        return value

    return number

"""The options that `dry-run` and `precheck` share; they may stand before and behind the script's name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from collective_rules.cli.output import CommandError

Script = Annotated[str, typer.Argument(metavar="SCRIPT", help="A script, or a module as after python -m.")]
ScriptArguments = Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="The script's own arguments.")]
WorldSize = Annotated[int, typer.Option(min=1, help="The number of ranks.")]
LocalWorldSize = Annotated[int | None, typer.Option(min=1, help="The ranks on a node, else 8.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Stop after this number of optimizer steps.")]
Item = Annotated[
    float | None,
    typer.Option(
        help="The value of each number that a dry run does not have; without it, the script ends where it reads one."
    ),
]


class ScriptCommand(TyperCommand):
    """A command whose options may also stand behind the script's name, among the script's own.

    With --world-size before the script, all arguments behind it are the script's own, and so are all after a "--".
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings["context_settings"] = {"ignore_unknown_options": True, "allow_interspersed_args": False}
        super().__init__(*args, **settings)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line with this command's options moved to its front."""
        tokens = iter(args)
        front: list[str] = []
        script: list[str] = []
        for token in tokens:
            option = self._option(token, tokens)
            if not option:
                script = [token]
                break
            front += option
        if script == ["--"] or any(token.partition("=")[0] == "--world-size" for token in front):
            return super().parse_args(ctx, [*front, *script, *tokens])
        rest: list[str] = []
        for token in tokens:
            option = self._option(token, tokens)
            front += option
            if token == "--":
                break
            rest += [] if option else [token]
        return super().parse_args(ctx, [*front, *script, *rest, *tokens])

    def _option(self, token: str, following: Iterator[str]) -> list[str]:
        """Return an option of this command with its value, which may be the following token; [] for another token."""
        name, has_value, _ = token.partition("=")
        option: Any = next((each for each in self.params if name in each.opts), None)
        if option is None:
            return []
        if has_value or option.is_flag:
            return [token]
        value = next(following, None)
        if value is None:
            raise CommandError(f"Option {name!r} requires an argument (collective-rules --help says what there is)")
        return [token, value]

"""The text that states a rule, and what it is parsed into. Knows no torch, no op and no group."""

from collective_rules.notation import ast
from collective_rules.notation.ast import *  # noqa: F403 - the nodes are listed once, in `ast`
from collective_rules.notation.parser import parse, parse_path

__all__ = ["parse", "parse_path"]
__all__ += ast.__all__

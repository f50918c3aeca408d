"""The text that states a rule, and what it is parsed into. Knows no torch, no op and no group."""

from collective_rules.notation.ast import (
    ANY,
    GroupSize,
    Name,
    Number,
    Part,
    Path,
    Rest,
    Shares,
    Size,
    Splits,
    Statement,
    names,
)
from collective_rules.notation.parser import parse, parse_path

__all__ = [
    "ANY",
    "GroupSize",
    "Name",
    "Number",
    "Part",
    "Path",
    "Rest",
    "Shares",
    "Size",
    "Splits",
    "Statement",
    "names",
    "parse",
    "parse_path",
]

"""Child processes for jobs that may raise, hang, die or flood their output. Knows nothing of collectives."""

from collective_rules.sandbox.result import (
    DIES,
    FAILS,
    HANGS,
    OK,
    OUTCOMES,
    RAISES,
    REFUSED,
    SILENTLY_WRONG,
    UNDEFINED,
    Result,
    signal_text,
)
from collective_rules.sandbox.sandbox import Sandbox

__all__ = [
    "DIES",
    "FAILS",
    "HANGS",
    "OK",
    "OUTCOMES",
    "RAISES",
    "REFUSED",
    "SILENTLY_WRONG",
    "UNDEFINED",
    "Result",
    "Sandbox",
    "signal_text",
]

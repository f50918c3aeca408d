"""Guards a program that was not changed: torch calls `start` when it is imported, as it does for device backends.

Nothing of the library is imported here until the environment variable asks for a guard: `import torch` pays for this.
The wheel holds this file as a module of its own, outside of the package, for the same reason.
"""

import os

VARIABLE = "COLLECTIVE_RULES"


def start() -> None:
    """Guard this process as the environment variable `COLLECTIVE_RULES` says; nothing without it.

    Raises `CallError` for settings that do not fit.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    from collective_rules.guarding.process import guard_process

    guard_process(text)

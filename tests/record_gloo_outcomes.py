"""Measures `gloo_outcomes` anew: `python -m tests.record_gloo_outcomes [COUNT] > NEW` prints it with what is new.

COUNT broken groups are run for each op and way, which takes minutes.
"""

import re
import sys

from tests.gloo_outcomes import OUTCOMES
from tests.gloo_outcomes import __doc__ as header
from tests.test_gloo import broken_groups, observed

ORDER = ("ok", "silently wrong", "raises", "hangs")


def place(id_: str) -> tuple[str, int]:
    """AR2 before AR10."""
    letters, number = re.fullmatch(r"([A-Z]+)(\d+)", id_).groups()  # type: ignore[union-attr]  # every id is one
    return letters, int(number)


def main() -> None:
    """Print the module."""
    known = {id_: set(outcomes) for id_, outcomes in OUTCOMES.items()}
    for broken, outcome, _ in observed(broken_groups(int(sys.argv[1]) if len(sys.argv) > 1 else 4)):
        known.setdefault(broken.id, set()).add(outcome)
    print(f'"""{header}"""\n\nfrom collections.abc import Mapping\n\nOUTCOMES: Mapping[str, tuple[str, ...]] = {{')
    for id_ in sorted(known, key=place):
        ordered = [outcome for outcome in ORDER if outcome in known[id_]] + sorted(known[id_] - set(ORDER))
        print(f'    "{id_}": ({", ".join(f"{chr(34)}{outcome}{chr(34)}" for outcome in ordered)},),')
    print("}")


if __name__ == "__main__":
    main()

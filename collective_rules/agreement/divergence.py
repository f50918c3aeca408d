"""How one sequence of calls departs from another, read from the calls that follow. It knows labels only, not calls."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import attrs

REORDERED, SKIPPED, EXTRA = "reordered", "skipped", "extra"

_MUST_MATCH, _LONGEST = 16, 8
LOOK_AHEAD = _MUST_MATCH + _LONGEST
"""The number of labels that `explain` looks at: those that a divergence may concern, and those that must match then."""


@attrs.frozen
class Divergence:
    """One sequence has `span` calls `REORDERED`, has `SKIPPED` them, or makes them as `EXTRA` calls.

    REORDERED, 2    own:    B A c d e        SKIPPED, 1    own:    c d e        EXTRA, 1    own:    X c d e
                    others: A B c d e                      others: X c d e                  others: c d e

    The letters are labels; the capital ones diverge.
    """

    kind: str
    span: int


class _Score(NamedTuple):
    """How badly a candidate explains the sequences: the least is the best, and earlier fields count first."""

    leaves_unequal: bool
    mismatches: bool
    place: int
    """The candidate's place in the list: simple ones stand first."""


def explain(own: list[Any], others: list[Any], own_left: int, others_left: int) -> Divergence | None:
    """Return the divergence after which the labels match again; None if one call differs, or nothing explains it.

    `own_left` and `others_left` count the calls to the end, also beyond the labels. Of several explanations, the one
    that makes the sequences equally long comes first, then one after which all labels match, then the simplest.
    Reordered calls explain themselves, whatever follows. If no explanation fits to the end, as where the next fault is
    near, the one after which most labels match is returned.

    >>> def of(own, others):
    ...     return explain([*own], [*others], len(own), len(others))
    >>> of("BAcde", "ABcde"), of("cde", "Xcde"), of("Xcde", "cde"), of("Xcde", "Ycde")
    (Divergence(kind='reordered', span=2), Divergence(kind='skipped', span=1), Divergence(kind='extra', span=1), None)
    """
    candidates: list[tuple[Divergence | None, int, int]] = [(None, 1, 1)]
    for span in range(2, _LONGEST + 1):
        if len(own) >= span <= len(others) and Counter(own[:span]) == Counter(others[:span]):
            candidates.append((Divergence(REORDERED, span), span, span))
            break
    for span in range(1, _LONGEST + 1):
        candidates += [(Divergence(SKIPPED, span), 0, span), (Divergence(EXTRA, span), span, 0)]
    fitting: list[tuple[_Score, Divergence | None]] = []
    nearly: list[tuple[tuple[int, bool, int], Divergence | None]] = []
    for place, (divergence, own_span, others_span) in enumerate(candidates):
        compared = max(0, min(len(own) - own_span, len(others) - others_span, _MUST_MATCH))
        matching = _matching(own[own_span : own_span + compared], others[others_span : others_span + compared])
        difference = abs(own_left - own_span - others_left + others_span)
        all_match = matching == compared
        is_reordered = divergence is not None and divergence.kind == REORDERED
        enough = divergence is None or compared == _MUST_MATCH or (not difference and compared)
        if is_reordered or (all_match and enough):
            fitting.append((_Score(difference > 0, not all_match, place), divergence))
        is_closer = difference < abs(own_left - others_left)
        if divergence is None or matching > 1 or (matching and is_closer):
            nearly.append(((-matching, not is_closer, place), divergence))
    return min(fitting or nearly, key=lambda candidate: candidate[0])[1]


def _matching(own: list[Any], others: list[Any]) -> int:
    """Return how many labels match before the first two that differ."""
    pairs = zip(own, others, strict=True)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), len(own))

"""Numbers and ranks as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["bytes_text", "cut", "exact", "plain", "plural", "ranks_text", "share_text", "sizes_text"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def bytes_text(value: float) -> str:
    """Return a number of bytes in the largest unit that leaves at least 1 before the point.

    >>> bytes_text(0), bytes_text(1023), bytes_text(1536), bytes_text(16 * 2**30), bytes_text(2.5)
    ('0 B', '1023 B', '1.5 KiB', '16.0 GiB', '2.5 B')
    """
    size = float(value)
    for unit in _UNITS[:-1]:
        # What would be rounded up to 1024.0 belongs to the next unit.
        if abs(size) < 1023.95:
            return f"{size:.1f}".removesuffix(".0" if unit == "B" else "") + f" {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


def share_text(part: float, whole: float) -> str:
    """Return what share of `whole` the `part` is, in percent.

    >>> share_text(1, 8), share_text(1, 100_000), share_text(0, 0)
    ('12.5 %', '<0.1 %', '–')
    """
    if not whole:
        return "–"
    percent = 100 * part / whole
    return "<0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "call"), plural(12000, "call")
    ('1 call', '12,000 calls')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def ranks_text(ranks: Sequence[int]) -> str:
    """Return ranks in short: ranges, and every n-th one; a long list without a pattern is cut.

    >>> ranks_text(range(8)), ranks_text(range(0, 64, 8)), ranks_text((0, 3, 4))
    ('0–7', '0, 8, … 56', '0, 3, 4')
    """
    first = list(ranks[:2])
    if len(ranks) > 3:
        step = first[1] - first[0]
        if step > 0 and list(ranks) == list(range(ranks[0], ranks[0] + step * len(ranks), step)):
            return f"{ranks[0]}–{ranks[-1]}" if step == 1 else f"{ranks[0]}, {ranks[1]}, … {ranks[-1]}"
    shown = ", ".join(map(str, ranks[:12]))
    return shown if len(ranks) <= 12 else f"{shown}, … {ranks[-1]}"


def sizes_text(sizes: Iterable[tuple[str, int]], more: int, most: int = 3) -> str:
    """Return what was passed and how often, the most frequent first; `more` counts calls with sizes not kept.

    Calls without tensors are left out.

    >>> sizes_text([("float32[4]", 1), ("float32[8, 2]", 5)], 0)
    'float32[8, 2] ×5, float32[4] ×1'
    """
    ordered = sorted((item for item in sizes if item[0]), key=lambda item: -item[1])
    shown = [f"{text} ×{count}" for text, count in ordered[:most]]
    others = sum(count for _, count in ordered[most:]) + more
    return ", ".join([*shown, f"others ×{others}"] if others else shown)


def cut(text: str, most: int) -> str:
    """Return `text`, its middle left out where it is longer than `most`.

    >>> cut("layers.0.feed_forward.w1", 12)
    'layer…rd.w1'
    """
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def exact(value: float) -> str:
    """Return a number in full.

    >>> exact(1536.0), exact(2.5)
    ('1,536', '2.5')
    """
    return f"{value:,.1f}".removesuffix(".0")


def plain(value: float) -> str:
    """Return a number as a program reads it.

    >>> plain(1536.0), plain(0.1)
    ('1536', '0.1')
    """
    return str(int(value)) if float(value).is_integer() else repr(float(value))

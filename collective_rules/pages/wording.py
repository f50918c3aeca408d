"""Numbers and ranks as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def bytes_text(value: float) -> str:
    """Return a number of bytes in the largest unit in which it is at least 1.

    >>> bytes_text(0), bytes_text(1023), bytes_text(1536), bytes_text(16 * 2**30), bytes_text(2.5)
    ('0 B', '1023 B', '1.5 KiB', '16.0 GiB', '2.5 B')
    """
    size = float(value)
    for unit in _UNITS[:-1]:
        # A number that rounds up to 1024.0 belongs to the next unit.
        if abs(size) < 1023.95:
            return f"{size:.1f}".removesuffix(".0" if unit == "B" else "") + f" {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


def share_text(part: float, whole: float) -> str:
    """Return `part` as a share of `whole`, in percent.

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


def rank_list(ranks: Sequence[int]) -> str:
    """Return ranks in short: a range, or each n-th rank; a long list without a pattern is cut.

    >>> rank_list(range(8)), rank_list(range(0, 64, 8)), rank_list((0, 3, 4))
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
    """Return the sizes of tensors with their counts, the most frequent first; the sizes of `more` calls are not kept.

    >>> sizes_text([("float32[4]", 1), ("float32[8, 2]", 5)], 0)
    'float32[8, 2] ×5, float32[4] ×1'
    """
    ordered = sorted((item for item in sizes if item[0]), key=lambda item: -item[1])
    shown = [f"{text} ×{count}" for text, count in ordered[:most]]
    others = sum(count for _, count in ordered[most:]) + more
    return ", ".join([*shown, f"others ×{others}"] if others else shown)


def cut(text: str, most: int) -> str:
    """Return `text` in at most `most` characters: the middle of a longer one is left out.

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
    """Return a number in the form that a program reads.

    >>> plain(1536.0), plain(0.1)
    ('1536', '0.1')
    """
    return str(int(value)) if float(value).is_integer() else repr(float(value))

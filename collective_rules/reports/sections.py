"""The report as blocks of text and tables, for the terminal, for Markdown and for the page of HTML."""

from __future__ import annotations

from collections import Counter

from collective_rules.ledger import Ledger
from collective_rules.pages.wording import bytes_text, plural, rank_list, share_text, sizes_text
from collective_rules.reports.modules import tree
from collective_rules.text_table import Table

_MOST_FINDINGS = 20
_MOST_GROUPS = 40


def blocks(ledger: Ledger) -> tuple[str | Table, ...]:
    """Return the blocks for a terminal: findings, totals by group and op, by phase, the groups, the modules.

    Bytes are those that this rank sends, by `traffic`'s convention of bandwidth-optimal algorithms.

    >>> import collective_rules as cr
    >>> from collective_rules.ledger import Ledger
    >>> blocks(Ledger())
    ('No collective was called.',)
    """
    if not ledger.count:
        return ("No collective was called.", *notes(ledger))
    return (
        *findings(ledger),
        headline(ledger),
        op_table(ledger),
        phase_table(ledger),
        group_table(ledger),
        "By module\n" + "\n".join(f"  {line}" for line in tree(ledger).splitlines()),
        *notes(ledger),
    )


def headline(ledger: Ledger) -> str:
    """Return the sums in one sentence."""
    total = ledger.total
    return (
        f"This rank made {plural(ledger.count, 'call')} in {plural(len(ledger.groups), 'group')} and "
        f"{plural(ledger.steps, 'optimizer step')}; it sends {bytes_text(total.sent)}."
    )


def findings(ledger: Ledger) -> tuple[str, ...]:
    """Return the number of findings, and the message of each with its count; at most twenty messages."""
    counts = Counter((finding.severity, finding.message) for finding in ledger.findings)
    if not counts:
        return ()
    texts = [
        f"{severity}{f' ×{count}' if count > 1 else ''}: {message}"
        for (severity, message), count in list(counts.items())[:_MOST_FINDINGS]
    ]
    left = len(counts) - len(texts)
    return (
        plural(len(ledger.findings), "finding"),
        *texts,
        *([f"… and {left} more kinds of findings"] if left else []),
    )


def op_table(ledger: Ledger) -> Table:
    """Return a row for each group and op, the most bytes first."""
    whole = ledger.total.sent
    rows = [
        (
            group_label(ledger, group),
            op,
            f"{total.calls:,}",
            sizes_text(total.sizes.items(), total.more),
            bytes_text(total.read),
            bytes_text(total.sent),
            share_text(total.sent, whole),
        )
        for (group, op), total in ledger.by("group", "op").items()
    ]
    columns = ("group", "op", "calls", "tensors", "read", "sent", "share")
    return Table(columns, tuple(rows), "By group and op", frozenset({"calls", "read", "sent", "share"}))


def phase_table(ledger: Ledger) -> Table:
    """Return a row for each phase, the most bytes first."""
    whole = ledger.total.sent
    rows = [
        (phase or "(outside)", f"{total.calls:,}", bytes_text(total.sent), share_text(total.sent, whole))
        for (phase,), total in ledger.by("phase").items()
    ]
    columns = ("phase", "calls", "sent", "share")
    return Table(columns, tuple(rows), "By phase", frozenset({"calls", "sent", "share"}))


def group_table(ledger: Ledger) -> Table:
    """Return a row for each group with its ranks, the most bytes first; at most forty of them."""
    sums = ledger.by("group")
    rows = []
    for (name,), total in list(sums.items())[:_MOST_GROUPS]:
        group = ledger.groups[name]
        ranks = rank_list(group.ranks or range(group.size))
        rows.append(
            (name or "–", f"{group.size:,}", f"{group.rank:,}", ranks, f"{total.calls:,}", bytes_text(total.sent))
        )
    left = len(sums) - len(rows)
    title = f"Groups ({left} more are not shown)" if left else "Groups"
    columns = ("group", "size", "rank in it", "global ranks", "calls", "sent")
    return Table(columns, tuple(rows), title, frozenset({"size", "rank in it", "calls", "sent"}))


def notes(ledger: Ledger) -> tuple[str, ...]:
    """Return notes on calls that were not kept or not counted, and on devices that stood in for others."""
    texts = []
    dropped = ledger.count - len(ledger.entries)
    if dropped:
        texts.append(
            f"Of {plural(ledger.count, 'call')} the last {len(ledger.entries):,} were kept; sums count all, while the "
            f"list of calls, the timeline and the ranks' traffic lack the first {dropped:,}."
        )
    uncounted = ledger.total.uncounted
    if uncounted:
        texts.append(f"The bytes of {plural(uncounted, 'call')} are not known, and count as 0.")
    if ledger.devices:
        replaced = ", ".join(f"{device} stood in for {declared}" for device, declared in ledger.devices.items())
        texts.append(f"Devices: {replaced}.")
    return tuple(texts)


def group_label(ledger: Ledger, name: str) -> str:
    """Return a group's name and size."""
    group = ledger.groups.get(name)
    if not name:
        return "–"
    return name if group is None else f"{name} ({plural(group.size, 'rank')})"

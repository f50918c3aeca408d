"""The report as plain data, for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from collective_rules.errors import CallError
from collective_rules.records import to_record
from collective_rules.reports.flows import flows, own_rank
from collective_rules.symbols import number

if TYPE_CHECKING:
    from collective_rules.finding import Finding
    from collective_rules.ledger import Entry, Ledger, Total
    from collective_rules.traffic import Traffic

__all__ = ["as_json"]


def as_json(ledger: Ledger) -> dict[str, Any]:
    """Return the ledger as dicts, lists, text and numbers.

    - `rank`, `count`, `kept`, `steps`, `devices`, `total`; `groups` by name, with their global ranks.
    - `totals`: one object for each op, group, module and phase; bytes as in `Traffic`.
    - `sent_to`: bytes by the global rank that this rank sends them to, of the kept calls.
    - `findings`, and `calls`: the kept ones as `records.to_record` writes them, but that a group's ranks stand in
      `groups` alone, with what the mode saw of each. A call of a size that only the run knows has its `op` alone.

    >>> from collective_rules.ledger import Ledger
    >>> as_json(Ledger())["total"]["calls"]
    0
    """
    ways = flows(ledger)
    return {
        "rank": own_rank(ledger.groups.values()),
        "count": ledger.count,
        "kept": len(ledger.entries),
        "steps": ledger.steps,
        "devices": dict(ledger.devices),
        "total": _total(ledger.total),
        "groups": {
            name: {"size": group.size, "rank": group.rank, "ranks": list(group.ranks or range(group.size))}
            for name, group in ledger.groups.items()
        },
        "totals": [key._asdict() | _total(total) for key, total in ledger.totals.items()],
        "sent_to": {str(rank): ways.sent[rank] for rank in sorted(ways.sent)},
        "findings": [_finding(found) for found in ledger.findings],
        "calls": [_entry(entry) for entry in ledger.entries],
    }


def _total(total: Total) -> dict[str, Any]:
    return attrs.asdict(total)


def _finding(found: Finding) -> dict[str, Any]:
    return {"id": found.id, "severity": found.severity, "message": found.message, "ranks": list(found.ranks)}


def _entry(entry: Entry) -> dict[str, Any]:
    call = entry.call
    try:
        record = to_record(call)
        record["group"].pop("ranks", None)
    except CallError:
        record = {"op": call.op, "source": call.source, "index": call.index}
    return record | {
        "number": entry.number,
        "module": entry.module,
        "phase": entry.phase,
        "step": entry.step,
        "at": entry.at,
        "asynchronous": entry.asynchronous,
        "waited": entry.waited,
        "traffic": None if entry.traffic is None else _traffic(entry.traffic),
        "findings": [found.id for found in entry.findings],
    }


def _traffic(moved: Traffic) -> dict[str, float]:
    return {name: number(value) for name, value in attrs.asdict(moved).items()}

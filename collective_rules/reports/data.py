"""The report as plain data, for JSON."""

from __future__ import annotations

from typing import Any

import attrs

from collective_rules.errors import CallError
from collective_rules.ledger import Entry, Ledger
from collective_rules.records import to_record
from collective_rules.reports.flows import flows, own_rank
from collective_rules.symbols import number


def as_json(ledger: Ledger) -> dict[str, Any]:
    """Return the ledger as dicts, lists, text and numbers.

    - `rank`, `count`, `kept`, `steps`, `devices`, `total`; `groups` by name, with their global ranks.
    - `totals`: one object for each op, group, module and phase; bytes as in `Traffic`.
    - `sent_to`: bytes by the global rank that this rank sends them to, of the kept calls.
    - `findings`, and `calls`: the kept calls as `records.to_record` writes them, with the mode's facts; `groups` has
      the groups' ranks. A call with a symbolic size has no record: its `op`, `source` and `index` stand for it.

    >>> from collective_rules.ledger import Ledger
    >>> as_json(Ledger())["total"]["calls"]
    0
    """
    sent = flows(ledger).sent
    return {
        "rank": own_rank(ledger.groups.values()),
        "count": ledger.count,
        "kept": len(ledger.entries),
        "steps": ledger.steps,
        "devices": dict(ledger.devices),
        "total": attrs.asdict(ledger.total),
        "groups": {
            name: {"size": group.size, "rank": group.rank, "ranks": list(group.ranks or range(group.size))}
            for name, group in ledger.groups.items()
        },
        "totals": [key._asdict() | attrs.asdict(total) for key, total in ledger.totals.items()],
        "sent_to": {str(rank): sent[rank] for rank in sorted(sent)},
        "findings": [
            {"id": each.id, "severity": each.severity, "message": each.message, "ranks": list(each.ranks)}
            for each in ledger.findings
        ],
        "calls": [_entry(entry) for entry in ledger.entries],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    call = entry.call
    try:
        record = to_record(call)
        record["group"].pop("ranks", None)
    except CallError:
        record = {"op": call.op, "source": call.source, "index": call.index}
    facts = ("number", "module", "phase", "step", "at", "asynchronous", "waited")
    moved = entry.traffic and {name: number(value) for name, value in attrs.asdict(entry.traffic).items()}
    own = {"traffic": moved, "findings": [finding.id for finding in entry.findings]}
    return record | {name: getattr(entry, name) for name in facts} | own

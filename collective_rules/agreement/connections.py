"""Ranks that never take part in what makes the connections of a group."""

from __future__ import annotations

from collections.abc import Iterator

from collective_rules.agreement.sequences import GroupCalls
from collective_rules.backends import Backend, as_backend, matching_of
from collective_rules.finding import ERROR, UNDECIDABLE, Finding
from collective_rules.messages import call_text, ranks_verb, where_text

NOT_CONNECTED = "WAIT2"
"""The id of the finding that some ranks never take part in making a group's connections."""


def connection_findings(
    group: GroupCalls, backend: str | Backend | None, expected: frozenset[int]
) -> Iterator[Finding]:
    """Yield the finding that batches of messages are all that a group carries out, and some ranks make none.

    On such a backend the first batch makes the connections of the whole group, and waits for every rank; the error is
    undecidable where it is not known whether the connections were made with the group. A message outside of a batch has
    a connection of its own. Where a group also has collectives, ranks that do not take part are found there.
    """
    if backend is None or not matching_of(backend).joins:
        return
    backend, absent = as_backend(backend), sorted(map(group.global_rank, expected - group.batches.keys()))
    if backend.eager or group.collectives or not group.batches or not absent:
        return
    calls = [call for _, call in sorted(group.batches.items())]
    lines = [
        f"{calls[0].op}: {ranks_verb(absent, 'does')} not take part in the group's first batch   [{NOT_CONNECTED}]",
        f"  on {backend.name}, the first batch connects all ranks of the group, and waits for them",
        f"  in {call_text(calls[0])}: {where_text(calls)}",
        "Begin with an operation of all ranks, for instance a barrier, or make the group with device_id=.",
    ]
    ranks = tuple(absent if len(absent) <= len(calls) else sorted(map(group.global_rank, group.batches)))
    severity = ERROR if backend.eager is False else UNDECIDABLE
    yield Finding(
        NOT_CONNECTED, severity, "\n".join(lines), ranks, {"missing": absent}, group=group.name, op=calls[0].op
    )

"""A group of calls, put to a backend and judged: what came of it, in one word and some lines of detail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.records import from_record, to_record
from collective_rules.sandbox.sandbox import HANGS, OK, RAISES, SILENTLY_WRONG, Verdict
from collective_rules.testing.expected import differences
from collective_rules.testing.tensors import make
from collective_rules.testing.world import Outcome, World, WorldTimeout, world

__all__ = ["TRY_CALLS", "Trial", "carry_out", "payload_of", "raised_lines", "try_calls"]

TRY_CALLS = f"{__name__}:try_calls"
"""The sandbox's name for `try_calls`."""


@attrs.frozen
class Trial:
    """What a group of calls came to.

    - `outcome`: "ok", "raises", "hangs" or "silently wrong" (nobody raised, and something is not as it should be).
      Where some ranks raise and others wait for them in vain, it is "raises".
    - `details`: a line for each rank that raised or did not answer, or for each difference.
    """

    outcome: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n  ".join([self.outcome, *self.details])


def carry_out(world: World, calls: Sequence[Call]) -> Trial:
    """Give `calls` (one for each rank that takes part) real tensors, make them in `world`, and judge what comes back.

    Raises `CallError` for calls of another group size than the world's, or two of one rank.

    >>> import collective_rules as cr
    >>> from collective_rules.testing import world
    >>> calls = [cr.call("c10d::allreduce_", group=cr.Group(2, rank), tensors=[(2, 3)]) for rank in range(2)]
    >>> carry_out(world(2), calls)
    Trial(outcome='ok', details=())
    """
    by_rank = {call.group.rank: call for call in calls}
    sizes = {call.group.size for call in calls}
    if sizes != {world.size} or len(by_rank) != len(calls):
        raise CallError(f"calls of ranks {[call.group.rank for call in calls]} of {sizes} do not fit {world!r}")
    made = {rank: make(call) for rank, call in by_rank.items()}
    ops = [by_rank[rank].op if rank in by_rank else calls[0].op for rank in range(world.size)]
    arguments: list[dict[str, Any] | None] = [
        made[rank].arguments if rank in made else None for rank in range(world.size)
    ]
    try:
        outcomes = dict(enumerate(world.run(ops, arguments)))
    except WorldTimeout as timeout:
        waited = tuple(f"rank {rank}: no answer within {timeout.timeout:g} s" for rank in timeout.ranks)
        raised = raised_lines(timeout.outcomes)
        return Trial(RAISES if raised else HANGS, raised + waited)
    raised = raised_lines(outcomes)
    if raised:
        return Trial(RAISES, raised)
    found = differences(made, {rank: outcomes[rank].returned for rank in made})
    return Trial(SILENTLY_WRONG if found else OK, tuple(map(str, found)))


def payload_of(calls: Sequence[Call], *, timeout: float = 1.0, backend: str = "gloo") -> dict[str, Any]:
    """Return what `try_calls` takes, as plain data: ranks that have not answered in `timeout` seconds hang."""
    return {"calls": [to_record(call) for call in calls], "timeout": timeout, "backend": backend}


def try_calls(payload: Mapping[str, Any]) -> Verdict:
    """Carry out a group of calls that may do anything: the sandbox's job. A world is kept for the next, if it can be.

    >>> import collective_rules as cr
    >>> calls = [cr.call("c10d::allreduce_", group=cr.Group(2, rank), tensors=[(2, 3)]) for rank in range(2)]
    >>> try_calls(payload_of(calls)).outcome
    'ok'
    """
    calls = [from_record(record) for record in payload["calls"]]
    ranks = world(calls[0].group.size, payload["timeout"], backend=payload["backend"])
    trial = carry_out(ranks, calls)
    return Verdict(trial.outcome, "\n".join(trial.details))


def raised_lines(outcomes: Mapping[int, Outcome]) -> tuple[str, ...]:
    """Return a line for each rank that raised."""
    return tuple(f"rank {rank}: {_shown(outcome)}" for rank, outcome in sorted(outcomes.items()) if outcome.error)


def _shown(outcome: Outcome) -> str:
    """The error's type, and the first line of its text."""
    text = str(outcome.error).strip().splitlines() or [""]
    return f"{type(outcome.error).__name__}: {text[0]}"

"""The sandbox's jobs of a conformance run: groups of calls, put to a backend in a child process and judged.

They know how a payload is read, and when a child can go on. What is worth trying, and what it means, is not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collective_rules.call import Call
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.records import from_record
from collective_rules.sandbox.sandbox import HANGS, OK, RAISES, SILENTLY_WRONG, Verdict
from collective_rules.testing.methods import METHODS, method_name
from collective_rules.testing.process_groups import resolve
from collective_rules.testing.run_calls import Trial, carry_out
from collective_rules.testing.tensors import make
from collective_rules.testing.world import WorldTimeout, world

__all__ = [
    "KNOW_BACKEND",
    "REFUSED",
    "TRY_GROUP",
    "TRY_GROUPS",
    "UNDEFINED",
    "know_backend",
    "try_group",
    "try_groups",
]

TRY_GROUP, TRY_GROUPS, KNOW_BACKEND = (f"{__name__}:{job}" for job in ("try_group", "try_groups", "know_backend"))
"""The sandbox's names for the jobs."""

REFUSED, UNDEFINED = "refused", "undefined"
"""Two more outcomes: calls that cannot be made on any backend, and are refused before the backend sees them; and calls
that went through, although torch has no right answer to them (the least of two complex numbers)."""

_NO_SUCH_VALUE = "there is no such value"
"""How the judge says that torch has no answer."""

_AS_VERDICT = {REFUSED: RAISES, UNDEFINED: SILENTLY_WRONG}


def know_backend(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Start the backend once, and return how its groups are called.

    `methods`: op → the method that a group written in Python has its calls made by; empty for a C++ backend.

    Raises what `resolve` and `World` raise.

    >>> know_backend({"backend": "gloo", "size": 1, "timeout": 10.0})
    {'methods': {}}
    """
    resolve(payload["backend"])
    ranks = world(payload["size"], payload["timeout"], backend=payload["backend"])
    group = ranks.groups[0]
    python = type(group).__mro__[0] is not type(world(1).groups[0])
    return {"methods": {op: method_name(group, method) for op, method in METHODS.items()} if python else {}}


def try_group(payload: Mapping[str, Any]) -> Verdict:
    """Carry out one group of calls, `payload["calls"]`; a child goes on with the next where all was ok.

    A verdict has no word for `REFUSED` and `UNDEFINED`: they are its `value`, as "raises" and "silently wrong".

    >>> import collective_rules as cr
    >>> from collective_rules.records import to_record
    >>> made = [cr.call("c10d::barrier", group=cr.Group(2, rank)) for rank in range(2)]
    >>> try_group({"calls": [to_record(one) for one in made], "backend": "gloo", "timeout": 10.0}).outcome
    'ok'
    """
    trial = _trial(payload["calls"], payload)
    message = "\n".join(trial.details)
    if trial.outcome in _AS_VERDICT:
        return Verdict(_AS_VERDICT[trial.outcome], message, value=trial.outcome)
    return Verdict(trial.outcome, message)


def try_groups(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Carry out `payload["groups"]` one after another; return the outcome and the details of each.

    One that hangs gets `payload["patience"]` seconds for another try. If it still hangs, nothing more is tried: what is
    left of the child is not to be trusted.

    >>> try_groups({"groups": [], "backend": "gloo", "timeout": 10.0, "patience": 10.0})
    []
    """
    answers: list[tuple[str, str]] = []
    for calls in payload["groups"]:
        trial = _trial(calls, payload)
        if trial.outcome == HANGS:
            trial = _trial(calls, {**payload, "timeout": payload["patience"]})
        answers.append((trial.outcome, "\n".join(trial.details)))
        if trial.outcome == HANGS:
            break
    return answers


def _trial(records: Any, payload: Mapping[str, Any]) -> Trial:
    calls = [from_record(record) for record in records]
    try:
        ranks = world(calls[0].group.size, payload["timeout"], backend=payload["backend"])
    except WorldTimeout as timeout:
        return Trial(HANGS, (str(timeout),))
    except (CollectiveRulesError, RuntimeError) as error:  # a backend that cannot be had in this size
        return Trial(RAISES, (str(error),))
    try:
        trial = carry_out(ranks, calls)
        if trial.details and all(_NO_SUCH_VALUE in line for line in trial.details):
            trial = Trial(UNDEFINED, trial.details)
    except CallError as error:
        return Trial(REFUSED, (str(error),))
    except Exception as error:
        if not _can_be_made(calls):
            return Trial(REFUSED, (f"no tensors can be made: {error}",))
        # The oracle's, which broken calls may mislead: the backend has raised nothing.
        trial = Trial(UNDEFINED, (f"nobody raised, but what should come of it is not defined: {error}",))
    if trial.outcome != OK:
        # Buffers that an erring backend still refers to are not to be written to by the next calls.
        ranks.close()
    return trial


def _can_be_made(calls: Sequence[Call]) -> bool:
    try:
        for call in calls:
            make(call)
    except Exception:
        return False
    return True

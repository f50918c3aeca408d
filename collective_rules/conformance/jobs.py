"""The sandbox's jobs of a conformance run: they make groups of calls on a backend, in a child process, and judge them.

They know how to read a payload, and when a child can go on. They do not choose the calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collective_rules.call import Call
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.records import from_record
from collective_rules.sandbox import HANGS, OK, RAISES, REFUSED, UNDEFINED, Result
from collective_rules.testing.methods import METHODS, method_name
from collective_rules.testing.process_groups import resolve
from collective_rules.testing.run_calls import carry_out, sandbox_warm_up
from collective_rules.testing.tensors import make
from collective_rules.testing.world import WorldTimeout, world

__all__ = ["KNOW_BACKEND", "TRY_GROUP", "TRY_GROUPS", "know_backend", "sandbox_warm_up", "try_group", "try_groups"]

TRY_GROUP, TRY_GROUPS, KNOW_BACKEND = (f"{__name__}:{job}" for job in ("try_group", "try_groups", "know_backend"))
"""The sandbox's names for the jobs."""


def know_backend(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Start the backend once, and return the methods by which its groups are called.

    `methods`: op → the name of the method of a group written in Python; empty for a C++ backend.

    Raises what `resolve` and `World` raise.

    >>> know_backend({"backend": "gloo", "size": 1, "timeout": 10.0})
    {'methods': {}}
    """
    resolve(payload["backend"])
    ranks = world(payload["size"], payload["timeout"], backend=payload["backend"])
    group = ranks.groups[0]
    python = type(group).__mro__[0] is not type(world(1).groups[0])
    return {"methods": {op: method_name(group, method) for op, method in METHODS.items()} if python else {}}


def try_group(payload: Mapping[str, Any]) -> Result:
    """Carry out one group of calls, `payload["calls"]`, and return the result.

    >>> import collective_rules as cr
    >>> from collective_rules.records import to_record
    >>> made = [cr.call("c10d::barrier", group=cr.Group(2, rank)) for rank in range(2)]
    >>> try_group({"calls": [to_record(one) for one in made], "backend": "gloo", "timeout": 10.0}).outcome
    'ok'
    """
    return _result(payload["calls"], payload)


def try_groups(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Carry out `payload["groups"]` one after another; return the outcome and the message of each.

    A group that hangs gets `payload["patience"]` seconds for another try. If it still hangs, it is the last: its
    threads go on in this child.

    >>> try_groups({"groups": [], "backend": "gloo", "timeout": 10.0, "patience": 10.0})
    []
    """
    answers: list[tuple[str, str]] = []
    for calls in payload["groups"]:
        result = _result(calls, payload)
        if result.outcome == HANGS:
            result = _result(calls, {**payload, "timeout": payload["patience"]})
        answers.append((result.outcome, result.message))
        if result.outcome == HANGS:
            break
    return answers


def _result(records: Any, payload: Mapping[str, Any]) -> Result:
    calls = [from_record(record) for record in records]
    try:
        ranks = world(calls[0].group.size, payload["timeout"], backend=payload["backend"])
    except WorldTimeout as timeout:
        return Result(HANGS, [str(timeout)])
    except (CollectiveRulesError, RuntimeError) as error:  # a backend that cannot be had in this size
        return Result(RAISES, [str(error)])
    try:
        result = carry_out(ranks, calls)
    except CallError as error:
        return Result(REFUSED, [str(error)])
    except Exception as error:
        if not _can_be_made(calls):
            return Result(REFUSED, [f"no tensors can be made: {error}"])
        # The oracle's error, which broken calls may mislead: the backend has raised nothing.
        result = Result(UNDEFINED, [f"nobody raised, but the right answer is not defined: {error}"])
    if result.outcome != OK:
        # Buffers that an erring backend still refers to are not to be written to by the next calls.
        ranks.close()
    return result


def _can_be_made(calls: Sequence[Call]) -> bool:
    try:
        for call in calls:
            make(call)
    except Exception:
        return False
    return True

"""Carries out a group of calls on a backend, and compares what comes back with what the rules say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.records import from_record, to_record
from collective_rules.sandbox import HANGS, OK, RAISES, SILENTLY_WRONG, UNDEFINED, Result
from collective_rules.testing.dispatch import boxed_reduce_op
from collective_rules.testing.expected import differences
from collective_rules.testing.tensors import Made, make
from collective_rules.testing.world import Returned, World, WorldTimeout, world

TRY_CALLS = f"{__name__}:try_calls"
"""The sandbox's name for `try_calls`."""


def carry_out(world: World, calls: Sequence[Call]) -> Result:
    """Give `calls` (one for each rank that takes part) real tensors, make them in `world`, and judge what comes back.

    Nobody raised, and something is not as it should be: "silently wrong"; no value has a right answer: "undefined".

    Raises `CallError` for calls of another group size than the world's, or two of one rank.

    >>> import collective_rules as cr
    >>> from collective_rules.testing import world
    >>> calls = [cr.call("c10d::allreduce_", group=cr.Group(2, rank), tensors=[(2, 3)]) for rank in range(2)]
    >>> carry_out(world(2), calls)
    Result('ok')
    """
    made = {rank: make(call) for rank, call in by_rank(calls, world).items()}
    ops = [made[rank].call.op if rank in made else calls[0].op for rank in range(world.size)]
    arguments: list[dict[str, Any] | None] = [
        made[rank].arguments if rank in made else None for rank in range(world.size)
    ]
    try:
        returned = dict(enumerate(world.run(ops, arguments)))
    except WorldTimeout as timeout:
        waited = tuple(no_answer(rank, timeout.timeout) for rank in timeout.ranks)
        raised = raised_lines(timeout.returned)
        return Result(RAISES if raised else HANGS, raised + waited)
    raised = raised_lines(returned)
    return Result(RAISES, raised) if raised else result_of(made, {rank: returned[rank].values for rank in made})


def by_rank(calls: Sequence[Call], world: Any) -> dict[int, Call]:
    """Return the calls by rank. Raises `CallError` for calls that do not fit `world`, which has a size."""
    found = {call.group.rank: call for call in calls}
    sizes = {call.group.size for call in calls}
    if sizes != {world.size} or len(found) != len(calls):
        raise CallError(f"calls of ranks {[call.group.rank for call in calls]} of {sizes} do not fit {world!r}")
    return found


def result_of(made: Mapping[int, Made], values: Mapping[int, tuple[Any, ...]]) -> Result:
    """Return the result of calls that nobody raised in, by the values that came back on each rank."""
    wrong = differences(made, values)
    undefined = all(each.what == "undefined" for each in wrong)
    return Result(OK if not wrong else UNDEFINED if undefined else SILENTLY_WRONG, map(str, wrong))


def payload_of(calls: Sequence[Call], *, timeout: float = 1.0, backend: str = "gloo") -> dict[str, Any]:
    """Return the payload of `try_calls`, as plain data. A rank that does not answer in `timeout` seconds hangs."""
    return {"calls": [to_record(call) for call in calls], "timeout": timeout, "backend": backend}


def try_calls(payload: Mapping[str, Any]) -> Result:
    """Carry out a group of calls that may do anything: a job of the sandbox. A usable world is kept for the next job.

    >>> import collective_rules as cr
    >>> calls = [cr.call("c10d::allreduce_", group=cr.Group(2, rank), tensors=[(2, 3)]) for rank in range(2)]
    >>> try_calls(payload_of(calls))
    Result('ok')
    """
    calls = [from_record(record) for record in payload["calls"]]
    return carry_out(world(calls[0].group.size, payload["timeout"], backend=payload["backend"]), calls)


def sandbox_warm_up() -> None:
    """Box a reduce op once: torch imports hundreds of modules for the first."""
    boxed_reduce_op("sum")


def raised_lines(returned: Mapping[int, Returned]) -> tuple[str, ...]:
    """Return a line for each rank that raised: the error's type, and the first line of its text."""
    return tuple(f"rank {rank}: {_first_line(each.error)}" for rank, each in sorted(returned.items()) if each.error)


def no_answer(rank: int, timeout: float) -> str:
    """Return the line for a rank that did not answer in time."""
    return f"rank {rank}: no answer within {timeout:g} s"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"

"""Whether the caller of a collective waits in it: what the mode tells of each function of torch.distributed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

import collective_rules as cr
from collective_rules.mode.call_sites import _WAITING

WAITS: dict[str, Callable[[torch.Tensor], Any]] = {
    "send": lambda tensor: dist.send(tensor, 0),
    "recv": lambda tensor: dist.recv(tensor, 0),
    "send_object_list": lambda tensor: dist.send_object_list(["text"], 0),
    "send_object_list, batched": lambda tensor: dist.send_object_list(["text"], 0, use_batch=True),
    "all_reduce": dist.all_reduce,
    "barrier": lambda tensor: dist.barrier(),
    "all_gather_object": lambda tensor: dist.all_gather_object([None] * 4, "text"),
    "all_reduce, coalesced": lambda tensor: coalesced(tensor, async_ops=False),
}
GOES_ON: dict[str, Callable[[torch.Tensor], Any]] = {
    "isend": lambda tensor: dist.isend(tensor, 0),
    "irecv": lambda tensor: dist.irecv(tensor, 0),
    "batch_isend_irecv": lambda tensor: dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, tensor, 0), dist.P2POp(dist.irecv, torch.empty(3), 0)]
    ),
    "all_reduce(async_op=True)": lambda tensor: dist.all_reduce(tensor, async_op=True),
    "barrier(async_op=True)": lambda tensor: dist.barrier(async_op=True),
    "ProcessGroup.send": lambda tensor: dist.group.WORLD.send([tensor], 0, 0),
    "all_reduce, coalesced(async_ops=True)": lambda tensor: coalesced(tensor, async_ops=True),
}


def coalesced(tensor: torch.Tensor, *, async_ops: bool) -> None:
    with c10d._coalescing_manager(async_ops=async_ops):
        dist.all_reduce(tensor)
        dist.all_reduce(torch.ones(2))


def asynchronous(act: Callable[[torch.Tensor], Any]) -> set[bool]:
    with cr.RuleMode(execute=False) as ledger:
        act(torch.ones(3))
    assert [not entry.asynchronous for entry in ledger.entries] == [call.blocking for call in ledger.calls]
    return {entry.asynchronous for entry in ledger.entries}


@pytest.mark.parametrize("name", WAITS)
def test_what_returns_nothing_to_wait_on_is_waited_for(group: dist.ProcessGroup, name: str) -> None:
    assert {False} == asynchronous(WAITS[name])


@pytest.mark.parametrize("name", GOES_ON)
def test_what_returns_a_work_is_asynchronous(group: dist.ProcessGroup, name: str) -> None:
    assert {True} == asynchronous(GOES_ON[name])


def test_a_caller_that_sends_under_the_name_of_a_waiting_function_is_not_taken_for_it(group: dist.ProcessGroup) -> None:
    """Torch's functions are told by their code, not by their names."""

    def send(tensor: torch.Tensor) -> Any:
        return dist.isend(tensor, 0)

    assert {True} == asynchronous(send)


@pytest.mark.parametrize("name", ["all_reduce", "send", "barrier"])
def test_a_wait_is_told_where_the_call_is_sent_too(group: dist.ProcessGroup, name: str) -> None:
    with cr.RuleMode() as ledger:
        WAITS[name](torch.ones(3))
    assert [False] == [entry.asynchronous for entry in ledger.entries]


def test_every_op_that_leaves_the_wait_to_its_caller_says_so_or_is_a_send_or_a_receive() -> None:
    """A c10d op that returns a Work has an argument async_op; of the others the mode looks at the caller."""
    silent = {
        row.op
        for op in cr.ops()
        if (row := cr.lookup(op)).op.startswith("c10d::")
        and any(output.kind == "work" for output in row.returns)
        and not any(re.fullmatch("async_?[oO]p", argument.name) for argument in row.arguments)
    }
    assert {"c10d::send", "c10d::recv_", "c10d::recv_any_source_"} == silent


def test_the_functions_of_torch_that_wait_for_sends_and_receives_are_known() -> None:
    """All that name isend or irecv, or what does, and wait."""
    codes = {inspect.unwrap(value).__code__ for value in vars(c10d).values() if type(value) is FunctionType}
    sends = {"isend", "irecv", "send", "recv", "batch_isend_irecv"}
    assert {code for code in codes if "wait" in code.co_names and sends & {*code.co_names}} == set(_WAITING)

"""A call written down and read again is the same call; what is no record is refused in words."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.records import from_record, to_record
from collective_rules.testing.drawing import drawable
from collective_rules.testing.strategies import calls

DRAWABLE = [op for op in cr.ops() if not drawable(cr.lookup(op))]
GROUP = {"size": 2, "rank": 0}
SEND = {"op": "c10d::send", "group": GROUP, "arguments": {"tensors": [{"shape": [3], "dtype": "float32"}], "dst": 1}}


@given(group=st.sampled_from(DRAWABLE).flatmap(lambda op: calls(op, backend=None, most_ranks=4)))
def test_a_call_survives_json(group: tuple[cr.Call, ...]) -> None:
    """Equal as data, and judged alike: shared memory is kept too."""
    for call in group:
        again = from_record(json.loads(json.dumps(to_record(call))))
        assert call == again
        assert cr.check(call, backend=None) == cr.check(again, backend=None)


def test_one_tensor_given_twice_stays_one() -> None:
    """The rules see it before and after."""
    spec = cr.Spec((2,))
    call = cr.call("c10d::allreduce_", group=cr.Group(2), tensors=[spec, spec])
    again = from_record(to_record(call))
    assert [found.id for found in cr.check(call)] == [found.id for found in cr.check(again)] != []


def test_real_memory_is_kept() -> None:
    """Two views of one allocation, with their offsets."""
    whole = torch.zeros(8)
    call = cr.call("c10d::_allgather_base_", group=cr.Group(2), input_tensor=whole[4:], output_tensor=whole)
    written = to_record(call)["arguments"]
    assert ([0, 4], [0, 0]) == (written["input_tensor"]["memory"], written["output_tensor"]["memory"])


def test_what_is_known_of_the_call_besides_is_kept() -> None:
    """The group's name and ranks, the source line, the index, unknown shapes, chosen dtypes."""
    group = cr.Group(2, 1, "dp", (4, 6))
    made = cr.call("c10d::send", group=group, tensors=[cr.Spec(None, None)], dst=0)
    call = cr.Call(made.row, group, made.arguments, "train.py:3", 7)
    assert call == from_record(to_record(call))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "None, but a record of a call should be an object with op, group, arguments"),
        ({**SEND, "colour": 1}, "has colour, which is unknown"),
        ({"op": "c10d::send"}, "a record of a call lacks group, arguments"),
        ({**SEND, "op": "c10d::sent"}, "no rule for 'c10d::sent'"),
        ({**SEND, "op": 3}, "op=3, but should be the name of an op"),
        ({**SEND, "group": {"size": 0, "rank": 0}}, "size=0, but a group has at least one rank"),
        ({**SEND, "group": {"size": 2, "rank": "0"}}, "rank='0', but should be an int"),
        ({**SEND, "group": {**GROUP, "ranks": 3}}, "ranks=3, but should be a list"),
        ({**SEND, "arguments": []}, "arguments=\\[\\], but should be an object"),
        ({**SEND, "arguments": {"dst": 1}}, "tensors is missing"),
        ({**SEND, "arguments": {"tensors": [{"shape": [3]}], "dst": 1}}, "tensors, a tensor, lacks dtype"),
        ({**SEND, "arguments": {"tensors": [{"shape": "3", "dtype": "float32"}], "dst": 1}}, "shape='3'"),
        ({**SEND, "arguments": {"tensors": [{"shape": [3], "dtype": "nn"}], "dst": 1}}, "dtype='nn', but should be"),
        ({**SEND, "arguments": {"tensors": [{"shape": [3], "dtype": "float32", "memory": 1}]}}, "memory=1"),
        ({**SEND, "arguments": {"tensors": [{"shape": [3], "dtype": "float32", "view": 1}]}}, "view=1"),
        ({**SEND, "arguments": {"group": 1}}, "c10d::send has no argument 'group'"),
        ({**SEND, "arguments": {"tensors": [[[[[[]]]]]], "dst": 1}}, "tensors nests lists more than 3 deep"),
        ({**SEND, "arguments": {"tensors": [], "dst": 2**70}}, "dst holds a number of more than 64 bits"),
        ({**SEND, "index": "1"}, "index='1', but should be text and a number"),
    ],
    ids=str,
)
def test_what_is_no_record_is_refused_in_words(record: Any, said: str) -> None:
    """One of the library's own errors, naming the value."""
    with pytest.raises(cr.CollectiveRulesError, match=said):
        from_record(record)

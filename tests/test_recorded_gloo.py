"""The recorded gloo cases (`../shared/facts`): verdicts and inferred outputs are what real gloo did.

A record holds each rank's call with its tensors as data, the outcome, and what was written and returned. Which record
counts as bad is said by `went_wrong`; what gloo accepts although its values were never compared is not judged.
"""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import collective_rules as cr

MISJUDGED: dict[str, str] = {}
"""Records that the library judges otherwise than gloo did, each with the reason."""

UNJUDGED = {
    "missing": "a rank that never calls has no call to look at",
    "timeout": "not about sizes",
    "poison": "a second collective after a broken one",
    "fake": "FakeTensor, not gloo",
    "autograd": "the backward is another call",
    "desync": "several collectives in another order",
    "group_name": "a call does not hold the group's argument",
    "device": "meta tensors hold no values",
    "grad": "requires_grad is no part of a Spec",
    "misc": "ops that are excluded, or no collectives",
    "async": "the flag says when, not what",
    "sparse": "indices travel too, whose number a shape does not say",
    "multi-tensor": "several tensors of one process, which only gloo has",
}
"""Groups of records that are not judged, each with the reason."""

Record = dict[str, Any]


@pytest.fixture(scope="module")
def records(shared: Path) -> list[Record]:
    with gzip.open(shared / "facts" / "gloo-cases.jsonl.gz", "rt") as lines:
        found = [json.loads(line) for line in lines]
    return [record for record in found if record["calls"] and all(len(calls) == 1 for calls in record["calls"])]


def flat(value: Any) -> list[Any]:
    return [inner for item in value for inner in flat(item)] if isinstance(value, (list, tuple)) else [value]


def tensor(told: Record) -> cr.Spec | torch.Tensor:
    dtype, layout = getattr(torch, told["dtype"]), told.get("layout")
    if layout in ("conj", "neg", "sparse"):
        plain = torch.zeros(told["shape"], dtype=dtype)
        return plain.conj() if layout == "conj" else torch._neg_view(plain) if layout == "neg" else plain.to_sparse()
    return cr.Spec(tuple(told["shape"]), dtype, told.get("stride"))


def arguments_of(op: str, positional: list[Any], by_name: Record) -> Record:
    """The recorded arguments by name, without the group's; "same_as_0" is the call's first tensor once more."""
    first: list[Any] = []

    def value(told: Any) -> Any:
        if isinstance(told, list):
            return [value(item) for item in told]
        if told == "same_as_0":
            return first[0]
        if not isinstance(told, dict):
            boxed = isinstance(told, str) and told.startswith("ReduceOp.")
            return told.removeprefix("ReduceOp.").lower() if boxed else told
        made = tensor(told)
        first.append(made)
        return made

    named = {argument.name: told for argument, told in zip(cr.lookup(op).arguments, positional, strict=False)} | by_name
    return {a.name: value(named[a.name]) for a in cr.lookup(op).arguments if a.name in named and not a.is_group}


def calls_of(record: Record) -> list[cr.Call]:
    return [
        cr.call(op, group=cr.Group(record["W"], rank), **arguments_of(op, positional, by_name))
        for rank, [(op, positional, by_name)] in enumerate(record["calls"])
    ]


def went_wrong(record: Record) -> bool | None:
    """Whether gloo failed, or harmed data; None where the record does not tell."""
    calls = json.dumps(record["calls"]).lower()
    if "bool" in calls and ("reduceop.sum" in calls or '"sum"' in calls):
        return None  # the sum of True and True is a byte 2, which reads as True
    if record["outcome"] in ("error", "crash", "hang"):
        return True
    if record["outcome"] == "silent":
        return True if record["values_ok"] is False or record["oob_write"] else None
    compared = record["category"] == "valid" and (record["group"] != "alias" or record["values_ok"] is not None)
    return False if compared or record["group"] == "layout-cross" else None


def test_check_and_agree_find_an_error_where_gloo_failed_and_nowhere_else(records: list[Record]) -> None:
    judged, misjudged = Counter[bool](), {}
    for record in records:
        wrong = went_wrong(record)
        if wrong is None or record["group"] in UNJUDGED:
            continue
        calls = calls_of(record)
        findings = [finding for call in calls for finding in cr.check(call, backend="gloo")]
        findings += cr.agree(calls, backend="gloo")
        errors = [finding.id for finding in findings if finding.severity == "error"]
        judged[wrong] += 1
        if bool(errors) is not wrong:
            misjudged[record["id"]] = (record["op"], record["description"], record["outcome"], errors)
    assert Counter({True: 826, False: 1132}) == judged
    assert set(MISJUDGED) == set(misjudged), misjudged


def fulfilled(records: list[Record]) -> list[tuple[Record, int, cr.Call]]:
    """Each rank's call of the valid records that went well, but those whose outputs list memory given twice once."""
    good = [r for r in records if r["outcome"] == "ok" and r["category"] == "valid" and r["group"] != "alias"]
    known = [record for record in good if not {call[0][0] for call in record["calls"]} & set(cr.exclusions())]
    return [(record, rank, call) for record in known for rank, call in enumerate(calls_of(record))]


def results(call: cr.Call) -> list[cr.Spec]:
    """What a record calls outputs: what is returned fresh, otherwise the written arguments in the schema's order."""
    inferred = cr.infer(call)
    names = [name for name in inferred if name in ("output", "outputs")]
    names = names or [argument.name for argument in call.row.arguments if argument.name in inferred]
    return [spec for name in names for spec in flat(inferred[name])]


def shown(spec: cr.Spec) -> tuple[Any, ...] | None:
    return None if spec.shape is None else (list(spec.shape), str(spec.dtype), list(spec.stride))


@pytest.mark.parametrize("given", [True, False], ids=["written_arguments_given", "written_arguments_left_out"])
def test_infer_says_the_shapes_dtypes_and_strides_that_torch_wrote(records: list[Record], given: bool) -> None:
    """A written argument that is left out would be contiguous; where this rank reads nothing, it cannot be known."""
    expected, actual = {}, {}
    for record, rank, call in fulfilled(records):
        written = set() if given else set(call.row.writes) - set(call.row.reads)
        kept = {name: value for name, value in call.arguments.items() if name not in written}
        inferred = results(cr.call(call.op, group=call.group, **kept))
        reads_something = any(flat(kept.get(name, ())) for name in call.row.reads)
        where = (record["id"], rank, record["op"], record["description"])
        expected[where] = [
            (
                out["shape"],
                f"torch.{out['dtype']}",
                list(cr.Spec(out["shape"]).stride) if spec.alias in written else out["stride"],
            )
            if given or reads_something
            else None
            for out, spec in zip(record["outputs"][rank], inferred, strict=True)
        ]
        actual[where] = [shown(spec) for spec in inferred]
    assert len(actual) > 2_000
    assert expected == actual


def test_infer_names_the_argument_whose_memory_torch_returned(records: list[Record]) -> None:
    expected, actual = {}, {}
    for record, rank, call in fulfilled(records):
        names = [argument.name for argument in call.row.arguments]
        owners = [name for name in names for item in flat(call.arguments.get(name)) if isinstance(item, cr.Spec)]
        where = (record["id"], rank, record["op"], record["description"])
        expected[where] = [
            told if isinstance(told, str) else [owners[place] for place in told["shares_storage_with_arg"] or ()]
            for told in record["returned"][rank]
            if told != "NoneType"
        ]
        inferred = cr.infer(call)
        specs = [inferred[output.name] if output.kind != "work" else "ScriptObject" for output in call.row.returns]
        actual[where] = [spec if isinstance(spec, str) else [spec.alias] * bool(spec.alias) for spec in flat(specs)]
    assert len(actual) > 2_000
    assert expected == actual

"""Calls the `c10d::*` ops as methods of a ProcessGroup: arguments by position, and the fields of the options.

The dispatcher's kernels ask a group for its C++ backend (torch/csrc/distributed/c10d/Ops.cpp), which a ProcessGroup
written in Python does not have. torch.distributed calls its methods, and so does this module.

The table holds the signatures of torch/csrc/distributed/c10d/ProcessGroup.hpp with the options that Python can fill
(torch 2.13 binds no AllreduceOptions.sparseIndices). It does not know what a method does.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import attrs
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch._C import _distributed_c10d as _c10d

from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.errors import CallError
from collective_rules.ops import Argument, Row, lookup


@attrs.frozen
class Method:
    """The method that stands for one op.

    - `names`: the method's names, the newest first; the older ones call it.
    - `positional`: the schema's arguments that it takes by position.
    - `options`: the class of its last argument, "" where it takes none.
    - `fields`: argument → the field of the options that it goes into.
    """

    op: str
    names: tuple[str, ...]
    positional: tuple[str, ...]
    options: str
    fields: Mapping[str, str]


_ASYNC = {"async_op": "asyncOp"}
_COMMON = {**_ASYNC, "timeout": "timeout"}
_REDUCES = {"reduce_op": "reduceOp", **_COMMON}
_ROOT = {"root_rank": "rootRank", **_COMMON}
_ROOT_TENSOR = {"root_tensor": "rootTensor", **_ROOT}
_OUT_IN = ("output_tensor", "input_tensor")
_OUTS_INS = ("output_tensors", "input_tensors")
_LISTS = ("outputs", "inputs")
_SPLIT = ("output", "input", "output_split_sizes", "input_split_sizes")

_TABLE: tuple[tuple[str, str, tuple[str, ...], str, dict[str, str]], ...] = (
    ("allreduce_", "", ("tensors",), "Allreduce", _REDUCES),
    ("allreduce_coalesced_", "", ("tensors",), "AllreduceCoalesced", _REDUCES),
    ("broadcast_", "", ("tensors",), "Broadcast", _ROOT_TENSOR),
    ("reduce_", "", ("tensors",), "Reduce", {"reduce_op": "reduceOp", **_ROOT_TENSOR}),
    ("allgather_", "", _OUTS_INS, "Allgather", _COMMON),
    ("allgather_coalesced_", "", ("output_lists", "input_list"), "Allgather", _ASYNC),
    ("_allgather_base_", "all_gather_single", _OUT_IN, "Allgather", _COMMON),
    ("allgather_into_tensor_coalesced_", "all_gather_single_coalesced", _LISTS, "Allgather", _ASYNC),
    ("reduce_scatter_", "", _OUTS_INS, "ReduceScatter", _REDUCES),
    ("_reduce_scatter_base_", "reduce_scatter_single", _OUT_IN, "ReduceScatter", _REDUCES),
    ("reduce_scatter_tensor_coalesced_", "reduce_scatter_single_coalesced", _LISTS, "ReduceScatter", _REDUCES),
    ("gather_", "", _OUTS_INS, "Gather", _ROOT),
    ("scatter_", "", _OUTS_INS, "Scatter", _ROOT),
    ("alltoall_", "", _OUTS_INS, "AllToAll", _COMMON),
    ("alltoall_base_", "all_to_all_single", _SPLIT, "AllToAll", _COMMON),
    ("send", "", ("tensors", "dst", "tag"), "", {}),
    ("recv_", "", ("tensors", "src", "tag"), "", {}),
    ("recv_any_source_", "recv_anysource", ("tensors", "tag"), "", {}),
    ("barrier", "", (), "Barrier", {"device_ids": "device_ids", **_COMMON}),
    ("monitored_barrier_", "", ("timeout", "wait_all_ranks"), "", {}),
)
"""The op, the method's new name where it has another than the op, the positional arguments, the options, the fields."""


def _method(op: str, new: str, positional: tuple[str, ...], options: str, fields: Mapping[str, str]) -> Method:
    names = tuple(name for name in (new, op.removesuffix("_")) if hasattr(dist.ProcessGroup, name))
    return Method(f"c10d::{op}", names, positional, options and f"{options}Options", fields)


METHODS: Mapping[str, Method] = {f"c10d::{line[0]}": _method(*line) for line in _TABLE}
"""Op → method."""


def method_name(group: dist.ProcessGroup, method: Method) -> str:
    """Return which of the method's names to call: the newest that the group's class defines itself.

    A class written before a method got its new name defines the old one, of which the new one knows nothing
    (torch/csrc/distributed/c10d/PyProcessGroup.hpp looks for both).

    >>> class Old(dist.ProcessGroup):
    ...     def _allgather_base(self, output, input, options): ...
    >>> method_name(Old(0, 1), METHODS["c10d::_allgather_base_"])
    '_allgather_base'
    """
    own = (name for name in method.names if getattr(type(group), name) is not getattr(dist.ProcessGroup, name))
    return next(own, method.names[0])


def call_method(group: dist.ProcessGroup, method: Method, arguments: Mapping[str, Any]) -> Any:
    """Call `group` by the method, and return its Work (None where it returns none).

    `arguments` go by the names of the op's schema; what may be left out has torch.distributed's default. A reduce op is
    a lower-case name, a timeout a number of milliseconds. What the method does not take is ignored.

    Raises `CallError` where an argument is missing, and what the method raises.
    """
    row = lookup(method.op)
    given = [
        _plain(name, arguments[name] if name in arguments else left_out(row, row.by_name[name]))
        for name in method.positional
    ]
    if method.options:
        options = getattr(c10d, method.options)()
        for name, field in method.fields.items():
            if arguments.get(name) is not None:
                setattr(options, field, _plain(name, arguments[name]))
        given.append(options)
    return getattr(group, method_name(group, method))(*given)


def method_source(
    method: Method, arguments_as_text: Mapping[str, str], group: str = "pg", *, name: str | None = None
) -> str:
    """Return the same call as source text: lines that fill the options, and a last one that is an expression.

    The text needs `torch`, `torch.distributed as dist` and `timedelta`. `arguments_as_text` holds expressions by the
    names of the op's schema, a reduce op as its lower-case name. `name` chooses among the method's names
    (`method_name` says which suits a group); left out, it is the newest.

    Raises `CallError` where an argument is missing that may not be left out, or there is no such reduce op.

    >>> print(method_source(METHODS["c10d::allreduce_"], {"tensors": "tensors", "reduce_op": "max"}))
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.MAX
    pg.allreduce(tensors, options)
    """
    row, texts = lookup(method.op), arguments_as_text
    given = [
        _text(each, texts[each] if each in texts else repr(left_out(row, row.by_name[each])))
        for each in method.positional
    ]
    lines = []
    if method.options:
        # AllgatherOptions is the one that torch.distributed does not pass on.
        made = f"{'dist' if hasattr(dist, method.options) else 'dist.distributed_c10d'}.{method.options}()"
        filled = [each for each in method.fields if each in texts]
        given.append("options" if filled else made)
        if filled:
            lines = [f"options = {made}"]
            lines += [f"options.{method.fields[each]} = {_text(each, texts[each])}" for each in filled]
    return "\n".join([*lines, f"{group}.{name or method.names[0]}({', '.join(given)})"])


def left_out(row: Row, argument: Argument) -> Any:
    """Return what an argument is where the call leaves it out: its default, or no tensors on a rank that is no root.

    >>> row = lookup("c10d::gather_")
    >>> left_out(row, row.by_name["output_tensors"]), left_out(row, row.by_name["async_op"])
    ([], True)

    Raises `CallError` where it may not be left out.
    """
    if argument.has_default:
        return argument.default
    if argument.kind == "Tensor" and argument.depth and row.root_only:
        return []
    if argument.kind == "Tensor" and not row.spellings[0].statement.parts:
        return torch.empty(0)  # a barrier's, which nobody looks at
    raise CallError(f"{row.op}: {argument.name} is missing")


def reduce_op_of(name: str) -> Any:
    """Return torch's reduce op of a lower-case name; premul_sum's factor is 2.

    >>> reduce_op_of("band") == dist.ReduceOp.BAND
    True
    """
    if name not in REDUCE_OPS:
        raise CallError(f"reduce_op={name!r}, but should be one of {', '.join(REDUCE_OPS)}")
    return _c10d._make_nccl_premul_sum(2.0) if name == "premul_sum" else getattr(dist.ReduceOp, name.upper())


def _plain(name: str, value: Any) -> Any:
    """Return a value as a method takes it."""
    if name == "reduce_op":
        return reduce_op_of(value) if isinstance(value, str) else value
    if name == "timeout":
        return timedelta(milliseconds=value)
    return list(value) if isinstance(value, tuple) else value


def _text(name: str, text: str) -> str:
    if name == "reduce_op":
        reduce_op_of(text)
        return "dist._make_nccl_premul_sum(2.0)" if text == "premul_sum" else f"dist.ReduceOp.{text.upper()}"
    return f"timedelta(milliseconds={text})" if name == "timeout" else text

"""Writes a group of calls as a program of plain PyTorch, which anyone can run without this library.

In the program's `run(rank, pg)`, each rank makes its tensors and its call; it prints the values that came back, beside
those of the oracle. This module knows how to write the calls of ops, and no value.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from collective_rules.call import Call
from collective_rules.conformance.launch import launch
from collective_rules.conformance.literals import Writer, alike, literal, whole
from collective_rules.ops import Argument
from collective_rules.sandbox import DIES, Result
from collective_rules.testing.expected import Place, expected_values
from collective_rules.testing.methods import METHODS, method_source
from collective_rules.testing.tensors import Made, flat, make, mapped

_STRAYS = "elements changed that the op does not write"
_MOST_LINES, _LONGEST, _WIDTH = 6, 300, 110


def reproducer(
    calls: Sequence[Call],
    backend: str,
    result: Result,
    *,
    methods: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> str:
    """Return the source of a program that makes `calls` on `backend`; `result` is their result here.

    `methods`: the names of the methods of a group written in Python (op → method). `device`: where the tensors are.
    Values that the oracle does not know are left out: broken calls may have no right answer.

    Raises `CallError` for calls that no tensors can be made for.

    >>> import collective_rules as cr
    >>> calls = [cr.call("c10d::allreduce_", group=cr.Group(2, rank), tensors=[(2,)]) for rank in range(2)]
    >>> print(reproducer(calls, "gloo", Result("raises", ["rank 0: RuntimeError: no"])))  # doctest: +ELLIPSIS
    # c10d::allreduce_ on 2 ranks of gloo: raises
    #   rank 0: RuntimeError: no
    # Run it with: torchrun --nproc-per-node 2 reproducer.py
    import torch
    import torch.distributed as dist
    <BLANKLINE>
    <BLANKLINE>
    def run(rank, pg):
        tensors = [[torch.tensor([1.0, 2.0])], [torch.tensor([10001.0, 10002.0])]][rank]
        pg.allreduce(tensors, dist.AllreduceOptions()).wait()
        return {"tensors": tensors}
    <BLANKLINE>
    <BLANKLINE>
    EXPECTED = [
        {"tensors": [torch.tensor([10002.0, 10004.0])]},
        {"tensors": [torch.tensor([10002.0, 10004.0])]},
    ]
    ...
    """
    size = calls[0].group.size
    made = {one.group.rank: make(one) for one in calls}
    try:
        expected = expected_values(made)
    except Exception:  # the oracle's, which broken calls may mislead in any way
        expected = {}
    strays = _STRAYS in result.message
    ranks = [_Rank(one, expected.get(rank, {}), strays, methods or {}) for rank, one in sorted(made.items())]
    body = _body(ranks, size)
    wanted = [next((one.expected() for one in ranks if one.rank == rank), "{}") for rank in range(size)]
    any_expected = any(expected.values())
    started = launch(backend, size, any_expected, device)
    named = " and ".join(dict.fromkeys(one.op for one in calls))
    text = "\n".join(body)
    imports = [*(["from datetime import timedelta"] if "timedelta(" in text else []), *started.imports]
    outcome = str(result) if result.outcome == DIES else result.outcome
    return "\n".join(
        [
            f"# {named} on {size} rank{'s' if size > 1 else ''} of {backend}: {outcome}",
            *_comment(result.message),
            f"# Run it with: {started.command}",
            *sorted(line for line in imports if not _is_torch(line)),
            *([""] if any(not _is_torch(line) for line in imports) else []),
            *sorted({"import torch", "import torch.distributed as dist", *filter(_is_torch, imports)}, key=_import_key),
            *started.preamble,
            "",
            "",
            "def run(rank, pg):",
            *(f"    {line}" for line in body),
            *(["", "", "EXPECTED = [", *(f"    {each}," for each in wanted), "]"] if any_expected else []),
            *started.main,
            "",
        ]
    )


def _is_torch(line: str) -> bool:
    return "torch" in line.split()[1]


def _import_key(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line


def _comment(message: str) -> Iterator[str]:
    lines = message.splitlines()
    for line in lines[:_MOST_LINES]:
        yield f"#   {line if len(line) <= _LONGEST else f'{line[:_LONGEST]} …'}".rstrip()
    if len(lines) > _MOST_LINES:
        yield f"#   … and {len(lines) - _MOST_LINES} lines more"


class _Rank:
    """One rank's part of the program: its variables, its call, and the expected values."""

    def __init__(
        self, made: Made, expected: Mapping[Place, torch.Tensor], strays: bool, methods: Mapping[str, str]
    ) -> None:
        self.made, self.call, self.row, self.rank = made, made.call, made.call.row, made.call.group.rank
        self.places, self.methods = expected, methods
        self.tensors = {
            argument.name: made.arguments[argument.name]
            for argument in self.row.arguments
            if argument.kind == "Tensor" and made.arguments.get(argument.name) is not None
        }
        leaves = [leaf for value in self.tensors.values() for leaf in flat(value) if isinstance(leaf, torch.Tensor)]
        self.write = Writer(leaves, everything=strays)
        self.strays = strays
        self.memory = list(self.write.memory())

    @property
    def key(self) -> tuple[Any, ...]:
        """Ranks with equal keys have the same lines of code, but for the values of their variables."""
        reduce_op = self.call.attribute("reduce_op")
        shared = {name: _written(value, self.write) for name, value in self.tensors.items() if self._shares(value)}
        return self.call.op, reduce_op, tuple(self.tensors), tuple(shared.items()), len(self.memory)

    def _shares(self, value: Any) -> bool:
        return any(isinstance(leaf, torch.Tensor) and self.write.is_shared(leaf) for leaf in flat(value))

    def scalars(self) -> dict[str, Any]:
        """Return the arguments that are no tensors."""
        found: dict[str, Any] = {}
        for argument in self.row.arguments:
            if argument.is_group or argument.name in self.tensors or argument.name == self.row.reduce_op:
                continue
            value = self.call.arguments.get(argument.name, argument.default if argument.has_default else [])
            found[argument.name] = list(value) if isinstance(value, tuple) else value
        return found

    def may_leave_out(self, name: str, value: Any) -> bool:
        """Return whether the argument is an option of a method, with torch's default."""
        if self.call.op not in METHODS or name in METHODS[self.call.op].positional:
            return False
        argument = self.row.by_name[name]
        default = list(argument.default) if isinstance(argument.default, tuple) else argument.default
        return argument.kind == "Tensor" or (argument.has_default and value == default)

    def results(self) -> list[str]:
        """Return the names of the arguments that are written, and of the returns."""
        returned = [output.name for output in self.row.returns if output.kind in ("fresh", "argument")]
        return [name for name in dict.fromkeys([*self.row.writes, *returned]) if self._is_there(name)]

    def _is_there(self, name: str) -> bool:
        return name in self.tensors or name in self.row.fresh

    def expected(self) -> str:
        """Return the expected values as the text of a dict; None stands for a tensor without one."""
        found = []
        for name in self.results():
            wanted = [
                tensor for (at, _), tensor in sorted(self.places.items(), key=lambda item: item[0][1]) if at == name
            ]
            if name in self.tensors:
                places = itertools.count()
                value = mapped(lambda _, n=name, p=places: self.places.get((n, next(p))), self.tensors[name])
                found.append(f'"{name}": {_nested(value)}')
            elif wanted:
                found.append(f'"{name}": {_nested(wanted if name == "outputs" else wanted[0])}')
        if self.strays:
            found += [f'"{name}": {self._memory_afterwards(key)}' for name, _, key in self.memory]
        return f"{{{', '.join(found)}}}"

    def _memory_afterwards(self, key: int) -> str:
        """Return the expected text of an allocation; "None" where a written tensor in it has no expected value."""
        kept = next(each for each in self.made.allocations if each.base.untyped_storage()._cdata == key)
        after = kept.before.clone()
        for name in self.row.writes:
            for place, leaf in enumerate(flat(self.tensors.get(name, ()))):
                if leaf.untyped_storage()._cdata != key:
                    continue
                if (name, place) not in self.places:
                    return "None"
                after.as_strided(leaf.shape, leaf.stride(), leaf.storage_offset()).copy_(self.places[name, place])
        return literal(whole(after))

    def call_lines(self, text: Mapping[str, str]) -> list[str]:
        """Return the lines of the call, with `text` for each argument, and of the return statement."""
        lines = self._method(text) if self.call.op in METHODS else self._packet(text)
        results = [f'"{name}": {name}' for name in self.results()]
        results += [f'"{name}": {name}' for name, *_ in self.memory] if self.strays else []
        return [*lines, f"return {{{', '.join(results)}}}"]

    def _method(self, text: Mapping[str, str]) -> list[str]:
        reduce_op = self.call.attribute("reduce_op")
        given = dict(text) | ({self.row.reduce_op: reduce_op} if reduce_op not in (None, "sum") else {})
        *before, last = method_source(METHODS[self.call.op], given, name=self.methods.get(self.call.op)).splitlines()
        waits = any(output.kind == "work" for output in self.row.returns)
        return [*before, f"{last}.wait()" if waits else last]

    def _packet(self, text: Mapping[str, str]) -> list[str]:
        """Return the lines for an op that is called by its name, and for the wait for its results."""
        namespace, _, name = self.call.op.partition("::")
        given = dict(text)
        if self.row.reduce_op:
            given[self.row.reduce_op] = repr(self.call.attribute("reduce_op"))
        arguments = [
            f"{each.name}={self._group(each) if each.is_group else given[each.name]}"
            for each in self.row.arguments
            if each.is_group or each.name in given
        ]
        call = f"torch.ops.{namespace}.{name}({', '.join(arguments)})"
        if self.row.rule.waits:
            return [call]
        output = self.row.returns[0]
        fresh = output.kind == "fresh"
        waited = output.name if fresh else "returned"
        listed = self.row.by_name[output.name].depth > 0 if output.kind == "argument" else output.name == "outputs"
        wait = "torch.ops._c10d_functional.wait_tensor"
        if listed:
            return [f"{waited} = {call}", f"for each in {waited}:", f"    {wait}(each)"]
        return [f"{output.name} = {wait}({call})" if fresh else f"{wait}({call})"]

    def _group(self, argument: Argument) -> str:
        if argument.kind.endswith(".ProcessGroup"):
            return "pg.boxed()"
        # A legacy op finds its group by the tag, which is empty for torch's own groups, and the ranks.
        return {"ranks": repr(list(range(self.call.group.size))), "tag": '""'}.get(argument.name, "pg.group_name")


def _nested(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_nested, value))}]"
    return "None" if value is None else literal(value)


# -- all ranks together


def _body(ranks: Sequence[_Rank], size: int) -> list[str]:
    groups: dict[tuple[Any, ...], list[_Rank]] = {}
    for one in ranks:
        groups.setdefault(one.key, []).append(one)
    blocks = [(members, _block(members, len(members) == size)) for members in groups.values()]
    if len(blocks) == 1 and len(ranks) == size:
        return blocks[0][1]
    lines: list[str] = []
    for members, block in blocks:
        numbers = [one.rank for one in members]
        test = f"rank == {numbers[0]}" if len(numbers) == 1 else f"rank in {tuple(numbers)}"
        lines += [f"if {test}:", *(f"    {line}" for line in block)]
    return lines if len(ranks) == size else [*lines, "return {}  # this rank takes no part"]


def _block(ranks: Sequence[_Rank], everyone: bool) -> list[str]:
    lines: list[str] = []
    numbers = None if everyone else [one.rank for one in ranks]
    for place, (name, *_) in enumerate(ranks[0].memory):
        lines += _by_rank(name, [one.memory[place][1] for one in ranks], numbers)
    text: dict[str, str] = {}
    for name in ranks[0].tensors:
        one_for_all = _unified([one.tensors[name] for one in ranks], [one.write for one in ranks], everyone)
        texts = [_written(one.tensors[name], one.write) for one in ranks]
        lines += _by_rank(name, texts if one_for_all is None else [one_for_all], numbers)
        text[name] = name
    scalars = [one.scalars() for one in ranks]
    for name in scalars[0]:
        if all(one.may_leave_out(name, each[name]) for one, each in zip(ranks, scalars, strict=True)):
            continue
        values = [repr(each[name]) for each in scalars]
        if len(set(values)) == 1:
            text[name] = values[0]
        else:
            lines += _by_rank(name, values, numbers)
            text[name] = name
    return [*lines, *ranks[0].call_lines(text)]


def _written(value: Any, write: Writer) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_written(item, write) for item in value)}]"
    return "None" if value is None else write(value)


def _unified(values: Sequence[Any], writers: Sequence[Writer], everyone: bool) -> str | None:
    """Return one expression for all ranks; None where there is none."""
    if all(isinstance(value, (list, tuple)) for value in values):
        if len({len(value) for value in values}) > 1:
            return None
        items = [_unified(items, writers, everyone) for items in zip(*values, strict=True)]
        return None if None in items else f"[{', '.join(map(str, items))}]"
    texts = {_written(value, write) for value, write in zip(values, writers, strict=True)}
    if len(texts) == 1:
        return texts.pop()
    bare = all(
        isinstance(each, torch.Tensor)
        and each.layout is torch.strided
        and each.is_contiguous()
        and not (each.is_neg() or each.is_conj() or write.is_shared(each))
        for each, write in zip(values, writers, strict=True)
    )
    return alike(values) if bare and everyone else None


def _by_rank(name: str, texts: Sequence[str], numbers: Sequence[int] | None) -> list[str]:
    """Return the lines that assign each rank's own value; `numbers` are the ranks, None for all."""
    if len(set(texts)) == 1:
        return [f"{name} = {texts[0]}"]
    named = texts if numbers is None else [f"{rank}: {text}" for rank, text in zip(numbers, texts, strict=True)]
    opening, closing = "[]" if numbers is None else "{}"
    line = f"{name} = {opening}{', '.join(named)}{closing}[rank]"
    if len(line) <= _WIDTH:
        return [line]
    return [f"{name} = {opening}", *(f"    {each}," for each in named), f"{closing}[rank]"]

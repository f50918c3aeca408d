"""The table against real gloo: what it calls legal is carried out, and comes back as the rules and oracles say.

`cases` draws legal calls from a rule's own statement. Values encode (rank, tensor, position), so that a wrong order or
chunk shows; every tensor lies between canaries in a larger buffer. The second half breaks one constraint at a time.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import pytest
import torch

import collective_rules as cr
from collective_rules.backends import BACKENDS, limits_of
from collective_rules.notation import GroupSize, Name, Number, Part, Rest, Shares, Splits
from collective_rules.ops import Row, Spelling
from collective_rules.ops import row as row_module
from collective_rules.ops.columns import ANY, CONTIGUOUS, EVEN, FORMAT
from collective_rules.rules import RULES
from collective_rules.testing import Outcome, World, WorldTimeout, world
from collective_rules.testing.world import has_cpu_kernel

ROWS = [cr.lookup(op) for op in cr.ops()]
ON_GLOO = [row for row in ROWS if has_cpu_kernel(row)]
SIZES = (1, 2, 3, 4)

WITHOUT_KERNEL = {
    "symm_mem": "symmetric memory is CUDA's",
    "c10d::gather_into_tensor_": "torch has it since 2.14",
    "_c10d_functional::wait_tensors": "torch has it since 2.15",
}

Names = dict[str, Any]
PAD, CANARY, UNWRITTEN = 8, 77, 5


# -- buffers


@attrs.frozen(eq=False)
class Buffer:
    """A tensor between canaries: `tensor` is a view of `base`, whose contents were `before`."""

    base: torch.Tensor
    tensor: torch.Tensor
    inside: torch.Tensor
    before: torch.Tensor

    @property
    def changed(self) -> bool:
        return not torch.equal(self.base, self.before)

    @property
    def burst(self) -> bool:
        """Whether memory around the tensor was written."""
        return not torch.equal(self.base[~self.inside], self.before[~self.inside])


def strides(shape: Sequence[int], layout: str) -> list[int]:
    """The strides of each layout that a backend may have to cope with."""
    order = list(range(len(shape)))
    if layout == "transposed":
        order.reverse()
    elif layout == "channels_last":
        order = [0, 2, 3, 1]
    steps, step = [0] * len(shape), 2 if layout == "sliced" else 1
    for dim in reversed(order):
        steps[dim] = step
        step *= max(shape[dim], 1)
    if layout == "expanded" and shape:
        steps[0] = 0
    return steps


def buffer(shape: Sequence[int], dtype: torch.dtype, layout: str, values: torch.Tensor) -> Buffer:
    steps = strides(shape, layout)
    span = 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True) if n)
    base = torch.full((span + 2 * PAD,), CANARY, dtype=dtype)
    inside = torch.zeros(base.shape, dtype=torch.bool)
    inside[torch.arange(base.numel()).as_strided(tuple(shape), tuple(steps), PAD).reshape(-1)] = True
    tensor = base.as_strided(tuple(shape), tuple(steps), PAD)
    if layout == "expanded" and shape and shape[0]:
        tensor[0].copy_(values[0])
    else:
        tensor.copy_(values)
    return Buffer(base, tensor, inside, base.clone())


def encoded(shape: Sequence[int], dtype: torch.dtype, rank: int, place: int, small: bool) -> torch.Tensor:
    """Values that tell the rank, the tensor and the position (small ones as far as 8 bits can)."""
    position = torch.arange(torch.Size(shape).numel())
    if dtype is torch.bool:
        values = (rank * 73 + place * 31 + position * 11) % 7 < 3
    elif small:
        values = (rank * 3 + place * 2 + position) % 5 + 1
    elif dtype is torch.bfloat16:
        values = (rank * 61 + place * 17 + position) % 251
    else:
        values = rank * 10_000 + place * 1_000 + position + 1
    return values.to(dtype).reshape(tuple(shape))


# -- drawing legal calls


@attrs.frozen
class Draw:
    """What is free in a legal group of calls: sizes by element, splits, attributes, dtype, layout by argument."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    reduce_op: str = "sum"
    root: int = 0
    root_tensor: int = 0
    uneven: bool = False
    splits: tuple[tuple[int, ...], ...] = ()
    empty_splits: bool = False
    scalars: Mapping[str, Any] = attrs.field(factory=dict)
    layouts: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class Case:
    """One legal group of calls: for each rank its row, its arguments and their buffers; None where it takes no part."""

    name: str
    size: int
    rows: tuple[Row, ...]
    spelling: Spelling
    draw: Draw
    arguments: tuple[dict[str, Any] | None, ...]
    buffers: tuple[dict[str, Any], ...]
    calls: tuple[cr.Call | None, ...]
    promised: tuple[cr.Call | None, ...]


def shape_of(part: Part, draw: Draw, size: int, rank: int, element: int, peer: int) -> tuple[int, ...]:
    """Evaluate a part of the rule's statement under `draw`."""
    shape = draw.shapes[element]
    sized = any(isinstance(each, (Name, Shares)) for each in part.sizes)
    result: list[int] = []
    for each in part.sizes:
        if isinstance(each, Rest):
            own = {"p": peer, "r": rank}.get(each.index[0], 0) if each.index and draw.uneven else 0
            rest = shape[1:] if sized or draw.splits else shape
            result += [rest[0] + own, *rest[1:]] if own else rest
        elif isinstance(each, Splits):
            matrix = draw.splits
            result.append(sum(matrix[rank]) if each.row == "r" else sum(row[rank] for row in matrix))
        else:
            result.append(
                {GroupSize: size, Name: shape[0] if shape else 0, Shares: shape[0] * size if shape else 0}[type(each)]
                if not isinstance(each, Number)
                else each.value
            )
    return tuple(result)


def nest(
    index: Sequence[str], lengths: Mapping[str, int], make: Callable[[int, int], Any], i: int = 0, p: int = 0
) -> Any:
    """Build the lists of an argument; `make(element, peer)` builds each tensor."""
    if not index:
        return make(i, p)
    return [
        nest(index[1:], lengths, make, place if index[0] == "i" else i, place if index[0] == "p" else p)
        for place in range(lengths[index[0]])
    ]


def leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (list, tuple)) else [value]


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    return [mapped(function, item) for item in value] if isinstance(value, (list, tuple)) else function(value)


def case_of(row: Row, spelling: Spelling, size: int, draw: Draw) -> Case:
    """Make every rank's arguments for one draw."""
    arguments, buffers = [], []
    statement = spelling.statement
    lengths = {"1": 1, "p": size, "i": len(draw.shapes)}
    for rank in range(size):
        made: dict[str, Any] = {}
        for part in statement.parts:
            name = part.path.name
            if name in made or name in row.fresh:
                continue
            if part.root_only and rank != draw.root:
                made[name] = []
                continue

            def one(i: int, p: int, part: Part = part, name: str = name, rank: int = rank) -> Buffer:
                shape = shape_of(part, draw, size, rank, i, p)
                if name in row.reads:
                    small = draw.reduce_op == "product" or (bool(row.reduce_op) and draw.dtype is torch.bfloat16)
                    values = encoded(shape, draw.dtype, rank, i * size + p, small)
                else:
                    values = torch.full(shape, UNWRITTEN, dtype=draw.dtype)
                return buffer(shape, draw.dtype, draw.layouts.get(name, "contiguous"), values)

            made[name] = nest(part.path.index, lengths, one)
        given = {name: mapped(lambda each: each.tensor, value) for name, value in made.items()}
        for attribute in ("reduce_op", "root", "root_tensor"):
            if attribute in row.entry.attributes:
                given[row.entry.attributes[attribute]] = getattr(draw, attribute)
        given.update(draw.scalars)
        for part_name, column in row.entry.splits.items():
            together = bool(row.entry.demands)  # both lists or neither
            if column.argument and not (draw.empty_splits and (together or column.empty == EVEN)):
                matrix = draw.splits
                given[column.argument] = list(matrix[rank]) if part_name == "input" else [r[rank] for r in matrix]
        arguments.append(given)
        buffers.append(made)
    return finished(draw.name, size, (row,) * size, spelling, draw, arguments, buffers)


def finished(
    name: str,
    size: int,
    rows: tuple[Row, ...],
    spelling: Spelling,
    draw: Draw,
    arguments: Sequence[dict[str, Any] | None],
    buffers: Sequence[dict[str, Any]],
) -> Case:
    calls, promised = [], []
    for rank, (row, given) in enumerate(zip(rows, arguments, strict=True)):
        group = cr.Group(size=size, rank=rank)
        calls.append(None if given is None else cr.call(row.op, group=group, **given))
        left = {key: value for key, value in (given or {}).items() if key not in row.writes or key in row.reads}
        promised.append(None if given is None or row.entry.batch else cr.call(row.op, group=group, **left))
    return Case(name, size, rows, spelling, draw, tuple(arguments), tuple(buffers), tuple(calls), tuple(promised))


SHAPES = ((3, 2), (1,), (0, 2), (2, 0, 3), (2, 3, 1, 2), ())
REDUCTIONS = (
    ("avg", torch.float32),
    ("product", torch.float32),
    ("min", torch.float32),
    ("max", torch.int64),
    ("sum", torch.int64),
    ("sum", torch.bfloat16),
    ("band", torch.int64),
    ("bor", torch.bool),
    ("bxor", torch.int64),
)
MOVED = (torch.int64, torch.bfloat16, torch.bool)


def matrices(size: int) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Rows from each rank to each: even, uneven with zeros, some ranks getting nothing, nobody anything."""
    ranks = range(size)
    return {
        "even": tuple(tuple(2 for _ in ranks) for _ in ranks),
        "uneven": tuple(tuple((i + 2 * j) % 3 for j in ranks) for i in ranks),
        "one-sided": tuple(tuple(j for j in ranks) for _ in ranks),
        "empty": tuple(tuple(0 for _ in ranks) for _ in ranks),
    }


def draws(row: Row, spelling: Spelling, size: int) -> Iterator[Draw]:
    """Name what one op's legal calls can differ in, one thing at a time."""
    parts = spelling.statement.parts
    sizes = [each for part in parts for each in part.sizes]
    leading = any(isinstance(each, (Name, Shares)) for each in sizes)
    for shape in SHAPES:
        if row.entry.splits or (leading and not shape) or row.rule.derived:
            continue
        yield Draw(f"{shape}", (shape,))
        if spelling.form.name == "uneven" and shape:
            yield Draw(f"{shape} and up", (shape,), uneven=True)
    first = Draw("", ((3, 2),), splits=matrices(size)["even"] if row.entry.splits else ())
    if row.rule.derived:
        shape = (2 * size, 3, size)
        for gathered, sharded in ((0, 2), (2, 0), (0, 0), (1, 0), (2, 2)):
            scalars = {"gather_dim": gathered, "shard_dim": sharded}
            first = Draw(f"{shape} {gathered} for {sharded}", (shape,), scalars=scalars)
            yield first
        yield attrs.evolve(first, name="(0, 2) 0 for 0", shapes=((0, 2),), scalars={"gather_dim": 0, "shard_dim": 0})
    for name, matrix in matrices(size).items() if row.entry.splits else ():
        yield attrs.evolve(first, name=f"{name} splits", splits=matrix)
        yield attrs.evolve(first, name=f"{name} splits of (3, 4, 0)", splits=matrix, shapes=((3, 4, 0),))
        if name in ("even", "empty"):
            yield attrs.evolve(first, name=f"{name} splits, left out", splits=matrix, empty_splits=True)
    for reduce_op, dtype in REDUCTIONS if row.reduce_op else ():
        yield attrs.evolve(first, name=f"{reduce_op} {dtype}", reduce_op=reduce_op, dtype=dtype)
    for dtype in () if row.reduce_op else MOVED:
        yield attrs.evolve(first, name=str(dtype), dtype=dtype)
    for root in range(1, size) if row.root else ():
        yield attrs.evolve(first, name=f"root {root}", root=root)
    if any("i" in part.path.index for part in parts):
        count = 2 if row.entry.alike else 3
        shapes = ((3, 2),) * count if row.entry.alike else ((3, 2), (1, 2, 2), (0, 2))
        yield attrs.evolve(first, name=f"{count} tensors", shapes=shapes)
        if "root_tensor" in row.entry.attributes:
            yield attrs.evolve(first, name=f"{count} tensors, the last", shapes=shapes, root_tensor=count - 1)
    yield from layouts(row, spelling, size, first)


def layouts(row: Row, spelling: Spelling, size: int, first: Draw) -> Iterator[Draw]:
    """Lay each argument as freely as its column admits; what travels raw has one order for all."""
    names = list(dict.fromkeys(p.path.name for p in spelling.statement.parts if p.path.name not in row.fresh))
    shape = (4, 3, 2, 2) if not row.rule.derived else first.shapes[0]
    first = attrs.evolve(first, shapes=(shape,))
    free = [n for n in names if row.layout_of(n) == ANY or size < row.entry.layouts_from]
    bound = [n for n in names if n not in free and row.layout_of(n) != CONTIGUOUS]
    for name in free:
        for layout in ("transposed", "sliced", *([] if name in row.writes else ["expanded"])):
            yield attrs.evolve(first, name=f"{name} {layout}", layouts={name: layout})
    if bound and len(shape) == 4:
        strict = any(row.layout_of(n) == FORMAT for n in bound)
        for layout in ("channels_last",) if strict else ("transposed", "channels_last"):
            yield attrs.evolve(first, name=f"all {layout}", layouts=dict.fromkeys(bound, layout))


def point_to_point(row: Row, size: int) -> Iterator[Case]:
    """A sender and a receiver; the other ranks take no part."""
    prefix = row.namespace + "::"
    send = cr.lookup(prefix + ("send" if row.namespace == "c10d" else "isend"))
    receive = row if row.rule.name == "recv" else cr.lookup(prefix + ("recv_" if row.namespace == "c10d" else "irecv"))
    options = [(shape, torch.float32, 0) for shape in SHAPES] + [((3, 2), dtype, 7) for dtype in MOVED]
    for shape, dtype, tag in [*options, ((2,), torch.complex64, 2**31 - 1)]:
        if receive.op == "c10d::recv_any_source_" and 0 in shape:
            continue
        for sender, receiver in {(0, size - 1), (size - 1, 0)}:
            arguments: list[dict[str, Any] | None] = [None] * size
            buffers: list[dict[str, Any]] = [{} for _ in range(size)]
            rows = [row] * size
            for rank, each, peer in ((sender, send, receiver), (receiver, receive, sender)):
                part = each.spellings[0].statement.parts[0]
                reading = each is send
                values = encoded(shape, dtype, rank, 0, False) if reading else torch.full(shape, UNWRITTEN, dtype=dtype)
                made = nest(part.path.index, {"1": 1}, lambda i, p, v=values: buffer(shape, dtype, "contiguous", v))  # noqa: B023 - called at once
                buffers[rank] = {part.path.name: made}
                given = {part.path.name: mapped(lambda b: b.tensor, made), each.tag: tag}
                arguments[rank] = given | ({each.peer: peer} if each.peer else {})
                rows[rank] = each
            draw = Draw("", (shape,), dtype, scalars={"sender": sender, "receiver": receiver})
            name = f"{shape} {dtype} from {sender} to {receiver}"
            yield finished(name, size, tuple(rows), row.spellings[0], draw, arguments, buffers)


def ring(row: Row, size: int) -> Iterator[Case]:
    """Each rank sends to the next and receives from the one before, in one batch."""
    for shape in SHAPES:
        arguments, buffers = [], []
        for rank in range(size):
            values = (torch.full(shape, UNWRITTEN, dtype=torch.float32), encoded(shape, torch.float32, rank, 0, False))
            made = [buffer(shape, torch.float32, "contiguous", each) for each in values]
            given = {"op_list": ["irecv", "isend"], "peer_list": [(rank - 1) % size, (rank + 1) % size]}
            arguments.append({**given, "tag_list": [3, 3], "tensors": [each.tensor for each in made]})
            buffers.append({"tensors": made})
        yield finished(str(shape), size, (row,) * size, row.spellings[0], Draw("", (shape,)), arguments, buffers)


def cases(row: Row, size: int) -> Iterator[Case]:
    """Draw legal groups of calls of one op."""
    if row.entry.batch:
        yield from ring(row, size)
    elif row.rule.point_to_point:
        yield from point_to_point(row, size)
    elif not row.spellings[0].statement.parts:
        no_arguments: list[dict[str, Any]] = [{} for _ in range(size)]
        yield finished("", size, (row,) * size, row.spellings[0], Draw("", ()), no_arguments, no_arguments)
    else:
        taken = [limit.forms for limit in limits_of("gloo", row) if limit.forms is not None]
        for spelling in row.spellings:
            if all(spelling.form.name in forms for forms in taken):
                for draw in draws(row, spelling, size):
                    yield case_of(row, spelling, size, attrs.evolve(draw, name=f"{spelling.form.name} {draw.name}"))


@functools.cache
def carried_out(op: str, size: int) -> tuple[tuple[Case, tuple[Outcome, ...]], ...]:
    """Run every case of one op on real gloo, once for all laws."""
    ran = []
    for case in cases(cr.lookup(op), size):
        ran.append((case, world(size).run([row.op for row in case.rows], case.arguments)))
    return tuple(ran)


def rank_calls(op: str, size: int) -> Iterator[tuple[Case, int, Outcome]]:
    for case, outcomes in carried_out(op, size):
        for rank, call in enumerate(case.calls):
            if call is not None:
                yield case, rank, outcomes[rank]


EVERYWHERE = [
    pytest.param(row.op, size, id=f"{row.op}-{size}")
    for row in ON_GLOO
    for size in SIZES
    if size > 1 or not row.rule.point_to_point  # a group of one has no peer
]


# -- laws of legal calls


def test_every_op_without_a_gloo_kernel_has_its_reason() -> None:
    """No op is left out silently."""
    missing = [row.op for row in ROWS if row not in ON_GLOO]
    reasons = [op for op in missing if op in WITHOUT_KERNEL or op.partition("::")[0] in WITHOUT_KERNEL]
    assert reasons == missing
    assert not any(row.op in WITHOUT_KERNEL or row.namespace in WITHOUT_KERNEL for row in ON_GLOO)


@pytest.mark.parametrize(("op", "size"), EVERYWHERE)
def test_gloo_carries_out_every_legal_call(op: str, size: int) -> None:
    """No rank raises."""
    errors = {f"{case.name}, rank {rank}": out.error for case, rank, out in rank_calls(op, size) if out.error}
    assert errors == {}


@pytest.mark.parametrize(("op", "size"), EVERYWHERE)
def test_check_finds_nothing_in_a_legal_call(op: str, size: int) -> None:
    """Neither against the rules nor against gloo's limits."""
    found = {
        f"{case.name}, rank {rank}": [str(each) for each in cr.check(case.calls[rank], backend="gloo")]
        for case, rank, _ in rank_calls(op, size)
    }
    assert {name: messages for name, messages in found.items() if messages} == {}


@pytest.mark.parametrize(("op", "size"), EVERYWHERE)
def test_agree_finds_nothing_in_a_legal_group(op: str, size: int) -> None:
    """All ranks that take part make one collective."""
    found = {
        case.name: [str(each) for each in cr.agree([call for call in case.calls if call], backend="gloo")]
        for case, _ in carried_out(op, size)
        if None not in case.calls
    }
    assert {name: messages for name, messages in found.items() if messages} == {}


def described(value: Any, alias: str | None) -> Any:
    """Shape, dtype, strides and alias of what infer promises, or of real tensors."""
    if isinstance(value, (list, tuple)):
        return tuple(described(item, alias) for item in value)
    own = value.alias if isinstance(value, cr.Spec) else alias
    return (tuple(value.shape), value.dtype, tuple(value.stride if isinstance(value, cr.Spec) else value.stride()), own)


def identical(a: Any, b: Any) -> bool:
    pairs = list(zip(leaves(a), leaves(b), strict=False))
    return len(leaves(a)) == len(leaves(b)) and all(one is two for one, two in pairs)


def came_back(case: Case, rank: int, outcome: Outcome) -> dict[str, Any]:
    """Describe what was written and returned, in infer's terms."""
    row, given = case.rows[rank], case.arguments[rank] or {}
    if row.entry.batch:
        tensors = given["tensors"]
        returned = [
            described(each, "tensors" if any(each is tensor for tensor in tensors) else None)
            for each in outcome.returned[0]
        ]
        return {"tensors": described(tensors, "tensors"), "outputs": tuple(returned)}
    result = {name: described(given[name], name) for name in row.writes if name in given}
    outputs = [output for output in row.returns if output.kind != "work"]
    for output, value in zip(outputs, outcome.returned, strict=True):
        same = output.kind == "argument" and identical(value, given[output.name])
        result[output.name] = described(value, output.name if same else None)
    return result


@pytest.mark.parametrize(("op", "size"), EVERYWHERE)
def test_infer_says_what_comes_back(op: str, size: int) -> None:
    """Shapes, dtypes, strides, and whose memory it is, with the written arguments given."""
    expected, actual = {}, {}
    for case, rank, outcome in rank_calls(op, size):
        key = f"{case.name}, rank {rank}"
        expected[key] = {name: described(value, None) for name, value in cr.infer(case.calls[rank]).items()}
        actual[key] = came_back(case, rank, outcome)
    assert expected == actual


def reads_something(case: Case, rank: int) -> bool:
    statement = case.rows[rank].spellings[0].statement
    return any(not part.root_only or rank == case.draw.root for part in statement.reads)


@pytest.mark.parametrize(("op", "size"), EVERYWHERE)
def test_infer_promises_what_a_written_argument_must_be(op: str, size: int) -> None:
    """Left out, its shape and dtype are inferred wherever this rank reads something, and its strides contiguous."""
    expected, actual = {}, {}
    for case, rank, outcome in rank_calls(op, size):
        row, call = case.rows[rank], case.promised[rank]
        if call is None or not row.writes:
            continue
        key = f"{case.name}, rank {rank}"
        inferred = cr.infer(call)
        if not reads_something(case, rank):
            assert {each.shape for value in inferred.values() for each in leaves(value)} <= {None}
            continue
        flexible = set(row.writes) - set(row.reads) - row.fresh
        for promise, result in ((inferred, expected), (came_back(case, rank, outcome), actual)):
            result[key] = {
                name: [each[:2] for each in flat(promise[name])]
                if name in flexible
                else described_or_as_is(promise[name])
                for name in promise
            }
    assert expected == actual


def flat(value: Any) -> list[Any]:
    """The descriptions in a (nested) tuple of Specs or of descriptions."""
    if isinstance(value, cr.Spec):
        return [described(value, None)]
    if value and isinstance(value[0], tuple) and len(value) == 4 and isinstance(value[1], torch.dtype):
        return [value]
    return [each for item in value for each in flat(item)]


def described_or_as_is(value: Any) -> Any:
    return flat(value)


def oracle_outputs(case: Case, element: int) -> list[Any]:
    """What the rule's oracle makes of one element of all ranks' inputs."""
    row, draw, size = case.rows[0], case.draw, case.size
    if row.entry.batch:
        sent = [made["tensors"][1] for made in case.buffers]
        return RULES["send"].oracle(list(map(contents, sent)), peer=[(rank + 1) % size for rank in range(size)])
    if row.rule.point_to_point:
        sender = draw.scalars["sender"]
        sent = leaves(list(case.buffers[sender].values()))[0]
        inputs = [contents(sent) if rank == sender else None for rank in range(size)]
        peers = [draw.scalars["receiver"] if rank == sender else None for rank in range(size)]
        return RULES["send"].oracle(inputs, peer=peers)
    read = case.spelling.statement.reads[0]
    if row.entry.alike:
        element = draw.root_tensor
    inputs = [
        pick(read, made[read.path.name], element, contents) if made[read.path.name] else None for made in case.buffers
    ]
    if row.entry.alike and row.reduce_op:  # gloo reduces over the list too
        inputs = [contents(each) for made in case.buffers for each in leaves(made[read.path.name])]
    form = case.spelling.form.name
    attributes = {"reduce_op": draw.reduce_op, "root": draw.root, "form": form, "splits": draw.splits}
    return row.rule.oracle(inputs, **attributes, **draw.scalars)


def contents(made: Buffer) -> torch.Tensor:
    """What the tensor held before the call, contiguous."""
    tensor = made.tensor
    return made.before.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).contiguous()


def pick(part: Part, value: Any, element: int, function: Callable[[Any], Any]) -> Any:
    """Take one element out of an argument's lists: a tensor, or a list of W where the part says `[p]`."""
    for place, index in enumerate(part.path.index):
        if index == "p":
            rest = attrs.evolve(part, path=attrs.evolve(part.path, index=part.path.index[place + 1 :]))
            return [pick(rest, item, element, function) for item in value]
        value = value[element if index == "i" else 0]
    return function(value)


def received(case: Case, rank: int, outcome: Outcome, element: int) -> Any:
    """The written tensors of one element, or None where the rule writes nothing on this rank."""
    row, given = case.rows[rank], case.arguments[rank] or {}
    if row.entry.batch:
        return given["tensors"][0]
    if row.rule.point_to_point:
        return (
            given[row.writes[0]][0]
            if isinstance(given.get("tensors"), list) and row.writes
            else (given[row.writes[0]] if row.writes else None)
        )
    part = case.spelling.statement.writes[0]
    if part.root_only and rank != case.draw.root:
        return None
    value = outcome.returned[0] if part.path.name in row.fresh else given[part.path.name]
    return pick(part, value, element, lambda tensor: tensor)


def equal(expected: Any, actual: Any, approximately: bool) -> bool:
    if expected is None or actual is None:
        return expected is actual
    if isinstance(expected, list):
        return len(expected) == len(actual) and all(
            map(functools.partial(equal, approximately=approximately), expected, actual)
        )
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        return False
    return torch.allclose(expected, actual) if approximately else torch.equal(expected, actual)


def wrong_values(op: str, size: int) -> dict[str, tuple[Any, Any]]:
    """Cases and ranks whose values are not the oracle's: name → (expected, actual)."""
    wrong = {}
    for case, outcomes in carried_out(op, size):
        row = case.rows[0]
        if not (row.rule.point_to_point or case.spelling.statement.writes) or not case.draw.shapes:
            continue
        for element in range(len(case.draw.shapes)):
            expected = oracle_outputs(case, element)
            for rank, call in enumerate(case.calls):
                if call is None:
                    continue
                actual = received(case, rank, outcomes[rank], element)
                if not equal(expected[rank], actual, case.draw.reduce_op == "avg"):
                    wrong[f"{case.name}, rank {rank}, element {element}"] = (expected[rank], actual)
    return wrong


@pytest.mark.parametrize(("op", "size"), EVERYWHERE)
def test_values_are_the_oracles(op: str, size: int) -> None:
    """Every element lies where plain torch puts it."""
    assert wrong_values(op, size) == {}


@pytest.mark.parametrize("op", [row.op for row in ON_GLOO])
def test_exactly_the_writes_change(op: str) -> None:
    """Some call changes each written argument, none changes another, and nothing around any tensor is touched."""
    row = cr.lookup(op)
    changed, burst = set(), []
    for size in SIZES[1:] if row.rule.point_to_point else SIZES:
        for case, rank, _ in rank_calls(op, size):
            for name, value in case.buffers[rank].items():
                changed |= {name for made in leaves(value) if made.changed and case.rows[rank] is row}
                burst += [f"{case.name}, rank {rank}, {name}" for made in leaves(value) if made.burst]
    assert burst == []
    assert {argument.name for argument in row.arguments} & set(row.writes) == changed


def test_a_batch_leaves_what_it_sends() -> None:
    """Of one list, the received tensors change and the sent do not."""
    for case, rank, _ in rank_calls("_c10d_functional::batch_p2p_ops", 3):
        changes = [made.changed for made in leaves(list(case.buffers[rank].values())) if made.tensor.numel()]
        assert changes in ([True, False], [])


# -- what breaks a constraint

REFUSED = "refused"  # some rank raises; the others raise too, or wait in vain
SILENT = "silent"  # nobody raises: the values are wrong, or another backend would refuse
UNSAFE = "unsafe"  # memory is corrupted, or the process dies: not run here

SHORT = 0.4
F, L = "_c10d_functional::", "c10d_functional::"


@attrs.frozen(eq=False)
class Breach:
    """A group of calls that violates one constraint: `call(rank)` makes each rank's arguments."""

    rule: str
    kind: str
    name: str
    op: str | tuple[str, ...]
    call: Callable[[int], dict[str, Any]]
    outcome: str = REFUSED
    size: int = 2

    @property
    def id(self) -> str:
        return self.kind if self.rule == "gloo" else RULES[self.rule].id_of(self.kind)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape).to(dtype)


def laid(layout: str, *shape: int) -> torch.Tensor:
    return buffer(shape, torch.float32, layout, torch.ones(shape)).tensor


def neg(*shape: int) -> torch.Tensor:
    return torch._neg_view(torch.ones(shape))


def sparse(*shape: int) -> torch.Tensor:
    return torch.ones(shape).to_sparse()


def twice(tensor: torch.Tensor) -> list[torch.Tensor]:
    return [tensor, tensor]


def at_root(rank: int, value: Any) -> list[Any]:
    return [value] if rank == 0 else []


def pair(number: int) -> list[torch.Tensor]:
    return [ones(2) for _ in range(number)]


INT16, DOUBLE, COMPLEX = torch.int16, torch.float64, torch.complex64
AR, ARC, BC, RD = "c10d::allreduce_", "c10d::allreduce_coalesced_", "c10d::broadcast_", "c10d::reduce_"
AG, AGC, AGB, AGT = (
    "c10d::allgather_",
    "c10d::allgather_coalesced_",
    "c10d::_allgather_base_",
    F + "all_gather_into_tensor",
)
RS, RSB, RST = "c10d::reduce_scatter_", "c10d::_reduce_scatter_base_", F + "reduce_scatter_tensor"
GA, SC, AA, AAB, AAS = (
    "c10d::gather_",
    "c10d::scatter_",
    "c10d::alltoall_",
    "c10d::alltoall_base_",
    F + "all_to_all_single",
)
SDA, SEND, RECV = "_dtensor::shard_dim_alltoall", "c10d::send", "c10d::recv_"


def reduced(*tensors: torch.Tensor, reduce_op: str = "sum") -> dict[str, Any]:
    return {"tensors": list(tensors), "reduce_op": reduce_op}


def cast(*tensors: torch.Tensor, root: int = 0) -> dict[str, Any]:
    return {"tensors": list(tensors), "root_rank": root}


def listed(outputs: list[torch.Tensor], tensor: torch.Tensor) -> dict[str, Any]:
    return {"output_tensors": [outputs], "input_tensors": [tensor]}


def scattered(output: torch.Tensor, inputs: list[torch.Tensor]) -> dict[str, Any]:
    return {"output_tensors": [output], "input_tensors": [inputs]}


def based(output: torch.Tensor, tensor: torch.Tensor) -> dict[str, Any]:
    return {"output_tensor": output, "input_tensor": tensor}


def gathered(rank: int, outputs: list[torch.Tensor], tensor: torch.Tensor, root: int = 0) -> dict[str, Any]:
    return {"output_tensors": at_root(rank, outputs), "input_tensors": [tensor], "root_rank": root}


def spread(rank: int, output: torch.Tensor, inputs: list[torch.Tensor], root: int = 0) -> dict[str, Any]:
    return {"output_tensors": [output], "input_tensors": at_root(rank, inputs), "root_rank": root}


def swapped(outputs: list[torch.Tensor], inputs: list[torch.Tensor]) -> dict[str, Any]:
    return {"output_tensors": outputs, "input_tensors": inputs}


def exchanged(
    output: torch.Tensor, tensor: torch.Tensor, out: Sequence[int] = (), into: Sequence[int] = ()
) -> dict[str, Any]:
    return {"output": output, "input": tensor, "output_split_sizes": list(out), "input_split_sizes": list(into)}


def aliased(rank: int, own: int) -> dict[str, Any]:
    inputs = pair(2)
    return scattered(inputs[1] if rank == own else ones(2), inputs)


def overlapping(*places: int) -> list[torch.Tensor]:
    memory = ones(8)
    return [memory[place : place + 4] for place in places]


def in_itself(*shape: int) -> dict[str, Any]:
    tensor = ones(*shape)
    return exchanged(tensor, tensor)


def from_root(rank: int) -> dict[str, Any]:
    inputs = pair(2)
    return {
        "output_tensors": [inputs[1] if rank == 0 else ones(2)],
        "input_tensors": at_root(rank, inputs),
        "root_rank": 0,
    }


def sent(rank: int, *tensors: torch.Tensor, peer: int = 1, tag: int = 0) -> dict[str, Any]:
    return {"tensors": list(tensors), "dst" if rank == 0 else "src": peer if rank == 0 else 0, "tag": tag}


BREACHES = (
    Breach("all_reduce", "sizes", "two shapes in a list", AR, lambda r: reduced(ones(2, 3), ones(4))),
    Breach("all_reduce", "dtype", "two dtypes in a list", AR, lambda r: reduced(ones(2), ones(2, dtype=DOUBLE))),
    Breach(
        "all_reduce", "reduce_op", "no such op", F + "all_reduce", lambda r: {"input": ones(2), "reduce_op": "mean"}
    ),
    Breach("all_reduce", "lists", "an empty list", AR, lambda r: reduced()),
    Breach("all_reduce", "dense", "a slice", AR, lambda r: reduced(laid("sliced", 2, 3)), UNSAFE),
    Breach("all_reduce", "order", "a transpose", AR, lambda r: reduced(ones(2, 3), laid("transposed", 2, 3)), SILENT),
    Breach("all_reduce", "overlap", "one tensor twice", AR, lambda r: reduced(*twice(ones(2))), SILENT),
    Breach("all_reduce", "view", "a negative view", AR, lambda r: reduced(neg(2)), SILENT),
    Breach("all_reduce", "strided", "sparse", F + "all_reduce", lambda r: {"input": sparse(2), "reduce_op": "sum"}),
    Breach(
        "all_reduce",
        "group_size",
        "another size",
        L + "all_reduce",
        lambda r: {"self": ones(2), "reduceOp": "sum", "group_size": 3},
        SILENT,
    ),
    Breach("broadcast", "sizes", "two shapes in a list", BC, lambda r: cast(ones(2, 3), ones(4))),
    Breach("broadcast", "dtype", "two dtypes in a list", BC, lambda r: cast(ones(2), ones(2, dtype=DOUBLE))),
    Breach("broadcast", "root", "beyond the group", BC, lambda r: cast(ones(2), root=2)),
    Breach("broadcast", "lists", "an empty list", BC, lambda r: cast()),
    Breach("broadcast", "dense", "a slice", BC, lambda r: cast(laid("sliced", 2, 3)), UNSAFE),
    Breach("broadcast", "overlap", "two that overlap", BC, lambda r: cast(*overlapping(0, 2))),
    Breach("broadcast", "view", "a negative view", BC, lambda r: cast(neg(2)), SILENT),
    Breach("broadcast", "strided", "sparse", BC, lambda r: cast(sparse(2))),
    Breach(
        "broadcast",
        "group_size",
        "another size",
        L + "broadcast",
        lambda r: {"self": ones(2), "src": 0, "group_size": 3},
        SILENT,
    ),
    Breach("reduce", "root", "beyond the group", RD, lambda r: cast(ones(2), root=2)),
    Breach("reduce", "lists", "two tensors", RD, lambda r: cast(ones(2), ones(2))),
    Breach("reduce", "dense", "a slice", RD, lambda r: cast(laid("sliced", 2, 3)), UNSAFE),
    Breach("reduce", "view", "a negative view", RD, lambda r: cast(neg(2)), SILENT),
    Breach("reduce", "strided", "sparse", RD, lambda r: cast(sparse(2))),
    Breach("all_gather", "lists", "one output too few", AG, lambda r: listed(pair(1), ones(2))),
    Breach("all_gather", "sizes", "output too large", AG, lambda r: listed([ones(3)], ones(2)), size=1),
    Breach("all_gather", "pairs", "own output too large", AG, lambda r: listed([ones(3), ones(3)], ones(2))),
    Breach("all_gather", "dtype", "another dtype", AG, lambda r: listed(twice(ones(2, dtype=DOUBLE)), ones(2))),
    Breach("all_gather", "overlap", "expanded output", AG, lambda r: listed([ones(2), laid("expanded", 2)], ones(2))),
    Breach("all_gather", "strided", "sparse", AG, lambda r: listed(pair(2), sparse(2))),
    Breach("all_gather_into_tensor", "divides", "output of 3", AGB, lambda r: based(ones(3), ones(1))),
    Breach("all_gather_into_tensor", "sizes", "output too small", AGB, lambda r: based(ones(2, 3), ones(2, 3))),
    Breach("all_gather_into_tensor", "dims", "0-d", AGT, lambda r: {"input": ones()}),
    Breach("all_gather_into_tensor", "dtype", "another dtype", AGB, lambda r: based(ones(4, dtype=DOUBLE), ones(2))),
    Breach("all_gather_into_tensor", "lists", "an empty list", AGT + "_coalesced", lambda r: {"inputs": []}),
    Breach("all_gather_into_tensor", "group_size", "3", AGT, lambda r: {"input": ones(2), "group_size": 3}),
    Breach("all_gather_into_tensor", "overlap", "expanded", AGB, lambda r: based(laid("expanded", 4), ones(2))),
    Breach("all_gather_into_tensor", "view", "a negative view", AGB, lambda r: based(neg(4), ones(2)), SILENT),
    Breach("all_gather_into_tensor", "strided", "sparse", AGB, lambda r: based(ones(4), sparse(2))),
    Breach("reduce_scatter", "lists", "one input too few", RS, lambda r: scattered(ones(2), pair(1))),
    Breach("reduce_scatter", "sizes", "output too large", RS, lambda r: scattered(ones(3), [ones(2)]), size=1),
    Breach("reduce_scatter", "pairs", "own input too small", RS, lambda r: scattered(ones(4), [ones(2), ones(3)])),
    Breach("reduce_scatter", "dtype", "another dtype", RS, lambda r: scattered(ones(2, dtype=DOUBLE), pair(2))),
    Breach("reduce_scatter", "dense", "a slice", RS, lambda r: scattered(laid("sliced", 2), pair(2)), UNSAFE),
    Breach(
        "reduce_scatter",
        "order",
        "a transpose",
        RS,
        lambda r: scattered(laid("transposed", 2, 3), twice(ones(2, 3))),
        SILENT,
    ),
    Breach("reduce_scatter", "overlap", "output is a later input", RS, lambda r: aliased(r, 0), SILENT),
    Breach("reduce_scatter", "view", "a negative view", RS, lambda r: scattered(neg(2), pair(2)), SILENT),
    Breach("reduce_scatter", "strided", "sparse", RS, lambda r: scattered(ones(2), twice(sparse(2)))),
    Breach("reduce_scatter_tensor", "divides", "5 rows", RSB, lambda r: based(ones(2), ones(5))),
    Breach("reduce_scatter_tensor", "sizes", "another row", RSB, lambda r: based(ones(2, 4), ones(4, 3))),
    Breach("reduce_scatter_tensor", "dims", "0-d", RST, lambda r: {"input": ones(), "reduce_op": "sum"}, UNSAFE),
    Breach("reduce_scatter_tensor", "dtype", "another dtype", RSB, lambda r: based(ones(2, dtype=DOUBLE), ones(4))),
    Breach("reduce_scatter_tensor", "reduce_op", "upper case", RST, lambda r: {"input": ones(4), "reduce_op": "SUM"}),
    Breach(
        "reduce_scatter_tensor",
        "lists",
        "an empty list",
        RST + "_coalesced",
        lambda r: {"inputs": [], "reduce_op": "sum"},
    ),
    Breach(
        "reduce_scatter_tensor",
        "group_size",
        "3",
        RST,
        lambda r: {"input": ones(6), "reduce_op": "sum", "group_size": 3},
    ),
    Breach("reduce_scatter_tensor", "overlap", "expanded", RSB, lambda r: based(laid("expanded", 2), ones(4))),
    Breach("reduce_scatter_tensor", "view", "a negative view", RSB, lambda r: based(neg(2), ones(4)), SILENT),
    Breach("reduce_scatter_tensor", "strided", "sparse", RSB, lambda r: based(ones(2), sparse(4))),
    Breach("gather", "lists", "one output too few", GA, lambda r: gathered(r, pair(1), ones(2))),
    Breach("gather", "sizes", "output too large", GA, lambda r: gathered(r, twice(ones(3)), ones(2))),
    Breach("gather", "dtype", "another dtype", GA, lambda r: gathered(r, twice(ones(2, dtype=DOUBLE)), ones(2))),
    Breach("gather", "root", "beyond the group", GA, lambda r: gathered(r, pair(2), ones(2), root=2)),
    Breach("gather", "presence", "outputs on another rank", GA, lambda r: gathered(1 - r, pair(2), ones(2))),
    Breach("gather", "overlap", "expanded", GA, lambda r: gathered(r, [ones(2), laid("expanded", 2)], ones(2))),
    Breach("gather", "strided", "sparse", GA, lambda r: gathered(r, pair(2), sparse(2))),
    Breach("scatter", "lists", "one input too few", SC, lambda r: spread(r, ones(2), pair(1))),
    Breach("scatter", "sizes", "output too large", SC, lambda r: spread(r, ones(3 - r), pair(2))),
    Breach("scatter", "dtype", "another dtype", SC, lambda r: spread(r, ones(2, dtype=DOUBLE), pair(2))),
    Breach("scatter", "root", "beyond the group", SC, lambda r: spread(r, ones(2), pair(2), root=2)),
    Breach("scatter", "presence", "inputs on another rank", SC, lambda r: spread(1 - r, ones(2), pair(2))),
    Breach("scatter", "dense", "a slice", SC, lambda r: spread(r, laid("sliced", 2), pair(2)), UNSAFE),
    Breach(
        "scatter", "order", "a transpose", SC, lambda r: spread(r, laid("transposed", 2, 3), twice(ones(2, 3))), SILENT
    ),
    Breach("scatter", "overlap", "output is another's input", SC, from_root, SILENT),
    Breach("scatter", "view", "a negative view", SC, lambda r: spread(r, neg(2), pair(2)), SILENT),
    Breach("scatter", "strided", "sparse", SC, lambda r: spread(r, sparse(2), pair(2))),
    Breach("all_to_all", "lists", "one input too few", AA, lambda r: swapped(pair(2), pair(1))),
    Breach("all_to_all", "sizes", "output too large", AA, lambda r: swapped([ones(3)], [ones(2)]), size=1),
    Breach("all_to_all", "pairs", "own output too large", AA, lambda r: swapped(twice(ones(3)), pair(2))),
    Breach("all_to_all", "dtype", "another dtype", AA, lambda r: swapped(twice(ones(2, dtype=DOUBLE)), pair(2))),
    Breach("all_to_all", "overlap", "expanded", AA, lambda r: swapped([ones(2), laid("expanded", 2)], pair(2))),
    Breach("all_to_all", "view", "a negative view", AA, lambda r: swapped([neg(2), neg(2)], pair(2)), SILENT),
    Breach("all_to_all", "strided", "sparse", AA, lambda r: swapped(pair(2), [sparse(2), sparse(2)])),
    Breach(
        "all_to_all_single",
        "divides",
        "3 rows",
        AAB,
        lambda r: exchanged(ones(3, dtype=torch.int8), ones(3, dtype=torch.int8)),
    ),
    Breach("all_to_all_single", "splits", "a wrong sum", AAB, lambda r: exchanged(ones(4), ones(4), [2, 2], [1, 2])),
    Breach(
        "all_to_all_single",
        "pairs",
        "own piece",
        AAB,
        lambda r: exchanged(ones(4), ones(4), [2, 2], [1, 3][:: 1 - 2 * r]),
    ),
    Breach("all_to_all_single", "sizes", "another row", AAB, lambda r: exchanged(ones(2, 4), ones(2, 3))),
    Breach(
        "all_to_all_single",
        "dims",
        "0-d",
        AAS,
        lambda r: {"input": ones(), "output_split_sizes": [1, 0], "input_split_sizes": [1, 0]},
        UNSAFE,
    ),
    Breach("all_to_all_single", "dtype", "another", AAB, lambda r: exchanged(ones(4, dtype=DOUBLE), ones(4)), UNSAFE),
    Breach(
        "all_to_all_single",
        "dense",
        "a transposed input",
        AAB,
        lambda r: exchanged(ones(2, 3), laid("transposed", 2, 3)),
    ),
    Breach(
        "all_to_all_single",
        "order",
        "one channels_last",
        AAB,
        lambda r: exchanged(ones(2, 3, 2, 2), laid("channels_last", 2, 3, 2, 2)),
        SILENT,
    ),
    Breach("all_to_all_single", "overlap", "output is input", AAB, lambda r: in_itself(4), SILENT),
    Breach("all_to_all_single", "view", "a negative view", AAB, lambda r: exchanged(neg(4), ones(4)), SILENT),
    Breach("all_to_all_single", "strided", "sparse", AAB, lambda r: exchanged(ones(4), sparse(4))),
    Breach(
        "all_to_all_single", "group_size", "3", L + "all_to_all_single", lambda r: {"input": ones(6), "group_size": 3}
    ),
    Breach(
        "shard_dim_alltoall",
        "argument",
        "a negative dim",
        SDA,
        lambda r: {"input": ones(2, 2), "gather_dim": 0, "shard_dim": -1},
        UNSAFE,
    ),
    Breach(
        "shard_dim_alltoall",
        "divides",
        "3 columns",
        SDA,
        lambda r: {"input": ones(2, 3), "gather_dim": 0, "shard_dim": 1},
    ),
    Breach(
        "shard_dim_alltoall",
        "strided",
        "sparse",
        SDA,
        lambda r: {"input": sparse(2, 2), "gather_dim": 0, "shard_dim": 1},
    ),
    Breach("send", "peer", "itself", (SEND, RECV), lambda r: sent(r, ones(2), peer=0)),
    Breach("send", "tag", "a negative one", (SEND, RECV), lambda r: sent(r, ones(2), tag=-1)),
    Breach("send", "lists", "two tensors", (SEND, RECV), lambda r: sent(r, *pair(2 - r))),
    Breach("send", "dense", "a slice", (SEND, RECV), lambda r: sent(r, ones(2) if r else laid("sliced", 2))),
    Breach("send", "strided", "sparse", (SEND, RECV), lambda r: sent(r, ones(2) if r else sparse(2))),
    Breach("recv", "peer", "itself", (RECV, RECV), lambda r: {"tensors": [ones(2)], "src": r}),
    Breach("recv", "tag", "a negative one", (SEND, RECV), lambda r: sent(r, ones(2), tag=-1)),
    Breach("recv", "lists", "two tensors", (SEND, RECV), lambda r: sent(r, *pair(1 + r))),
    Breach("recv", "dense", "a slice", (SEND, RECV), lambda r: sent(r, laid("sliced", 2) if r else ones(2))),
    Breach("recv", "view", "a negative view", (SEND, RECV), lambda r: sent(r, neg(2) if r else ones(2)), SILENT),
    Breach("recv", "strided", "sparse", (SEND, RECV), lambda r: sent(r, sparse(2) if r else ones(2))),
    Breach("gloo", "GLOO1", "int16", BC, lambda r: cast(ones(2, dtype=INT16))),
    Breach("gloo", "GLOO2", "complex", AG, lambda r: listed(twice(ones(2, dtype=COMPLEX)), ones(2, dtype=COMPLEX))),
    Breach("gloo", "GLOO3", "avg of integers", AR, lambda r: reduced(ones(2, dtype=torch.int64), reduce_op="avg")),
    Breach("gloo", "GLOO3", "band of floats", AR, lambda r: reduced(ones(2), reduce_op="band")),
    Breach("gloo", "GLOO3", "premul_sum", AR, lambda r: reduced(ones(2), reduce_op="premul_sum")),
    Breach("gloo", "GLOO3", "max of complex", AR, lambda r: reduced(ones(2, dtype=COMPLEX), reduce_op="max")),
    Breach("gloo", "GLOO4", "sum of bool", AR, lambda r: reduced(ones(2, dtype=torch.bool)), SILENT),
    Breach("gloo", "GLOO5", "a stacked output", AGB, lambda r: based(ones(2, 3), ones(3))),
    Breach("gloo", "GLOO5", "a stacked input", RSB, lambda r: based(ones(3), ones(2, 3))),
    Breach("gloo", "GLOO6", "uneven outputs", AG, lambda r: listed([ones(1), ones(2)], ones(1 + r))),
    Breach("gloo", "GLOO6", "uneven pieces", AA, lambda r: swapped([ones(1 + r), ones(3)], [ones(1 + r), ones(3)])),
    Breach("gloo", "GLOO7", "equal counts", AG, lambda r: listed(twice(ones(3, 2)), ones(2, 3)), size=2),
    Breach("gloo", "GLOO8", "two dtypes", ARC, lambda r: reduced(ones(2), ones(2, dtype=DOUBLE))),
    Breach("gloo", "GLOO9", "an empty one", "c10d::recv_any_source_", lambda r: {"tensors": [ones(0)]}),
    Breach(
        "gloo",
        "GLOO10",
        "a wider second",
        F + "all_gather_into_tensor_coalesced",
        lambda r: {"inputs": [ones(2), ones(2, dtype=DOUBLE)]},
        UNSAFE,
    ),
    Breach(
        "gloo",
        "GLOO11",
        "a narrower second",
        F + "all_gather_into_tensor_coalesced",
        lambda r: {"inputs": [ones(2, dtype=DOUBLE), ones(2)]},
        SILENT,
    ),
    Breach("gloo", "GLOO12", "avg of two", AR, lambda r: reduced(*pair(2), reduce_op="avg"), SILENT),
    Breach("gloo", "GLOO13", "max of sparse", AR, lambda r: reduced(sparse(2), reduce_op="max")),
    Breach(
        "gloo",
        "GLOO15",
        "product of complex",
        F + "reduce_scatter_tensor",
        lambda r: {"input": ones(2, dtype=COMPLEX), "reduce_op": "product"},
        SILENT,
    ),
    Breach(
        "gloo",
        "GLOO16",
        "avg of integers",
        F + "reduce_scatter_tensor",
        lambda r: {"input": ones(2, dtype=torch.int64), "reduce_op": "avg"},
    ),
)

ACROSS = "it lies between two ranks' calls"
ONE_TENSOR = "one tensor has one shape, dtype and order"
BOXED = "a boxed ReduceOp is always one that exists"
COPIED = "gloo copies what these ops move"
RAW = "a raw tensor that overlaps itself is not dense"
SYMMETRIC = "only symm_mem's ops can violate it"

UNREACHABLE = {
    **{(rule.name, kind): ACROSS for rule in RULES.values() for kind in ("call", "ranks", "partner")},
    **{("send", kind): ACROSS for kind in ("pairs", "dtype", "order")},
    **{("recv", kind): ACROSS for kind in ("pairs", "dtype", "order")},
    **{("reduce", kind): ONE_TENSOR for kind in ("sizes", "dtype", "order")},
    **{("shard_dim_alltoall", kind): ONE_TENSOR for kind in ("sizes", "dtype")},
    ("reduce_scatter_tensor", "order"): ACROSS,
    ("broadcast", "order"): "gloo sends one tensor of the list and copies the others, so only ranks can differ",
    ("reduce", "reduce_op"): BOXED,
    ("reduce_scatter", "reduce_op"): BOXED,
    ("reduce", "overlap"): RAW,
    ("recv", "overlap"): RAW,
    ("reduce_scatter_tensor", "dense"): COPIED,
    ("reduce_scatter_tensor", "argument"): SYMMETRIC,
    ("all_reduce", "argument"): SYMMETRIC,
    ("all_gather_into_tensor", "dense"): SYMMETRIC,
    ("all_gather_into_tensor", "order"): SYMMETRIC,
    ("wait", "lists"): "wait_tensors alone takes a list, since torch 2.15",
}


def breaches(*outcomes: str) -> list[Any]:
    return [pytest.param(each, id=f"{each.id}-{each.name}") for each in BREACHES if each.outcome in outcomes]


def broken_calls(breach: Breach) -> tuple[list[str], list[dict[str, Any]]]:
    ops = list(breach.op) if isinstance(breach.op, tuple) else [breach.op] * breach.size
    return ops, [breach.call(rank) for rank in range(breach.size)]


def test_every_constraint_is_broken_or_out_of_reach() -> None:
    """No id of a rule with a gloo op lacks its proof or its reason, nor any of gloo's limits."""
    rules = {row.rule.name: row.rule for row in ON_GLOO if not row.entry.batch}
    wanted = {(name, kind) for name, rule in rules.items() for kind in rule.constraints.values()}
    broken = {(breach.rule, breach.kind) for breach in BREACHES if breach.rule != "gloo"}
    assert wanted - broken == {key for key in UNREACHABLE if key in wanted}
    limits = {limit.id for limit in BACKENDS["gloo"].limits if not limit.missing}  # no kernel, nothing to run
    assert limits == {breach.kind for breach in BREACHES if breach.rule == "gloo"}


@pytest.mark.parametrize("breach", breaches(REFUSED, SILENT, UNSAFE))
def test_check_names_the_broken_constraint(breach: Breach) -> None:
    """On at least one rank, with the constraint's own id."""
    ops, calls = broken_calls(breach)
    found = set()
    for rank, (op, call) in enumerate(zip(ops, calls, strict=True)):
        made = cr.call(op, group=cr.Group(size=breach.size, rank=rank), **call)
        found |= {finding.id for finding in cr.check(made, backend="gloo")}
    assert breach.id in found


@pytest.mark.parametrize("breach", breaches(REFUSED))
def test_gloo_refuses_what_check_calls_broken(breach: Breach) -> None:
    """Some rank raises; the others may wait in vain."""
    ops, calls = broken_calls(breach)
    with World(breach.size, timeout=SHORT) as ranks:
        try:
            outcomes = ranks.run(ops, calls)
        except WorldTimeout as timeout:
            outcomes = tuple(timeout.outcomes.values())
    assert any(outcome.error is not None for outcome in outcomes)


@pytest.mark.parametrize("breach", breaches(SILENT))
def test_gloo_takes_without_a_word_what_only_check_finds(breach: Breach) -> None:
    """Nobody raises: without check, the fault shows in the values, if at all."""
    ops, calls = broken_calls(breach)
    assert [outcome.error for outcome in world(breach.size).run(ops, calls)] == [None] * breach.size


def test_a_batch_finds_what_its_members_break() -> None:
    """Each element of a batch is checked as the send or the receive that it is."""
    call = {"op_list": ["isend"], "peer_list": [0], "tag_list": [-1], "tensors": [ones(2)]}
    made = cr.call(F + "batch_p2p_ops", group=cr.Group(size=2, rank=0), **call)
    found = {finding.id for finding in cr.check(made, backend="gloo")}
    assert {RULES["send"].id_of("peer"), RULES["send"].id_of("tag")} <= found


# -- the suite notices a wrong row

SWAPPED = [
    ("all_gather_into_tensor", "c10d::_allgather_base_", "input: (W d) *s -> output: d *s"),
    ("all_gather_into_tensor", F + "all_gather_into_tensor", "input: d *s -> output: d *s"),
    ("all_gather_into_tensor", F + "all_gather_into_tensor", "input: *s -> output: W *s"),
    ("reduce_scatter_tensor", RST, "input: d *s -> output: (W d) *s"),
    ("all_to_all_single", AAS, "input: S[r,:] *s -> output: S[:,r]"),
    ("gather", GA, "input: *s -> outputs[p]: *s"),
]


def laws_hold(op: str, row: Row) -> None:
    """Hold legal calls, which gloo carried out, against another row."""
    for case, rank, outcome in rank_calls(op, 3):
        if case.rows[rank].op == op:
            call = attrs.evolve(case.calls[rank], row=row)
            assert cr.check(call, backend="gloo") == ()
            inferred = {name: described(value, None) for name, value in cr.infer(call).items()}
            assert inferred == came_back(case, rank, outcome)
    for case, _ in carried_out(op, 3):
        if None not in case.calls:
            assert cr.agree([attrs.evolve(call, row=row) for call in case.calls], backend="gloo") == ()


@pytest.mark.parametrize(("rule", "op", "text"), SWAPPED)
def test_a_wrong_statement_is_noticed(rule: str, op: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sizes of a rule swapped, what infer and check say is no longer what gloo did."""
    carried_out(op, 3)
    form = attrs.evolve(RULES[rule].forms[0], text=text)
    entry = attrs.evolve(cr.lookup(op).entry, forms=(form.name,))
    monkeypatch.setattr(row_module, "RULES", {**RULES, rule: attrs.evolve(RULES[rule], forms=(form,))})
    wrong = row_module._resolve(entry)
    with pytest.raises((AssertionError, cr.CallError)):
        laws_hold(op, wrong)


@pytest.mark.parametrize(
    ("op", "change"),
    [
        (AR, {"returns": "", "parts": {"input": "tensors[1]", "output": "tensors[1]"}}),
        (AAB, {"layouts": {"input": CONTIGUOUS}}),
        (
            AAS,
            {
                "splits": {
                    "input": cr.lookup(AAB).entry.splits["output"],
                    "output": cr.lookup(AAB).entry.splits["input"],
                }
            },
        ),
        (RECV, {"attributes": {"peer": "tag", "tag": "src"}}),
    ],
    ids=["list of one", "stricter layout", "splits swapped", "peer and tag swapped"],
)
def test_a_wrong_row_is_noticed(op: str, change: dict[str, Any]) -> None:
    """A changed column of the op table fails a law of legal calls."""
    carried_out(op, 3)
    wrong = row_module._resolve(attrs.evolve(cr.lookup(op).entry, **change))
    with pytest.raises((AssertionError, cr.CallError)):
        laws_hold(op, wrong)


def test_the_unchanged_row_passes() -> None:
    """What the two tests above fail by is the change alone."""
    for op in {op for _, op, _ in SWAPPED} | {AR, AAB, RECV}:
        laws_hold(op, row_module._resolve(cr.lookup(op).entry))

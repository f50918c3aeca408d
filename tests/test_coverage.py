"""The coverage gate: every op of the collective namespaces has a row or a reason, and every row fits its schema.

It compares the tables with the live torch and with the recorded schemas of other versions. When it fails because torch
has changed, its message says what to add and where. What it does not know: whether a row's rule is the right one.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
import pytest
import torch

import collective_rules as cr
from collective_rules.notation import parse_path
from collective_rules.ops import EXCLUSIONS, OPS
from collective_rules.ops.op import Op
from collective_rules.rules import RULES
from tests.schemas import snapshot

FOLDER = Path(snapshot.__file__).parent
SNAPSHOTS = {
    path.stem.removeprefix("torch-"): path.read_text(encoding="utf-8").splitlines() for path in FOLDER.glob("*.txt")
}
LIVE = torch.__version__.partition("+")[0]

INT = ("int", "SymInt")
REDUCE_OP = ("str", "Any", "__torch__.torch.classes.c10d.ReduceOp")
ATTRIBUTES = {
    "reduce_op": (REDUCE_OP, 0),
    "root": (INT, 0),
    "root_tensor": (INT, 0),
    "roots": (INT, 1),
    "peer": (INT, 0),
    "tag": (INT, 0),
    "group_size": (INT, 0),
    "dim": (INT, 0),
    "gather_dim": (INT, 0),
    "scatter_dim": (INT, 0),
    "shard_dim": (INT, 0),
    "offsets": (INT, 1),
    "dst_ranks": (INT, 1),
}
"""Attribute of a rule → the types that its argument may have, and how deep its list nests."""

GROUPS = {
    "process_group": (("__torch__.torch.classes.c10d.ProcessGroup",), 0),
    "group_name": (("str", "Any"), 0),
    "ranks": (INT, 1),
    "hdl": (("__torch__.torch.classes.c10d.SymmetricMemory",), 0),
    "symm": (("__torch__.torch.classes.c10d.SymmetricMemory",), 0),
}
"""Argument that holds the group → its types and depth."""

SILENT_TENSORS = {
    ("c10d::allreduce_", "sparse_indices"): "the indices of a sparse allreduce, which only NCCL reads",
    ("c10d::barrier", "tensor"): "it only says on which device to wait",
    ("c10d::monitored_barrier_", "tensor"): "it only says on which device to wait",
}
"""Tensors that no rule speaks of, and why."""

_OPTIONS = (
    "async_op timeout device_ids wait_all_ranks signal offset size byte_offset split_last_dim output_shape "
    "use_fast_accum return_A major_align scatter_dim_after_maybe_reshape tag gather_dim shard_dim"
)
SILENT_OPTIONS = frozenset(_OPTIONS.split())
"""Other arguments that a row need not mention: size functions find them by name, or they change no size."""


@attrs.frozen
class Argument:
    """One argument or return as the text has it: `kind` without list brackets, `?` and alias; `depth` of its lists."""

    name: str
    kind: str
    depth: int
    aliases: bool


def read_type(text: str, name: str = "") -> Argument:
    """Take a schema's type apart: `Tensor(a!)[]?` is a Tensor, once nested, aliased."""
    bare = re.sub(r"\([a-z]+!?( -> [a-z*]+)?\)", "", text)
    return Argument(name, bare.replace("[]", "").replace("?", ""), bare.count("[]"), bare != text)


def read_schema(line: str) -> tuple[str, dict[str, Argument], list[Argument]]:
    """Take a schema's text apart: the op, its arguments by name, its returns."""
    head, _, tail = line.strip().rpartition(" -> ")
    op, _, inside = head.partition("(")
    arguments = {}
    for text in filter(None, inside.removesuffix(")").split(", ")):
        if text != "*":
            kind, _, name = text.partition("=")[0].rpartition(" ")
            arguments[name] = read_type(kind, name)
    whole = tail.startswith("(") and tail.endswith(")")
    returns = [read_type(text) for text in (tail[1:-1] if whole else tail).split(", ") if text]
    return op, arguments, returns


def table_of(op: str) -> str:
    """The file that an op's row belongs into."""
    namespace = op.partition("::")[0]
    file = {"c10d": "c10d.py", "symm_mem": "symm_mem.py"}.get(namespace, "functional.py")
    return f"collective_rules/ops/{file}"


def gate(
    version: str, lines: Iterable[str], ops: Iterable[Op] = OPS.values(), excluded: Iterable[str] = EXCLUSIONS
) -> list[str]:
    """What has to be done to the tables for a torch of this version with these schemas; empty where nothing has."""
    schemas = {op: (line, arguments, returns) for line in lines for op, arguments, returns in [read_schema(line)]}
    rows = {entry.op: entry for entry in ops}
    found = []
    for op, (line, _, _) in schemas.items():
        if op not in rows and op not in excluded:
            found.append(
                f"torch {version} has a new op, {line}: add a row to {table_of(op)}, or a reason to "
                f"collective_rules/ops/exclusions.py"
            )
    for op, entry in rows.items():
        if op in schemas:
            found += (f"torch {version}: {op}: {fault}; see {table_of(op)}" for fault in faults(entry, *schemas[op]))
        elif not entry.since:
            found.append(f"torch {version} has no op {op} any more: take its row out of {table_of(op)}")
        elif newer(version, entry.since):
            found.append(f"torch {version} has no op {op}, although its row in {table_of(op)} says since={entry.since}")
    return found


def newer(version: str, since: str) -> bool:
    """Whether `version` is `since` or later."""
    return [int(n) for n in version.split(".")[:2]] >= [int(n) for n in since.split(".")]


@attrs.frozen
class Use:
    """What a row says of one argument: its name, what it is used as, and the types and depth that this needs."""

    name: str
    role: str
    kinds: tuple[str, ...]
    depth: int | None


def uses(entry: Op, arguments: dict[str, Argument]) -> Iterator[Use]:
    """Every argument that a row names, the fresh returns apart."""
    for part, text in entry.parts.items():
        path = parse_path(text)
        if not may_be_fresh(entry, part) or path.name in arguments:
            yield Use(path.name, f"part {part}", ("Tensor",), len(path.index))
    for attribute, name in entry.attributes.items():
        yield Use(name, attribute, *ATTRIBUTES[attribute])
    for part, split in entry.splits.items():
        if split.argument:
            yield Use(split.argument, f"split sizes of {part}", INT, 1)
    for part, name in entry.dtypes.items():
        yield Use(name, f"dtype of {part}", ("ScalarType",), entry.parts[part].count("[i]"))
    scales = (*entry.row_scales, *entry.row_scales.values())
    for name in (*entry.also_reads, *entry.scratch, *entry.layouts, *entry.own.values(), *scales):
        yield Use(name, "a tensor", ("Tensor",), None)
    if entry.returns not in ("", "empty"):
        yield Use(entry.returns, "what it returns", ("Tensor",), None)
    if entry.batch is not None:
        yield Use(entry.batch.kinds, "kinds of a batch", ("str",), 1)
        yield Use(entry.batch.peers, "peers of a batch", INT, 1)
        yield Use(entry.batch.tags, "tags of a batch", INT, 1)
        yield Use(entry.batch.tensors, "tensors of a batch", ("Tensor",), 1)
    for name in arguments:
        if name in GROUPS:
            yield Use(name, "the group", *GROUPS[name])


def may_be_fresh(entry: Op, part: str) -> bool:
    """Whether `part` is written and has the name of a fresh return."""
    written = {known.path.name for form in RULES[entry.rule].forms for known in form.statement.writes}
    return part in written and parse_path(entry.parts[part]).name in ("output", "outputs")


def faults(entry: Op, line: str, arguments: dict[str, Argument], returns: list[Argument]) -> Iterator[str]:
    """What in a row does not fit the schema."""
    known = list(uses(entry, arguments))
    for use in known:
        if use.name not in arguments:
            yield f"its row names {use.name} as {use.role}, but the schema has no such argument: {line}"
            continue
        got = arguments[use.name]
        if got.kind not in use.kinds or use.depth not in (None, got.depth):
            wanted = " or ".join(use.kinds) + "[]" * (use.depth or 0)
            found = got.kind + "[]" * got.depth
            yield f"its row takes {use.name} as {use.role}, which should be {wanted}, but is {found}"
    yield from return_faults(entry, line, arguments, returns)
    if not set(arguments) & set(GROUPS) and not RULES[entry.rule].one_sided:
        yield f"no argument is known to hold its group: {line}; add its name to collective_rules/ops/row.py"
    mentioned = {use.name for use in known}
    for name in (name for name in arguments if name not in mentioned):
        if arguments[name].kind == "Tensor" and (entry.op, name) not in SILENT_TENSORS:
            yield f"its row does not say whether it reads or writes the tensor {name}: {line}"
        if arguments[name].kind != "Tensor" and name not in SILENT_OPTIONS:
            yield f"its row does not mention the argument {name}: {line}; if it changes no size, add it to this test"


def return_faults(entry: Op, line: str, arguments: dict[str, Argument], returns: list[Argument]) -> Iterator[str]:
    """What in a row does not fit the fresh tensors that the schema returns."""
    fresh = [returned for returned in returns if returned.kind == "Tensor" and not returned.aliases]
    paths = [parse_path(text) for part, text in entry.parts.items() if may_be_fresh(entry, part)]
    paths = [path for path in paths if path.name not in arguments]
    for path, returned in zip(paths, fresh, strict=False):
        if len(path.index) != returned.depth or path.name != ("outputs" if returned.depth else "output"):
            yield f"its row says that it returns {path}, but the schema returns Tensor{'[]' * returned.depth}"
    if len(paths) > len(fresh):
        yield f"its row says that it returns {paths[-1]}, but the schema has no such argument or return: {line}"
    if len(fresh) > len(paths) and not entry.returns and not entry.op.startswith("c10d::"):
        yield f"it returns {len(fresh)} tensors that alias nothing, but its row names {len(paths)}: {line}"


# -- the gate

ALL = {f"live {LIVE}": (LIVE, snapshot.schemas()), **{version: (version, SNAPSHOTS[version]) for version in SNAPSHOTS}}


@pytest.mark.parametrize("source", ALL)
def test_every_op_of_torch_has_a_row_that_fits_or_a_reason(source: str) -> None:
    """For the live torch and for each recorded one."""
    found = gate(*ALL[source])
    assert not found, "\n".join(found)


def test_there_is_a_snapshot_of_the_live_torch() -> None:
    """And it is what the live torch registers."""
    assert LIVE in SNAPSHOTS, f"python tests/schemas/snapshot.py > tests/schemas/torch-{LIVE}.txt"
    assert SNAPSHOTS[LIVE] == snapshot.schemas()


def test_no_row_and_no_reason_is_for_an_op_that_no_torch_has() -> None:
    """What is in the tables is in some torch."""
    known = {read_schema(line)[0] for lines in SNAPSHOTS.values() for line in lines}
    assert known == set(OPS) | set(EXCLUSIONS)


def test_no_op_has_both_a_row_and_a_reason() -> None:
    """An op has a rule, or a reason why it has none."""
    assert set() == set(OPS) & set(EXCLUSIONS)


def test_what_the_library_lists_is_what_the_tables_hold() -> None:
    """`ops()` and `exclusions()` are the tables."""
    assert tuple(OPS) == tuple(cr.ops())
    assert dict(EXCLUSIONS) == cr.exclusions()


@pytest.mark.parametrize("op", EXCLUSIONS)
def test_every_reason_is_a_sentence(op: str) -> None:
    """It says why there is no rule, in words."""
    reason = EXCLUSIONS[op]
    assert reason[0].isupper()
    assert reason.endswith(".")
    assert len(reason.split()) >= 5


@pytest.mark.parametrize("op", [op for op, entry in OPS.items() if entry.since])
def test_a_newer_op_carries_its_schema_from_the_version_that_brought_it(op: str) -> None:
    """`since` is the first snapshot with the op, and `schema` is its line there."""
    first = min(
        (version for version, lines in SNAPSHOTS.items() if any(line.startswith(f"{op}(") for line in lines)),
        key=lambda version: [int(n) for n in version.split(".")],
    )
    assert OPS[op].since == ".".join(first.split(".")[:2])
    assert OPS[op].schema in SNAPSHOTS[first]


@pytest.mark.parametrize("op", [op for op, entry in OPS.items() if not entry.since])
def test_an_op_of_the_oldest_torch_carries_no_schema(op: str) -> None:
    """What the live schema says is not written again."""
    assert not OPS[op].schema


@pytest.mark.parametrize("op", OPS)
def test_a_row_is_available_where_the_live_torch_has_the_op(op: str) -> None:
    """`available` is the live torch's word."""
    assert any(line.startswith(f"{op}(") for line in snapshot.schemas()) == cr.lookup(op).available


# -- the gate's own parser

TAKEN_APART = {
    "a::b(Tensor(a!)[] x, SymInt[]? n=None, *, Tensor?[] y) -> (Tensor(a!)[], Tensor?)": (
        "a::b",
        {
            "x": Argument("x", "Tensor", 1, True),
            "n": Argument("n", "SymInt", 1, False),
            "y": Argument("y", "Tensor", 1, False),
        },
        [Argument("", "Tensor", 1, True), Argument("", "Tensor", 0, False)],
    ),
    "a::b.c(Tensor[][](a!) x) -> ()": ("a::b.c", {"x": Argument("x", "Tensor", 2, True)}, []),
    "a::b() -> Tensor[][]": ("a::b", {}, [Argument("", "Tensor", 2, False)]),
}


@pytest.mark.parametrize("line", TAKEN_APART)
def test_a_schema_is_taken_apart(line: str) -> None:
    """Lists, options, aliases, keyword-only arguments, several returns."""
    assert TAKEN_APART[line] == read_schema(line)


@pytest.mark.parametrize("version", SNAPSHOTS)
def test_a_schema_is_taken_apart_as_torch_does(version: str) -> None:
    """Names, nesting and number of returns are those of torch's own parser (which does not know PyObject)."""
    for line in SNAPSHOTS[version]:
        if "PyObject" not in line:
            schema = torch._C.parse_schema(line)
            op, arguments, returns = read_schema(line)
            assert schema.name == op
            assert {a.name: str(a.type).count("List[") for a in schema.arguments} == {
                name: argument.depth for name, argument in arguments.items()
            }
            assert [str(r.type).count("List[") for r in schema.returns] == [r.depth for r in returns]


# -- the gate can fail

NEWEST = max(SNAPSHOTS, key=lambda version: [int(n) for n in version.split(".")])


def doctored(old: str, new: str) -> list[str]:
    """The newest schemas with `old` replaced; it must have been there."""
    text = "\n".join(SNAPSHOTS[NEWEST])
    assert old in text
    return text.replace(old, new).splitlines()


def new_complaints(lines: list[str]) -> list[str]:
    """What the gate finds in these schemas and not in the recorded ones."""
    before = gate(NEWEST, SNAPSHOTS[NEWEST])
    return [said for said in gate(NEWEST, lines) if said not in before]


def complaint(lines: list[str]) -> str:
    """The gate's one new complaint about these schemas."""
    (only,) = new_complaints(lines)
    return only


@pytest.mark.parametrize(
    "op",
    [
        *("c10d::allreduce_v_", "_c10d_functional::all_shout", "symm_mem::whisper", "fsdp::new"),
        "_c10d_functional::all_reduce.out",
    ],
)
def test_the_gate_reports_a_new_op(op: str) -> None:
    """It says in which file the row is to be written; an overload is an op of its own."""
    line = f"{op}(Tensor input, Any group_name) -> Tensor"
    said = complaint([*SNAPSHOTS[NEWEST], line])
    assert said == (
        f"torch {NEWEST} has a new op, {line}: add a row to {table_of(op)}, or a reason to "
        "collective_rules/ops/exclusions.py"
    )


@pytest.mark.parametrize("op", ["c10d::send", "symm_mem::nccl_put", "_c10d_functional::isend"])
def test_the_gate_reports_a_vanished_op(op: str) -> None:
    """It says which row is to go."""
    lines = [line for line in SNAPSHOTS[NEWEST] if not line.startswith(f"{op}(")]
    assert f"torch {NEWEST} has no op {op} any more: take its row out of {table_of(op)}" == complaint(lines)


def test_the_gate_reports_an_op_that_comes_later_than_its_row_says() -> None:
    """`since` is checked too."""
    lines = [line for line in SNAPSHOTS[NEWEST] if not line.startswith("_c10d_functional::wait_tensors(")]
    assert "says since=2.15" in complaint(lines)


RENAMED = {
    "a part": ("allgather_(Tensor[][] output_tensors", "allgather_(Tensor[][] output_lists", "part outputs"),
    "a written part": ("alltoall_base_(Tensor output,", "alltoall_base_(Tensor out,", "returns output"),
    "an out": ("bool split_last_dim, Tensor(b!) output)", "bool split_last_dim, Tensor(b!) out)", "returns output"),
    "the root": ("broadcast_(Tensor(a!) input, int src", "broadcast_(Tensor(a!) input, int root", "as root"),
    "split sizes": ("int[] output_split_sizes, int[]", "int[] out_splits, int[]", "split sizes of output"),
    "also read": ("Tensor(a) sigpad, int signal", "Tensor(a) signal_pad, int signal", "sigpad"),
    "a peer": ("nccl_put(Tensor(a!) tensor, int peer)", "nccl_put(Tensor(a!) tensor, int dst)", "as peer"),
    "kinds": ("_c10d_functional::batch_p2p_ops(str[] op_list", "_c10d_functional::batch_p2p_ops(str[] kinds", "kinds"),
    "a dtype": ("ScalarType? out_dtype", "ScalarType? dtype", "dtype of output"),
    "the group": (
        "_low_contention_reduce_scatter(Tensor tensor, str reduce_op, str group_name",
        "_low_contention_reduce_scatter(Tensor tensor, str reduce_op, str pg",
        "hold its group",
    ),
}
"""What is renamed → (text of the schema, its replacement, what the gate says)."""


@pytest.mark.parametrize("what", RENAMED)
def test_the_gate_reports_a_renamed_argument(what: str) -> None:
    """Whatever column of the row names it."""
    old, new, said = RENAMED[what]
    found = new_complaints(doctored(old, new))
    assert any(said in one for one in found), found
    assert all("collective_rules/ops/" in one for one in found)


RETYPED = {
    "a tensor becomes a list": ("_allgather_base_(Tensor output_tensor", "_allgather_base_(Tensor[] output_tensor"),
    "a list loses a level": (
        "c10d::scatter_(Tensor[] output_tensors, Tensor[][]",
        "c10d::scatter_(Tensor[] output_tensors, Tensor[]",
    ),
    "a root becomes a name": ("broadcast_(Tensor(a!) input, int src", "broadcast_(Tensor(a!) input, str src"),
    "a reduce op becomes a number": (
        "multimem_all_reduce_(Tensor(a!) input, str",
        "multimem_all_reduce_(Tensor(a!) input, int",
    ),
    "a group becomes a tensor": (
        "nvshmem_broadcast(Tensor(a!) input, int root, str",
        "nvshmem_broadcast(Tensor(a!) input, int root, Tensor",
    ),
    "a return becomes a list": (
        "all_gather_into_tensor(Tensor shard, str tag, int[] ranks, int group_size) -> Tensor",
        "all_gather_into_tensor(Tensor shard, str tag, int[] ranks, int group_size) -> Tensor[]",
    ),
    "split sizes become a tensor": (
        "_c10d_functional::all_to_all_single(Tensor input, SymInt[] out",
        "_c10d_functional::all_to_all_single(Tensor input, Tensor out",
    ),
    "roots become one": ("int[] roots", "int roots"),
}


@pytest.mark.parametrize("change", RETYPED)
def test_the_gate_reports_a_changed_type(change: str) -> None:
    """Where the type no longer fits the part that the argument plays."""
    found = complaint(doctored(*RETYPED[change]))
    assert " should be " in found or "but the schema returns" in found


@pytest.mark.parametrize(
    "harmless",
    [
        ("multimem_all_reduce_(Tensor(a!) input, str", "multimem_all_reduce_(Tensor(a!) input, Any"),
        ("nvshmem_broadcast(Tensor(a!) input, int root", "nvshmem_broadcast(Tensor(a!) input, SymInt root"),
        ("int root_rank, bool async_op=True, int timeout=-1)", "int root_rank, bool async_op=False)"),
    ],
    ids=["str to Any", "int to SymInt", "a default and an option less"],
)
def test_the_gate_lets_a_harmless_change_pass(harmless: tuple[str, str]) -> None:
    """Types that the row takes as well, and options of which it does not speak."""
    assert not new_complaints(doctored(*harmless))


def test_the_gate_reports_a_new_tensor_argument() -> None:
    """A tensor of which the row says nothing may travel."""
    found = complaint(doctored("c10d::send(Tensor[] tensors,", "c10d::send(Tensor[] tensors, Tensor scale,"))
    assert "does not say whether it reads or writes the tensor scale" in found


def test_the_gate_reports_a_new_option() -> None:
    """An option may change what the op does."""
    found = complaint(doctored("c10d::send(Tensor[] tensors,", "c10d::send(Tensor[] tensors, bool twice,"))
    assert "does not mention the argument twice" in found


def test_the_gate_reports_a_new_return() -> None:
    """A fresh tensor of which the row says nothing."""
    old = "symm_mem::one_shot_all_reduce(Tensor input, str reduce_op, str group_name) -> Tensor"
    assert "returns 2 tensors that alias nothing" in complaint(doctored(old, f"{old[:-6]}(Tensor, Tensor)"))


@pytest.mark.parametrize("op", [op for op, entry in OPS.items() if not entry.since])
def test_the_gate_misses_every_row_that_is_taken_out(op: str) -> None:
    """Each row is needed: without it, the gate names its op and nothing else."""
    rest = [entry for entry in OPS.values() if entry.op != op]
    (only,) = set(gate(LIVE, SNAPSHOTS[LIVE], ops=rest)) - set(gate(LIVE, SNAPSHOTS[LIVE]))
    assert f"has a new op, {op}(" in only


@pytest.mark.parametrize("op", EXCLUSIONS)
def test_the_gate_misses_every_reason_that_is_taken_out(op: str) -> None:
    """Each reason is needed in some torch."""
    rest = [known for known in EXCLUSIONS if known != op]
    (only,) = set(gate(NEWEST, SNAPSHOTS[NEWEST], excluded=rest)) - set(gate(NEWEST, SNAPSHOTS[NEWEST]))
    assert f"has a new op, {op}(" in only

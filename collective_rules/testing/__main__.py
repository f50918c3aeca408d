"""`python -m collective_rules.testing`: legal calls of each op, on a backend whose ranks are processes.

Started by torchrun, every process is a rank of the job; else --nproc processes are started here. What is printed: a
table of the ops, each with how many groups of calls passed, and the first one of each that did not.

Exit status: 0 all passed, 1 not all did, 2 the command could not be carried out (one line on standard error). A hang
ends a job of torchrun's, and so does the death of a rank. Processes that were started here are replaced.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Annotated, Any, NoReturn, Protocol

import attrs
import torch
import typer
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from torch._C import _distributed_c10d as _c10d
from torch.distributed.rendezvous import rendezvous

from collective_rules.backends import BACKENDS, limits_of
from collective_rules.call import Call
from collective_rules.cli import CANNOT, carry_out
from collective_rules.cli.output import CommandError, Report, suggestion
from collective_rules.cli.render import plain
from collective_rules.errors import CollectiveRulesError, UnknownOpError
from collective_rules.ops import OPS, Row, lookup
from collective_rules.records import from_record, to_record
from collective_rules.sandbox.sandbox import DIES, HANGS, OK, RAISES, SILENTLY_WRONG
from collective_rules.testing.dispatch import has_cpu_kernel
from collective_rules.testing.drawing import Wish, draw_calls, drawable
from collective_rules.testing.processes import ProcessWorld
from collective_rules.testing.rank import Answer, Rank, checked_backend, in_step, merged, silent
from collective_rules.testing.run_calls import Trial
from collective_rules.testing.strategies import sample
from collective_rules.text_table import Table

_COLUMNS = {OK: "passed", RAISES: "raised", SILENTLY_WRONG: "wrong", HANGS: "hung", DIES: "died"}
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_START_LIMIT, _PATIENCE = 120.0, 600.0  # seconds for the ranks to connect, and for rank 0 to draw what comes next
_GRACE = 5.0
_LONGEST = 86_400.0

Group = tuple[Call, ...]


class _Ranks(Protocol):
    """What carries out groups of calls: a `ProcessWorld`, or a `_Job`."""

    size: int

    def carry_out(self, calls: Sequence[Call]) -> Trial: ...


class _EndedError(Exception):
    """The ranks cannot go on; `trial` is the last that they had."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(str(trial))
        self.trial = trial


class _TerminatedError(BaseException):
    """SIGTERM has come: torchrun ends all ranks when one has died. Not an Exception: no backend's to catch."""


# -- what is tried


def _chosen(patterns: Sequence[str], backend: str | None, size: int) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of the ops that match `patterns` and can be tried, and op → why not of the others."""
    for pattern in patterns:
        if not fnmatch.filter(OPS, pattern):
            raise CommandError(f"--ops {pattern!r} names no op{suggestion(pattern, OPS)}")
    rows, left_out = [], {}
    for op in OPS:
        if not any(fnmatch.fnmatchcase(op, pattern) for pattern in patterns):
            continue
        why = _why_not(op, backend, size)
        if why:
            left_out[op] = why
        else:
            rows.append(lookup(op))
    if not rows:
        op, why = next(iter(left_out.items()))
        raise CommandError(f"--ops {' '.join(patterns)} names no op that can be tried: {op}: {why}")
    return rows, left_out


def _why_not(op: str, backend: str | None, size: int) -> str:
    try:
        row = lookup(op)
    except UnknownOpError:
        return f"it is not in torch {torch.__version__}"
    if not row.available:
        return f"it is not in torch {torch.__version__}"
    missing = [limit.id for limit in limits_of(backend, row) if limit.missing]
    if missing or not has_cpu_kernel(row):
        return f"{backend} has no kernel of it ({missing[0]})" if missing else "it has no CPU kernel"
    return "it takes two ranks" if row.rule.point_to_point and size < 2 else drawable(row)


def _drawn(row: Row, backend: str | None, size: int, examples: int, seed: int) -> list[Group]:
    """Return legal groups of calls: the same for the same arguments, and fewer where there are no more."""
    return sample(st.composite(draw_calls)(row, backend, size, Wish(ranks=size)), examples, seed=seed)


# -- what came of it


@attrs.define
class _Tally:
    """How many groups of one op came to what, and the first that was not ok."""

    op: str
    counts: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(_COLUMNS, 0))
    first: tuple[Group, Trial] | None = None

    def add(self, group: Group, trial: Trial) -> None:
        self.counts[trial.outcome] += 1
        if trial.outcome != OK and self.first is None:
            self.first = group, trial


def _conduct(ranks: _Ranks, rows: Iterable[Row], draw: Callable[[Row], list[Group]]) -> tuple[list[_Tally], str]:
    """Have groups of calls of all ops carried out; return what they came to, and why it ended early, or ""."""
    tallies: list[_Tally] = []
    for row in rows:
        tallies.append(_Tally(row.op))
        group: Group = ()
        try:
            for group in draw(row):
                tallies[-1].add(group, ranks.carry_out(group))
        except _EndedError as ended:
            tallies[-1].add(group, ended.trial)
            return tallies, f"The job ended with {row.op}: after a hang, its ranks cannot go on."
        except _TerminatedError:
            tallies[-1].add(group, Trial(DIES, ("the job was terminated: torchrun says which rank died",)))
            return tallies, f"The job was terminated while it was at {row.op}."
    return tallies, ""


def _told(tallies: Sequence[_Tally], left_out: dict[str, str], early: str) -> str:
    columns = ("op", *_COLUMNS.values())
    rows = tuple((tally.op, *(str(tally.counts[outcome]) for outcome in _COLUMNS)) for tally in tallies)
    blocks: list[str | Table] = [Table(columns, rows, right=frozenset(columns[1:]))]
    for tally in tallies:
        if tally.first is not None:
            group, trial = tally.first
            lines = [f"{tally.op} {trial.outcome}", *trial.details, *map(repr, group)]
            blocks.append("\n  ".join(map(_on_one_line, lines)))
    reasons = {why: [op for op in left_out if left_out[op] == why] for why in left_out.values()}
    if left_out:
        blocks.append("\n  ".join(["Not tried:", *(f"{why}: {', '.join(ops)}" for why, ops in reasons.items())]))
    return plain(Report({}, tuple([*blocks, early] if early else blocks)))


def _on_one_line(text: str) -> str:
    """A backend's message may hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


# -- the ranks of a job of torchrun's


class _Job:
    """The ranks of a job, led by rank 0: calls go out over the job's store, and all answers come back over it.

    Each rank makes its calls in a thread, whose end nobody but rank 0 waits for, and rank 0 only until the deadline. So
    a rank that hangs can be told to leave.
    """

    def __init__(self, timeout: float, backend: str, device: str) -> None:
        limit = timedelta(seconds=_START_LIMIT)
        store, self.rank, self.size = next(rendezvous("env://", timeout=limit))
        self._timeout = timeout
        # A wait for a key keeps all others from using the same connection: the backend, and the thread that answers.
        self._store, self._answers = (_c10d.PrefixStore("collective_rules.job", store.clone()) for _ in range(2))
        self._count, self._afresh, self._lost = 0, False, False
        self._ranks: list[Rank] = []

        def start() -> Answer:
            self._ranks.append(Rank(self.rank, self.size, store, timeout, backend=backend, device=device))
            return Answer(OK)

        self._begin(start)

    def connect(self) -> None:
        """On rank 0: wait until all ranks are there. Raises `CollectiveRulesError` where some are not."""
        trial = merged(self._gathered(_START_LIMIT))
        if trial.outcome != OK:
            self._lost = True
            raise CollectiveRulesError("; ".join(trial.details))

    def carry_out(self, calls: Sequence[Call]) -> Trial:
        """On rank 0: have all ranks make their calls. Raises `_EndedError` where some hang."""
        afresh, self._afresh = self._afresh, False
        self._tell({"calls": [to_record(call) for call in calls], "afresh": afresh})
        # Nothing in Python ends a backend that hangs while it holds the interpreter lock.
        signal.alarm(math.ceil(self._timeout + 2 * _GRACE))
        self._begin(functools.partial(self._carry_out, calls, afresh))
        answers = self._gathered(self._timeout)
        signal.alarm(0)
        self._afresh = not in_step(answers.values())
        self._lost = any(answer.outcome == HANGS for answer in answers.values())
        trial = merged(answers)
        if self._lost:
            raise _EndedError(trial)
        return trial

    def follow(self) -> None:
        """On other ranks: do what rank 0 says, until it says that this is all."""
        while "calls" in (said := self._heard()):
            calls = [from_record(record) for record in said["calls"]]
            self._begin(functools.partial(self._carry_out, calls, said["afresh"]))
        self._close(said["lost"])
        self._store.set(f"left.{self.rank}", "")

    def leave(self) -> None:
        """On rank 0: tell the others to leave, and wait until they have, or for some seconds."""
        self._tell({"lost": self._lost})
        self._close(self._lost)
        until = time.monotonic() + _GRACE
        # The store may be this process's: the others need it until then.
        self._wait_for((f"left.{rank}" for rank in range(1, self.size)), until)

    def _carry_out(self, calls: Sequence[Call], afresh: bool) -> Answer:
        return self._ranks[0].carry_out(calls, afresh=afresh)

    def _tell(self, what: dict[str, Any]) -> None:
        self._count += 1
        self._store.set(f"call.{self._count}", json.dumps(what))

    def _heard(self) -> Any:
        self._count += 1
        key = f"call.{self._count}"
        self._store.wait([key], timedelta(seconds=_PATIENCE))
        return json.loads(self._store.get(key))

    def _begin(self, function: Callable[[], Answer]) -> None:
        """Run `function` in a thread, which publishes its answer."""
        key = f"answer.{self._count}.{self.rank}"

        def run() -> None:
            try:
                answer = function()
            except BaseException as error:
                answer = Answer(RAISES, (f"rank {self.rank}: {type(error).__name__}: {error}",))
            self._answers.set(key, answer.text())

        threading.Thread(target=run, daemon=True).start()

    def _gathered(self, timeout: float) -> dict[int, Answer]:
        """Return all ranks' answers, and delete what the ranks have said."""
        keys = {rank: f"answer.{self._count}.{rank}" for rank in range(self.size)}
        come = self._wait_for(keys.values(), time.monotonic() + timeout)
        answers = {
            rank: Answer.read(self._store.get(key)) if key in come else silent(rank, timeout)
            for rank, key in keys.items()
        }
        for key in (*come, f"call.{self._count}"):
            self._store.delete_key(key)
        return answers

    def _wait_for(self, keys: Iterable[str], until: float) -> set[str]:
        """Return those of `keys` that are there in time. Not in C++, where no signal is handled."""
        missing, come, pause = set(keys), set[str](), 0.0002
        while missing and time.monotonic() < until:
            found = {key for key in missing if self._store.check([key])}
            missing, come = missing - found, come | found
            if missing:
                time.sleep(pause)
                pause = min(1.5 * pause, 0.01)
        return come

    def _close(self, lost: bool) -> None:
        """Take down the process group, if that can be done; what hangs is left."""
        if not lost and self._ranks:
            thread = threading.Thread(target=self._ranks[0].close, daemon=True)
            thread.start()
            thread.join(_GRACE)


@contextlib.contextmanager
def _led(job: _Job) -> Iterator[_Job]:
    """All ranks leave at the end. If a signal ends the job, none needs to be told to: all processes get it."""
    by_signal = False

    def terminate(*_: object) -> NoReturn:
        nonlocal by_signal
        by_signal = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the table is about to be printed
        raise _TerminatedError

    signal.signal(signal.SIGTERM, terminate)
    try:
        job.connect()
        yield job
    except KeyboardInterrupt:
        by_signal = True
        raise
    finally:
        if not by_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            job.leave()


# -- the command


def _try(
    backend: Annotated[str, typer.Option(help="What torch.distributed calls it, or package.module:factory.")] = "gloo",
    ops: Annotated[list[str] | None, typer.Option(help="Only ops that match, such as 'c10d::*'.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="How many groups of calls of each op, at most.")] = 20,
    seed: Annotated[int, typer.Option(help="Another one draws other calls.")] = 0,
    timeout: Annotated[float, typer.Option(help="How many seconds a group of calls may take.")] = 30.0,
    device: Annotated[str, typer.Option(help="cpu, or the type of an accelerator such as cuda.")] = "cpu",
    nproc: Annotated[int | None, typer.Option(min=1, help="How many ranks to start, without torchrun.")] = None,
) -> int:
    """Make legal calls of each op on a backend, and judge what comes back. Start with torchrun, or with --nproc."""
    if _launched() == (nproc is not None):
        raise CommandError("--nproc is for torchrun to say" if nproc else "say --nproc, or start this with torchrun")
    if not 0 < timeout < math.inf:
        raise CommandError(f"--timeout {timeout:g} should be a positive number of seconds")
    if timeout > _LONGEST:
        raise CommandError(f"--timeout {timeout:g} is more than {_LONGEST:g} seconds")
    size = _of_torchrun("WORLD_SIZE") if nproc is None else nproc
    checked_backend(backend)
    table = backend if backend in BACKENDS else None
    rows, left_out = _chosen(ops or ["*"], table, size)

    def draw(row: Row) -> list[Group]:
        return _drawn(row, table, size, examples, seed)

    if nproc is not None:
        with ProcessWorld(size, timeout, backend=backend, device=device) as world:
            tallies, early = _conduct(world, rows, draw)
    elif _follower():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the midst of a wait in C++, too
        _Job(timeout, backend, device).follow()
        return 0
    else:
        with _led(_Job(timeout, backend, device)) as job:
            tallies, early = _conduct(job, rows, draw)
    sys.stdout.write(_told(tallies, left_out, early))
    sys.stdout.flush()
    return int(bool(early) or any(tally.first is not None for tally in tallies))


def _of_torchrun(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise CommandError(f"{name}={text!r} in the environment should be a number, as torchrun sets it")
    return int(text)


def _launched() -> bool:
    return all(name in os.environ for name in _LAUNCHED)


def _follower() -> bool:
    return _launched() and os.environ["RANK"] != "0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command line (that of the process, if left out) and return its exit status."""
    return carry_out(lambda: _run(arguments), _refused, "--help")


def _run(arguments: Sequence[str] | None) -> int:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(_try)
    status: int | None = typer.main.get_command(app).main(
        None if arguments is None else list(arguments), "python -m collective_rules.testing", standalone_mode=False
    )
    return status or 0  # None for --help


def _refused(why: str) -> int:
    """Rank 0 speaks for all: what is wrong with the command line is wrong for each."""
    if _follower():
        return 0
    sys.stderr.write(f"collective_rules.testing: {' '.join(why.split())}\n")
    return CANNOT


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        set_hypothesis_home_dir(home)  # where it keeps notes on the code that it runs: not in the current directory
        ended_with = main()
    if _launched():  # what hangs would keep the interpreter from ending
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended_with)
    sys.exit(ended_with)

"""A script as every rank, side by side in processes that send nothing; how each ended, as findings.

It knows processes and endings. What a rank does in its process is in `one_rank`, how ranks are compared in `comparing`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from collective_rules.comparison.compare import Comparison, compare
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.finding import ERROR, UNDECIDABLE, Finding
from collective_rules.messages import ranks_text
from collective_rules.recordings import Recording, SourceError, read
from collective_rules.reports.wording import plural
from collective_rules.sandbox.sandbox import DIES, HANGS, OK, Sandbox, Verdict

__all__ = ["Ending", "Rehearsal", "endings_text", "rehearse"]

_JOB = "collective_rules.comparison.worker:run_rank"
_PATIENCE = 10.0
"""Seconds that a rank has to end by itself once its deadline is over, before it is killed."""
_MOST_OUTPUT = 1 << 16
_KILLED, _DIED = "killed", "died"


@attrs.frozen
class Ending:
    """How the script ended as one rank.

    `ended`: "finished", "stopped" (after the steps asked for), "raised", "exited", "illegal", "unknown value" (which a
    dry run cannot know), "late" (not done within the deadline), "killed" (late, and could not be stopped) or "died".
    `where` is the script's line, `calls` how many collectives it made till then.
    """

    rank: int
    ended: str
    status: int = 0
    where: str = ""
    message: str = ""
    calls: int = 0
    judged: bool = False


@attrs.frozen
class Rehearsal:
    """A script run as several ranks: how each ended, what the first of them put out, and the ranks compared."""

    endings: tuple[Ending, ...]
    output: str
    comparison: Comparison


def rehearse(
    script: str,
    arguments: Sequence[str] = (),
    *,
    world_size: int,
    ranks: Iterable[int] | None = None,
    alike: Iterable[Iterable[int]] = (),
    local_world_size: int | None = None,
    steps: int | None = None,
    item: float | None = None,
    backend: str | None = None,
    deadline: float = 300.0,
    jobs: int | None = None,
    context: int = 3,
    watch: Callable[[int, int], None] = lambda done, of: None,
    box: Sandbox | None = None,
) -> Rehearsal:
    """Dry-run a script as `ranks` (all, if left out), `jobs` side by side, and compare what they communicate.

    `alike` are classes of ranks that do the same: of each, only the first is run. A rank has `deadline` seconds.
    `watch` is told how many ranks are done, of how many. The other options are those of `dry_run`; `box` is where the
    ranks are run, else a sandbox of this call's own. Linux only, as the sandbox.

    Raises `CollectiveRulesError` where there is no such script, options do not fit, or the script fails on all ranks.
    """
    if not Path(script).is_file() and not _may_be_module(script):
        raise CollectiveRulesError(f"{script}: no such script, and no module of this name")
    asked = _ranks(range(world_size) if ranks is None else ranks, world_size, "ranks")
    classes = _classes(alike, world_size)
    chosen = _representatives(asked, classes)
    jobs = len(os.sched_getaffinity(0)) if jobs is None else jobs
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="precheck-")))
        used = box or stack.enter_context(Sandbox(workers=min(jobs, len(chosen)), warm=[_JOB]))
        output = folder / "output"
        payloads = [
            {
                "script": script,
                "arguments": list(arguments),
                "world_size": world_size,
                "rank": rank,
                "local_world_size": local_world_size,
                "steps": steps,
                "item": item,
                "deadline": deadline,
                "ledger": str(folder / f"rank{rank}.jsonl"),
                "output": str(output) if rank == chosen[0] else "",
            }
            for rank in chosen
        ]
        watch(0, len(chosen))
        endings: dict[int, Ending] = {}
        for place, verdict in used.map(_JOB, payloads, deadline=deadline + _PATIENCE):
            endings[chosen[place]] = _ending(chosen[place], verdict, deadline)
            watch(len(endings), len(chosen))
        ended = tuple(endings[rank] for rank in chosen)
        _must_have_run(ended, script, _tail(output))
        lost = [each.rank for each in ended if each.ended in _LOST]
        comparison = compare(
            _recordings(folder, chosen),
            backend,
            findings=_about(ended),
            incomplete=lost,
            expected=(),
            notes=_notes(ended, asked, classes, world_size),
            context=context,
        )
        return Rehearsal(ended, _tail(output), comparison)


def _may_be_module(name: str) -> bool:
    """Whether there is a module of this name, or a package that may hold it: none is imported here."""
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def endings_text(endings: Sequence[Ending], world_size: int) -> str:
    """Return which ranks were run, and how they ended.

    >>> endings_text([Ending(0, "finished"), Ending(1, "raised"), Ending(2, "finished")], 4)
    'ranks 0-2 of 4: ranks 0, 2 finished, rank 1 raised'
    """
    by_ending: dict[str, list[int]] = {}
    for each in endings:
        by_ending.setdefault(each.ended, []).append(each.rank)
    told = ", ".join(f"{ranks_text(ranks)} {_ENDED.get(ended, ended)}" for ended, ranks in by_ending.items())
    return f"{ranks_text(each.rank for each in endings)} of {world_size}: {told}"


_ENDED = {
    "exited": "ended with another status than 0",
    "illegal": "ended at an illegal call",
    "unknown value": "ended at a value that is not known",
    "late": "did not end in time",
    "killed": "did not end in time",
}


def _ranks(ranks: Iterable[int], world_size: int, name: str) -> tuple[int, ...]:
    known = tuple(dict.fromkeys(ranks))
    wrong = [rank for rank in known if not 0 <= rank < world_size]
    if wrong or not known:
        raise CallError(
            f"{name}={list(known)[:8]}, but should be ranks from 0 to {world_size - 1}, for world_size={world_size}"
        )
    return known


def _classes(alike: Iterable[Iterable[int]], world_size: int) -> tuple[tuple[int, ...], ...]:
    classes = tuple(_ranks(each, world_size, "alike") for each in alike)
    seen: set[int] = set()
    for each in classes:
        twice = seen & set(each)
        if twice:
            raise CallError(f"alike: {ranks_text(twice)} cannot be in two classes of ranks that do the same")
        seen |= set(each)
    return classes


def _representatives(asked: Sequence[int], classes: Iterable[tuple[int, ...]]) -> list[int]:
    """The first rank of each class, and the ranks in none."""
    class_of = {rank: place for place, each in enumerate(classes) for rank in each}
    chosen: dict[Any, int] = {}
    for rank in asked:
        chosen.setdefault(("class", class_of[rank]) if rank in class_of else rank, rank)
    return list(chosen.values())


def _ending(rank: int, verdict: Verdict, deadline: float) -> Ending:
    if verdict.outcome == OK:
        return Ending(rank, **verdict.value)
    if verdict.outcome == HANGS:
        return Ending(rank, _KILLED, 1, "", f"not done within {deadline:g} s, and it had to be killed")
    text = str(verdict.message).strip().splitlines()
    return Ending(rank, _DIED, 1, "", f"{verdict}{f', after: {text[-1]}' if text and verdict.outcome == DIES else ''}")


_LOST = ("unknown value", "late", _KILLED, _DIED)
"""Endings after which the rank's real program would go on."""

_FAILS = ("raised", "exited", "unknown value", "refused")
_SAYS: Mapping[str, tuple[str, str, str]] = {
    "raised": ("RUN1", ERROR, "{who} {raises}{where}: {message}"),
    "exited": ("RUN2", ERROR, "{who} {ends} with status {status}{where}{told}"),
    "late": ("RUN3", ERROR, "{who} {is} not done within the deadline{where}"),
    _KILLED: ("RUN3", ERROR, "{who} {is} {message}"),
    _DIED: ("RUN4", ERROR, "{who} {message}"),
    "unknown value": ("RUN5", UNDECIDABLE, "{who} {needs} a value that a dry run does not have: {message}"),
    "illegal": ("RUN6", ERROR, "{who} {ends} at a call that is illegal{where}: {message}"),
}
_ADVICE = {
    "RUN1": "The other ranks are compared; what they wait for from then on, they wait for in vain.",
    "RUN2": "The other ranks are compared; what they wait for from then on, they wait for in vain.",
    "RUN3": "It may wait for something that only another process does, or need more time (--deadline).",
    "RUN4": "Nothing is said of its calls. Dry-run this rank alone to see why: collective-rules dry-run --rank.",
    "RUN5": "What follows on that rank is not known; --item gives such numbers a value.",
    "RUN6": "Nothing after it was run.",
}


def _about(endings: Iterable[Ending]) -> Iterator[Finding]:
    """Say how ranks ended that did not finish; ranks that ended alike, at once."""
    alike: dict[tuple[str, str, str, int], list[int]] = {}
    for each in endings:
        if each.ended in _SAYS and not (each.ended == "illegal" and each.judged):
            alike.setdefault((each.ended, each.where, each.message, each.status), []).append(each.rank)
    for (ended, where, message, status), ranks in alike.items():
        id_, severity, says = _SAYS[ended]
        one = len(ranks) == 1
        verbs = {"raises": "raises" if one else "raise", "ends": "ends" if one else "end", "is": "is" if one else "are"}
        text = says.format(
            who=ranks_text(ranks),
            where=f" at {where}" if where else "",
            message=message,
            told=f": {message}" if message else "",
            status=status,
            needs="needs" if one else "need",
            **verbs,
        )
        first, _, rest = text.partition("\n")
        more = f"\n{rest}" if rest else ""
        yield Finding(id_, severity, f"{first}   [{id_}]{more}\n{_ADVICE[id_]}", tuple(ranks))


def _must_have_run(endings: Sequence[Ending], script: str, output: str) -> None:
    """Refuse a script that fails on every rank: then it is the script that is to be mended."""
    if all(each.ended in _FAILS for each in endings):
        first = endings[0]
        if first.ended == "refused":
            raise CollectiveRulesError(first.message)
        said = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")
        what = first.message or f"it ends with status {first.status}" + (f", and put out last: {said}" if said else "")
        where = f"{first.where or script}: " if first.ended != "unknown value" else ""
        every = "on every rank that was run, the first: " if len(endings) > 1 else ""
        raise CollectiveRulesError(f"the script fails {every}{where}{what}")


def _recordings(folder: Path, ranks: Iterable[int]) -> Iterator[Recording]:
    for rank in ranks:
        with contextlib.suppress(SourceError):  # of a rank that died there is none, and its ending says so
            yield attrs.evolve(read(folder / f"rank{rank}.jsonl", rank=rank), path=f"(dry run of rank {rank})")


def _notes(
    endings: Sequence[Ending], asked: Sequence[int], classes: Iterable[tuple[int, ...]], world_size: int
) -> Iterator[str]:
    illegal = [each for each in endings if each.ended == "illegal" and each.judged]
    if illegal:
        does = "was" if len(illegal) == 1 else "were"
        who = ranks_text(each.rank for each in illegal)
        yield f"{who[0].upper()}{who[1:]} {does} not run beyond the illegal call."
    run = {each.rank for each in endings}
    for each in classes:
        vouched = [rank for rank in each if rank in asked and rank not in run]
        if vouched:
            first = next(rank for rank in each if rank in run)
            yield f"Not run, as you say that they do what rank {first} does: {ranks_text(vouched)}."
    left = world_size - len(asked)
    if left:
        yield f"Not run: {plural(left, 'rank')} of {world_size:,} that you did not ask for. Nothing is said of them."
    if any(each.ended == "stopped" for each in endings):
        yield "Stopped after the optimizer steps that you asked for."
    yield (
        "A dry run has no values: every rank is taken to receive what it would send itself. A program whose calls "
        "depend on received values may do otherwise."
    )


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _MOST_OUTPUT))
            return file.read().decode(errors="replace")
    except OSError:
        return ""

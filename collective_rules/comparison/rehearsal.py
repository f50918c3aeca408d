"""Runs a script as each of its ranks, side by side in processes that send nothing, and compares the ranks.

`worker` runs one rank in its process, and `compare` compares the ranks. This module knows how a script ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from collective_rules.comparison.compare import Comparison, compare
from collective_rules.comparison.options import PrecheckOptions
from collective_rules.errors import CollectiveRulesError
from collective_rules.finding import ERROR, UNDECIDABLE, Finding
from collective_rules.messages import ranks_text, ranks_verb
from collective_rules.pages.wording import plural
from collective_rules.recordings import Recording, SourceError, read
from collective_rules.sandbox import DIES, HANGS, OK, Result, Sandbox

_JOB = "collective_rules.comparison.worker:run_rank"
_PATIENCE = 10.0
"""Seconds that a rank has to end by itself once its deadline is over, before it is killed."""
_MOST_OUTPUT = 1 << 16
_KILLED, _DIED = "killed", "died"


@attrs.frozen
class RankResult:
    """How the script ended as one rank.

    `ended`: "finished", "stopped" (after the steps asked for), "raised", "exited", "illegal", "unknown value" (the
    script reads a value that a dry run does not have), "late" (not done within the deadline), "killed" (late, and could
    not be stopped), "died", or "refused" (there is no such script). `where` is the script's line, `calls` the number of
    collectives until then. `judged`: the illegal call breaks a rule.
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
    """A script run as several ranks: how each ended, the output of the first rank, its recordings, the comparison."""

    results: tuple[RankResult, ...]
    output: str
    recordings: tuple[Recording, ...]
    comparison: Comparison

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings, the worst first; ranks are global."""
        return self.comparison.findings

    @property
    def status(self) -> int:
        """The exit status of the command: 1 where there is an error, else 0."""
        return int(self.comparison.is_wrong)


def rehearse(
    script: str,
    arguments: Sequence[str],
    options: PrecheckOptions,
    *,
    watch: Callable[[int, int], None] = lambda done, of: None,
    box: Sandbox | None = None,
) -> Rehearsal:
    """Dry-run a script as each of its ranks, side by side, and compare what the ranks communicate.

    `watch` is called with the number of ranks that are done, and of all that are run. `box` is the sandbox in which
    the ranks run; without one, the call makes its own. Linux only, as the sandbox.

    Raises `CollectiveRulesError` where there is no such script, or where the script fails on all ranks.
    """
    if not Path(script).is_file() and not _may_be_module(script):
        raise CollectiveRulesError(f"{script}: no such script, and no module of this name")
    ranks, deadline = options.representatives, options.deadline
    jobs = len(os.sched_getaffinity(0)) if options.jobs is None else options.jobs
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="precheck-")))
        used = box or stack.enter_context(Sandbox(workers=min(jobs, len(ranks)), warm=[_JOB]))
        output = folder / "output"
        payloads = [
            {
                "script": script,
                "arguments": list(arguments),
                "options": attrs.asdict(options.of_rank(rank)),
                "deadline": deadline,
                "ledger": str(folder / f"rank{rank}.jsonl"),
                "output": str(output) if rank == ranks[0] else "",
            }
            for rank in ranks
        ]
        watch(0, len(ranks))
        by_rank: dict[int, RankResult] = {}
        for place, result in used.map(_JOB, payloads, deadline=deadline + _PATIENCE):
            by_rank[ranks[place]] = _rank_result(ranks[place], result, deadline)
            watch(len(by_rank), len(ranks))
        results = tuple(by_rank[rank] for rank in ranks)
        _must_have_run(results, script, _tail(output))
        recordings = tuple(_recordings(folder, ranks))
        comparison = compare(
            recordings,
            options.backend,
            findings=_findings(results),
            incomplete=[each.rank for each in results if each.ended in _LOST],
            expected=(),
            notes=_notes(results, options),
            context=options.context,
        )
        return Rehearsal(results, _tail(output), recordings, comparison)


def _may_be_module(name: str) -> bool:
    """Return whether there is a module of this name, or a package that may have it; nothing is imported."""
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def results_text(results: Sequence[RankResult], world_size: int) -> str:
    """Return in one sentence which ranks were run, and how they ended.

    >>> results_text([RankResult(0, "finished"), RankResult(1, "raised"), RankResult(2, "finished")], 4)
    'ranks 0-2 of 4: ranks 0, 2 finished, rank 1 raised'
    """
    by_ending: dict[str, list[int]] = {}
    for each in results:
        by_ending.setdefault(each.ended, []).append(each.rank)
    by_way = ", ".join(f"{ranks_text(ranks)} {_ENDED.get(ended, ended)}" for ended, ranks in by_ending.items())
    return f"{ranks_text(each.rank for each in results)} of {world_size}: {by_way}"


_ENDED = {
    "exited": "ended with another status than 0",
    "illegal": "ended at an illegal call",
    "unknown value": "ended at a value that is not known",
    "late": "did not end in time",
    "killed": "did not end in time",
}


def _rank_result(rank: int, result: Result, deadline: float) -> RankResult:
    if result.outcome == OK:
        return RankResult(rank, **result.value)
    if result.outcome == HANGS:
        return RankResult(rank, _KILLED, 1, "", f"not done within {deadline:g} s, and it had to be killed")
    after = f", after: {result.details[-1]}" if result.details and result.outcome == DIES else ""
    return RankResult(rank, _DIED, 1, "", f"{result}{after}")


_LOST = ("unknown value", "late", _KILLED, _DIED)
"""Endings after which the rank's real program would go on."""

_FAILS = ("raised", "exited", "unknown value", "refused")
_SAYS: Mapping[str, tuple[str, str, str, str]] = {
    "raised": ("RUN1", ERROR, "raises", "{where}: {message}"),
    "exited": ("RUN2", ERROR, "ends", " with status {status}{where}{reason}"),
    "late": ("RUN3", ERROR, "is", " not done within the deadline{where}"),
    _KILLED: ("RUN3", ERROR, "is", " {message}"),
    _DIED: ("RUN4", ERROR, "", "{message}"),
    "unknown value": ("RUN5", UNDECIDABLE, "needs", " a value that a dry run does not have: {message}"),
    "illegal": ("RUN6", ERROR, "ends", " at a call that is illegal{where}: {message}"),
}
"""Ending → the finding's id, its severity, and what it says of the ranks: a verb, and the rest of the sentence."""
_ADVICE = {
    "RUN1": "The other ranks are compared; from then on they wait for this rank in vain.",
    "RUN2": "The other ranks are compared; from then on they wait for this rank in vain.",
    "RUN3": "It may wait for something that only another process does, or need more time (--deadline).",
    "RUN4": "Its calls are not compared. Dry-run this rank alone to see why: collective-rules dry-run --rank.",
    "RUN5": "The later calls of that rank are unknown; --item gives such numbers a value.",
    "RUN6": "Nothing after it was run.",
}


def _findings(results: Iterable[RankResult]) -> Iterator[Finding]:
    """Yield a finding for ranks that did not finish; one for all ranks that ended alike."""
    alike: dict[tuple[str, str, str, int], list[int]] = {}
    for each in results:
        if each.ended in _SAYS and not (each.ended == "illegal" and each.judged):
            alike.setdefault((each.ended, each.where, each.message, each.status), []).append(each.rank)
    for (ended, where, message, status), ranks in alike.items():
        id_, severity, verb, says = _SAYS[ended]
        at, reason = f" at {where}" if where else "", f": {message}" if message else ""
        text = ranks_verb(ranks, verb) + says.format(where=at, message=message, reason=reason, status=status)
        first, _, rest = text.partition("\n")
        more = f"\n{rest}" if rest else ""
        yield Finding(id_, severity, f"{first}   [{id_}]{more}\n{_ADVICE[id_]}", tuple(ranks))


def _must_have_run(results: Sequence[RankResult], script: str, output: str) -> None:
    """Raise if the script fails on every rank: there is nothing to compare then, and the script must be mended."""
    if all(each.ended in _FAILS for each in results):
        first = results[0]
        if first.ended == "refused":
            raise CollectiveRulesError(first.message)
        said = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")
        what = first.message or f"it ends with status {first.status}" + (f", and put out last: {said}" if said else "")
        where = f"{first.where or script}: " if first.ended != "unknown value" else ""
        every = "on every rank that was run, the first: " if len(results) > 1 else ""
        raise CollectiveRulesError(f"the script fails {every}{where}{what}")


def _recordings(folder: Path, ranks: Iterable[int]) -> Iterator[Recording]:
    for rank in ranks:
        with contextlib.suppress(SourceError):  # a rank that died has none, and its ending says so
            yield attrs.evolve(read(folder / f"rank{rank}.jsonl", rank=rank), path=f"(dry run of rank {rank})")


def _notes(results: Sequence[RankResult], options: PrecheckOptions) -> Iterator[str]:
    illegal = [each for each in results if each.ended == "illegal" and each.judged]
    if illegal:
        who = ranks_verb([each.rank for each in illegal], "was")
        yield f"{who[0].upper()}{who[1:]} not run beyond the illegal call."
    run = {each.rank for each in results}
    for each in options.alike:
        vouched = [rank for rank in each if rank in options.compared and rank not in run]
        if vouched:
            first = next(rank for rank in each if rank in run)
            yield f"Not run, as you say that they do the same as rank {first}: {ranks_text(vouched)}."
    left = options.world_size - len(options.compared)
    if left:
        yield (
            f"Not run: {plural(left, 'rank')} of {options.world_size:,} that you did not ask for. "
            "They are not compared."
        )
    if any(each.ended == "stopped" for each in results):
        yield "Stopped after the optimizer steps that you asked for."
    yield (
        "A dry run has no values: each rank receives the tensors that it would send itself. A program whose calls "
        "depend on received values may make other calls."
    )


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _MOST_OUTPUT))
            return file.read().decode(errors="replace")
    except OSError:
        return ""

"""`precheck` says before a script is launched whether its ranks agree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from collective_rules.comparison.options import PrecheckOptions
from collective_rules.comparison.rehearsal import Rehearsal, rehearse
from collective_rules.errors import CallError


def precheck(
    script: str | os.PathLike[str],
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
) -> Rehearsal:
    """Dry-run a script as each of its ranks, in processes that send nothing, and compare the ranks' collectives.

    `script` is a path, or the name of a module as after `python -m`. `ranks` are those to compare, all if left out;
    `alike` are classes of ranks that do the same; only the first of each is run. `deadline` is the seconds that a rank
    may take, `jobs` how many ranks run side by side. The other options are those of `dry_run` and of `compare`.

    The result has the `findings`, the `recordings` of the ranks, their `results` (how the script ended as each rank),
    the `comparison`, the first rank's `output`, and the `status` with which `collective-rules precheck` ends.

    Raises `CollectiveRulesError` where there is no such script, where the script fails on all ranks, or where options
    do not fit. Linux only.

    >>> import tempfile
    >>> lines = [
    ...     "import torch, torch.distributed as dist",
    ...     "dist.init_process_group('gloo')",
    ...     "dist.all_reduce(torch.ones(4 + dist.get_rank()))",
    ... ]
    >>> with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
    ...     print(*lines, sep="; ", file=script, flush=True)
    ...     result = precheck(script.name, world_size=2)
    >>> result.status, [finding.id for finding in result.findings], [len(each.calls) for each in result.recordings]
    (1, ['AR1'], [1, 1])
    """
    if not isinstance(arguments, (list, tuple)) or not all(isinstance(each, str) for each in arguments):
        raise CallError(f"arguments={arguments!r}, but should be a list of strings")
    options = PrecheckOptions(
        world_size=world_size,
        ranks=ranks,
        alike=alike,
        local_world_size=local_world_size,
        steps=steps,
        item=item,
        backend=backend,
        deadline=deadline,
        jobs=jobs,
        context=context,
    )
    return rehearse(os.fspath(script), arguments, options)

"""Disagreements between ranks: the names that they bind, the order of their calls, and who waits for whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from collective_rules.agreement.connections import connection_findings
from collective_rules.agreement.group_names import NamedGroups, renamed
from collective_rules.agreement.order import compare_in_order
from collective_rules.agreement.point_to_point import AloneMessages, MatchedMessages
from collective_rules.agreement.sequences import JobCalls, arrange
from collective_rules.agreement.wait_cycle import find_wait_cycle
from collective_rules.backends import Backend, as_backend, limits_of, matching_of
from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, Finding
from collective_rules.messages import worst_first
from collective_rules.spec import is_size


def agree(
    calls: Iterable[Call], backend: str | Backend | None = None, *, ranks: Iterable[int] | None = None
) -> tuple[Finding, ...]:
    """Return the disagreements between ranks; empty if their calls belong together.

    `calls` are one call of each rank, or whole programs: any number of calls of any ranks in any groups. Ranks may come
    in any order; the calls of one rank are in the order of its program. A group is known by its name and its global
    ranks; if it lists no ranks, group rank r is one process in all such groups. The collectives of a group are matched
    by their indices if all calls have one (and some rank makes several), else by their order. A send is matched with
    its receive by peers and tag. One-sided calls and waits have no partner, and are left out.

    `ranks` are the global ranks of which all calls are given: all ranks of every group, if left out. That other ranks
    are missing is no finding.

    A finding names the constraint, the name, and each value with its ranks. `ranks` are the odd ones out if there is a
    majority. All ranks are global; those of the group where it lists no ranks. In a sequence, `group` and `index` say
    which collective is the first with the finding, and `count` how many have it. A call that is wrong by itself is
    `check`'s business, and so are a backend's limits. Here the backend decides which forms a call may have, and which
    calls of the ranks meet: NCCL, for instance, does not look at tags. What a backend tolerates against torch's
    documentation is a warning.

    Raises `CallError` for an unknown backend, for an item that is no call, and for groups of one name with two sizes.

    >>> import collective_rules as cr
    >>> calls = [
    ...     cr.call("c10d::_allgather_base_", group=cr.Group(size=4, rank=r), input_tensor=(6 if r == 1 else 5,))
    ...     for r in range(4)
    ... ]
    >>> print(*cr.agree(calls))
    c10d::_allgather_base_: ranks disagree on d   [AGT2]
        input_tensor: d *s -> output_tensor: (W d) *s
                      ^
      d = 5   ranks 0, 2, 3
      d = 6   rank 1
    Every rank must pass tensors of the same sizes; pad them where the data are uneven.
    """
    if not isinstance(calls, Iterable):
        raise CallError(f"{calls!r} is no list: agree takes the calls of several ranks")
    named = NamedGroups()
    job = arrange(calls, matching_of(backend), named.see)
    for row in {call.row: None for call in job.signatures.calls}:
        limits_of(backend, row)
    return worst_first(_findings(job, named, backend, None if ranks is None else _global_ranks(ranks)))


def _findings(
    job: JobCalls, named: NamedGroups, backend: str | Backend | None, global_ranks: frozenset[int] | None
) -> Iterator[Finding]:
    about_groups, settled = _about_groups(job, named, backend, global_ranks)
    yield from about_groups
    has_errors = bool(about_groups)
    matched = {id(group): MatchedMessages(group, job.signatures, group.members(global_ranks)) for group in job.groups}
    alone = AloneMessages(matched.values())
    for group in job.groups:
        if id(group) in settled:
            continue
        expected = group.members(global_ranks)
        messages = matched[id(group)]
        in_order = compare_in_order(group, job.signatures, backend, expected)
        for finding in (*in_order, *messages.findings(alone), *connection_findings(group, backend, expected)):
            has_errors = has_errors or finding.severity == ERROR
            yield finding
    if not has_errors:  # else ranks wait because of those errors
        cycle = find_wait_cycle(job, matched, one_stream=_is_one_stream(backend))
        if cycle is not None:
            yield cycle


def _about_groups(
    job: JobCalls, named: NamedGroups, backend: str | Backend | None, global_ranks: frozenset[int] | None
) -> tuple[list[Finding], set[int]]:
    """Return the disagreements on which groups there are, and the ids of the groups whose collectives are settled.

    What ranks make differently explains the names that differ: that is not told then.
    """
    making = [group for group in job.groups if group.makes_groups(job.signatures)]
    by_two_names = list(renamed([group for group in job.groups if group not in making], global_ranks))
    findings = [
        finding
        for group in making
        for finding in compare_in_order(group, job.signatures, backend, group.members(global_ranks))
    ]
    same_name = [*named.findings()]
    findings = findings or same_name or [*{id(finding): finding for finding, _ in by_two_names}.values()]
    unclear = {finding.group for finding in same_name}
    settled = [*making, *(group for _, group in by_two_names), *(each for each in job.groups if each.name in unclear)]
    return findings, {id(group) for group in settled}


def _is_one_stream(backend: str | Backend | None) -> bool:
    return backend is not None and matching_of(backend).one_stream and as_backend(backend).eager is True


def _global_ranks(ranks: Iterable[int]) -> frozenset[int]:
    if isinstance(ranks, Iterable) and not isinstance(ranks, (str, bytes)):
        numbers = frozenset(ranks)
        if all(is_size(rank) and rank >= 0 for rank in numbers):
            return numbers
    raise CallError(f"ranks={ranks!r}, but should be global ranks such as (0, 1, 7)")

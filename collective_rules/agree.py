"""What the ranks of a group disagree on: every name that they bind, unified, and the order of their calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from collective_rules.agreement.order import compare_in_order
from collective_rules.agreement.point_to_point import Partners
from collective_rules.agreement.streams import Streams, arrange
from collective_rules.agreement.wait_cycle import find_circle
from collective_rules.backends import limits_of
from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, Finding
from collective_rules.messages import worst_first
from collective_rules.spec import is_size

__all__ = ["agree"]


def agree(
    calls: Iterable[Call], backend: str | None = None, *, ranks: Iterable[int] | None = None
) -> tuple[Finding, ...]:
    """Return what ranks disagree on; empty where their calls belong together.

    `calls` are the calls of one collective, one for each rank of its group; or whole programs: any number of calls of
    any ranks in any groups. Ranks may be given in any order, each one's own calls in the order of its program. Groups
    are told apart by name and global ranks; where they tell no ranks, rank r is taken to be one process in all of them.
    The collectives of a group are matched one by one: by their indices where all calls have them (and some rank made
    several), else by their order. A send is matched with its receive by peers and tag. One-sided calls have no partner
    to agree with, and are passed over; so are waits, and a functional call holds nobody up.

    `ranks` are the global ranks of which all calls are given (all ranks of every group, if left out); that others are
    missing is no finding.

    A finding names the constraint, the name, and each value with its ranks; `ranks` are the odd ones out where there is
    a majority. Of a sequence, `group` and `index` say which collective is the first that has it, and `count` how many
    have it. Calls that are wrong by themselves are `check`'s business, and so are a backend's own limits; its name only
    decides which forms a call may have.

    Raises `CallError` for an unknown backend, for what is no call, and for groups of one name but of two sizes.

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
    streams = arrange(calls)
    for row in {call.row: None for call in streams.kinds.calls}:
        limits_of(backend, row)
    return worst_first(_findings(streams, backend, None if ranks is None else _ranks(ranks)))


def _findings(streams: Streams, backend: str | None, known: frozenset[int] | None) -> Iterator[Finding]:
    partners: dict[int, Partners] = {}
    fine = True
    for group in streams.groups:
        expected = group.members(known)
        partners[id(group)] = Partners(group, streams.kinds, expected)
        for found in (*compare_in_order(group, streams.kinds, backend, expected), *partners[id(group)].findings()):
            fine = fine and found.severity != ERROR
            yield found
    if fine:  # else who waits for whom is told already, and what follows is not sure
        circle = find_circle(streams, partners)
        if circle is not None:
            yield circle


def _ranks(ranks: Iterable[int]) -> frozenset[int]:
    if isinstance(ranks, Iterable) and not isinstance(ranks, (str, bytes)):
        known = frozenset(ranks)
        if all(is_size(rank) and rank >= 0 for rank in known):
            return known
    raise CallError(f"ranks={ranks!r}, but should be global ranks such as (0, 1, 7)")

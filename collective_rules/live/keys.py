"""The keys in the store over which ranks compare their calls. This table is the protocol; values are in `protocol`.

| key | writer | readers | deleted by |
|---|---|---|---|
| `HERE` of a rank | the rank, as it enters the block | ranks that wait for it | the last rank to leave |
| `LAST` of a rank | the rank: its last call | ranks that ask it in vain | the last rank to leave |
| `WAKE` of a rank | a rank that asks it, or publishes | the rank's watchdog | the rank's watchdog |
| `ANSWER` of a rank | the rank's watchdog, when woken | the rank that asks | that rank, before it asks again |
| `TAIL` of a rank | the rank, at the end: its last calls | the last rank to come to `TAILS` | the last rank to leave |
| `posts` of a meeting | each rank that comes, by an append | ranks of the meeting | see below |
| `come` of a meeting | each rank that comes, in a large group | each rank that comes | as `posts` |
| `verdict` of a meeting | the last rank to come; `release`, to end a rank's own waits | ranks that wait | as `posts` |
| `any_source` of a rank | the rank, when it receives from any source | ranks that send to it | the last rank to leave |
| `ERROR` | the first rank to publish (a claim) | every rank | the last rank to leave |
| `LEAD` | the first rank that wants to ask (a claim) | ranks that want to ask | the leader, if nothing is wrong |
| `CALM` | the leader, if nothing is wrong after a failure | ranks whose collective failed | a rank that fails next |
| `LEFT` | each rank that ends its block, by an append | ranks that wait for it | the last rank to leave |
| `REST` | each rank that an error ended: its open meetings | the last rank to leave | the last rank to leave |
| `GONE` | each rank that leaves, a count | each rank that leaves | the last rank to leave |

The watchdog of the last rank to come deletes a meeting some meetings later; after an error the last rank to leave
does. A window has `posts` alone: the last rank to come deletes them. `LEAD` stays claimed after its holder has
published: every rank raises that error and leaves, so no rank has to ask again. The last rank to leave deletes all keys
that are left.

A meeting, and one to which rank 1 does not come:

    rank 0                       store                        rank 1
      append posts  ───────────▶ posts
      get verdict (waits) ┄┄┄┄┄▶ posts ◀───────────────────── append posts
                                 posts ─────────────────────▶ reads all, compares
      goes on ◀───────────────── verdict ◀─────────────────── sets verdict, goes on

      append posts, get verdict
      watchdog: due; claims LEAD
      sets WAKE of rank 1 ─────▶ WAKE ──────────────────────▶ watchdog: answers, even while the rank is stuck
      reads ANSWER ◀──────────── ANSWER ◀──────────────────── sets ANSWER
      claims ERROR, sets WAKE ─▶ ERROR, WAKE ───────────────▶ watchdog: learns ERROR, ends the rank's waits
      raises                                                  raises at its next call
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

HERE, LAST, WAKE, ANSWER, TAIL = _OF_RANK = ("here", "last", "wake", "answer", "tail")
ERROR, LEAD, CALM, LEFT, REST, GONE = _OF_BLOCK = ("error", "lead", "calm", "left", "rest", "gone")

EXIT, TAILS = "exit/", "tails/"
"""The meetings at the end of the block: of the running hashes, and of the last calls where the hashes differ."""


def of_rank(key: str, rank: int) -> str:
    """Return a rank's own key."""
    return f"{key}/{rank}"


def posts(meeting: str) -> str:
    """Return the key of the arrivals at a meeting."""
    return f"{meeting}p"


def come(meeting: str) -> str:
    """Return the key that counts the ranks that have come to a meeting."""
    return f"{meeting}n"


def verdict(meeting: str) -> str:
    """Return the key of a meeting's result, for which ranks wait."""
    return f"{meeting}v"


def of_meeting(meeting: str) -> tuple[str, str, str]:
    """Return all keys of a meeting."""
    return posts(meeting), come(meeting), verdict(meeting)


def any_source(group: str, rank: int) -> str:
    """Return the key that says that a rank of a group receives from any source."""
    return f"{group}/any/{rank}"


def left_over(ranks: Iterable[int], meetings: Iterable[str]) -> Iterator[str]:
    """Yield the keys that a block may leave in the store, with those of its open meetings."""
    yield from _OF_BLOCK
    yield from (of_rank(key, rank) for rank in ranks for key in _OF_RANK)
    yield from (key for meeting in (EXIT, TAILS, *meetings) for key in of_meeting(meeting))

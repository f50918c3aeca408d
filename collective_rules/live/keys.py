"""The keys in the store over which ranks compare their calls. This table is the protocol; values are in `protocol`.

Keys of a job, below `JOBS` and a hash of the ranks that take part (see `handshake`):

| key | writer | readers | deleted by |
|---|---|---|---|
| `NAME` | the first rank: the name that it drew | a rank that gets no answer | the first rank, when all have thanked |
| `TOKENS` | each other rank, by an append | the first rank | as `NAME` |
| `answer_to` a token | the first rank: the name | the rank with this token | as `NAME` |
| `THANKS` | each other rank, by an append: its token and the name | the first rank | as `NAME` |

Keys of a block, below `JOBS`, the job's name, the kind of block and its number:

| key | writer | readers | deleted by |
|---|---|---|---|
| `HERE` of a rank | the rank, as it enters the block (its `how`) | ranks that wait for it | the last rank to leave |
| `LAST` of a rank | the rank: its last call; as data, too | ranks that ask it in vain | the last rank to leave |
| `WAKE` of a rank | a rank that asks it or publishes (an append) | the rank's watchdog | the last rank to leave |
| `answer` of a rank | the rank's watchdog, to one question | the rank that asks | the rank that asks, if in time |
| `TAIL` of a rank | the rank, at the end: its last calls | the last rank to come to `TAILS` | the last rank to leave |
| `posts` of a meeting | each rank that comes (an append) | ranks of the meeting | see below |
| `come` of a meeting | each rank, after it has posted (a count) | each rank that comes | as `posts` |
| `come` of `EXIT` | as of a meeting | the watchdogs of ranks that wait | the last rank to leave |
| `come` of a window | each rank: a count, and the sum of the hashes | each rank that comes | the last rank to come |
| `verdict` of a meeting | the last rank to come, and see below | ranks that wait | as `posts` |
| `any_source` of a rank | the rank, when it receives from any source | ranks that send to it | the last rank to leave |
| `ERROR` | the first rank to publish (a claim) | every rank | the last rank to leave |
| `lead` of a turn | the first rank that wants to ask (a claim) | ranks that want to ask | the leader, if all is well |
| `CALM` | the leader, if nothing is wrong after a failure | ranks whose collective failed | a rank that fails next |
| `group_claim` of a number | the first rank to use it (a claim) | ranks that use it | the last rank to leave |
| `REST` | each rank that knows other keys that are left (an append) | the last rank to leave | the last rank to leave |
| `GONE` | each rank that leaves (a count) | each rank that leaves | the last rank to leave |

Ranks count who has come at the end and in a large group, where each would have to read what all others posted. What was
posted is the fact; the count only tells who compares.

Others than the last rank to come write a `verdict`, too: a rank that has an error to raise wakes its own waits
(`release`), and a rank ends a meeting that is not compared (`end`): it was over and deleted, a receive from any source
may take the send, or a value cannot be read.

The watchdog of the last rank to come deletes a meeting some meetings later; after an error the last rank to leave
does. The meeting `EXIT` is where a rank says that it makes no further call, and how it left: one fact, one message, so
no rank can read one half of it. `lead` stays claimed after its holder has published: every rank raises that error and
leaves, so no rank has to ask again. The last rank to leave deletes all keys that are left.

A meeting, and one to which rank 1 does not come:

    rank 0                       store                        rank 1
      append posts  ───────────▶ posts
      get verdict (waits) ┄┄┄┄┄▶ posts ◀───────────────────── append posts
                                 posts ─────────────────────▶ reads all, compares
      goes on ◀───────────────── verdict ◀─────────────────── sets verdict, goes on

      append posts, get verdict
      watchdog: due; claims lead
      appends to WAKE of rank 1  WAKE ──────────────────────▶ watchdog: answers, even while the rank is stuck
      reads answer ◀──────────── answer ◀──────────────────── sets answer
      claims ERROR, WAKE ──────▶ ERROR, WAKE ───────────────▶ watchdog: learns ERROR, ends the rank's waits
      raises                                                  raises at its next call
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

HERE, LAST, WAKE, TAIL = _OF_RANK = ("here", "last", "wake", "tail")
ERROR, CALM, REST, GONE = _OF_BLOCK = ("error", "calm", "rest", "gone")

JOBS = "collective_rules"
NAME, TOKENS, THANKS = "name", "tokens", "thanks"

EXIT, TAILS = "exit/", "tails/"
"""The meetings at the end of the block: of the running hashes, and of the last calls where the hashes differ."""


def of_rank(key: str, rank: int) -> str:
    """Return a rank's own key."""
    return f"{key}/{rank}"


def lead(turn: int) -> str:
    """Return the key of the rank that asks the others; `turn` counts the ranks that were stopped as they asked."""
    return f"lead/{turn}"


def answer(question: str, rank: int) -> str:
    """Return the key of a rank's answer to a question."""
    return f"said/{question}/{rank}"


def answer_to(token: str) -> str:
    """Return the key of the answer to a token."""
    return f"answer/{token}"


def posts(meeting: str) -> str:
    """Return the key of the arrivals at a meeting."""
    return f"{meeting}p"


def come(meeting: str) -> str:
    """Return the key that counts the ranks that have come to a meeting."""
    return f"{meeting}n"


def verdict(meeting: str) -> str:
    """Return the key of a meeting's result, for which ranks wait."""
    return f"{meeting}v"


def group_claim(restarts: int, name: str) -> str:
    """Return the key under which ranks say which ranks a group has, after so many restarts of torch's numbers."""
    return f"group/{restarts}/{name}"


def of_meeting(meeting: str) -> tuple[str, str, str]:
    """Return all keys of a meeting."""
    return posts(meeting), come(meeting), verdict(meeting)


def any_source(group: str, rank: int) -> str:
    """Return the key that says that a rank of a group receives from any source."""
    return f"{group}/any/{rank}"


def left_over(ranks: Iterable[int], rest: Iterable[str]) -> Iterator[str]:
    """Yield the keys that a block may leave in the store, and the `rest` that ranks know of."""
    yield from _OF_BLOCK
    yield from (of_rank(key, rank) for rank in ranks for key in _OF_RANK)
    yield from (key for meeting in (EXIT, TAILS) for key in of_meeting(meeting))
    yield lead(0)
    yield from rest

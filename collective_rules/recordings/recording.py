"""What `read` returns: the calls of a recording, and findings about what the file does not tell (`NOTES`)."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import attrs

from collective_rules.call import Call
from collective_rules.errors import CollectiveRulesError
from collective_rules.finding import ERROR, SEVERITIES, UNDECIDABLE, WARNING, Finding

_MOST = 40
"""The most different details of one id; a damaged file may have any number."""


class SourceError(CollectiveRulesError):
    """A file that is no recording, or that cannot be read at all."""


@attrs.frozen
class Note:
    """One kind of note: `says` takes the detail, `advice` says what to do, `of` names what is counted."""

    severity: str
    says: str
    advice: str
    of: str = "times"


NOTES: Mapping[str, Note] = {
    "READ1": Note(
        UNDECIDABLE,
        "the file ends early: {}",
        "What stands before was read; nothing is said of what is lost. Compare only as far as all ranks reach.",
    ),
    "READ2": Note(
        UNDECIDABLE, "this cannot be read: {}", "The call, or that part of it, is taken as unknown; the rest was read."
    ),
    "READ3": Note(
        UNDECIDABLE,
        "{} is no collective that has a rule",
        "It is left out. If it is a collective under another name, tell us the name.",
    ),
    "READ4": Note(
        UNDECIDABLE,
        "the size of the group of {} is not recorded",
        "These calls are left out. Say how many ranks there are (world_size=), or record with a newer torch.",
    ),
    "READ5": Note(UNDECIDABLE, "not recorded: {}", "Nothing is said of it; a ledger written by RuleMode has it."),
    "READ6": Note(
        UNDECIDABLE,
        "the rank is not recorded: {}",
        "Say which rank the file is of (rank=), or put it at the end of the file's name.",
    ),
    "READ7": Note(
        WARNING,
        "{} is a version that this library does not know",
        "It was read as the nearest one that is known; look at the calls before you trust them.",
    ),
    "READ8": Note(WARNING, "{} was given before", "Give one file for each rank."),
    "READ9": Note(
        UNDECIDABLE,
        "{} sums up several collectives, and does not say which",
        "It is left out; where its members have rows of their own, those are read.",
    ),
    "READ10": Note(WARNING, "the file contradicts itself: {}", "The first one is believed, or what most calls show."),
    "READ11": Note(
        UNDECIDABLE,
        "the group is not recorded: {}",
        "If there are several groups, their calls cannot be told apart; a ledger written by RuleMode can.",
    ),
    "READ12": Note(
        ERROR,
        "an op and the backend's record of it differ: {}",
        "The op is believed. A backend sends what its record says: the file, or the run, is damaged.",
    ),
    "READ13": Note(
        UNDECIDABLE,
        "records are missing: {}",
        "What has a number is compared, what only the order tells apart cannot be. A larger TORCH_FR_BUFFER_SIZE keeps "
        "more.",
        "records",
    ),
}


@attrs.frozen
class Recording:
    """One file, read: what one process communicated.

    - `format`: "ledger", "flight recorder", "kineto" or "execution trace".
    - `rank`, `world_size`: the process's global rank and how many there are; None where the file does not tell.
    - `calls`: in the order in which the process made them. What is not recorded is unknown in them: a `Spec` without
      shape, an argument that is `UNKNOWN`.
    - `findings`: what could not be read or decided (`NOTES`), each once, with how often.
    - `read`: counts: of "records" in the file, of "collectives" among them, and of "calls".
    - `same_names`: whether the names of groups are those that torch itself gives, which mean the same on every rank.
    - `lost`: the names of groups of which calls could not be read, somewhere among the others; None for one whose
      group is not known either.
    - `told`: the findings that a guard wrote into its ledger while the program ran.
    """

    path: str
    format: str
    rank: int | None
    world_size: int | None
    calls: tuple[Call, ...]
    findings: tuple[Finding, ...] = ()
    read: Mapping[str, int] = attrs.field(factory=dict)
    lost: tuple[str | None, ...] = ()
    told: tuple[Finding, ...] = ()
    same_names: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether the file ends early: nobody knows what the rank did then."""
        return any(found.id == "READ1" for found in self.findings)

    @property
    def begins_late(self) -> bool:
        """Whether the file lacks the beginning: what follows is complete, in groups that have calls at all."""
        return any(found.id == "READ13" for found in self.findings)

    @property
    def is_whole(self) -> bool:
        """Whether `calls` are complete; if not, a call that seems missing may be one that the file lost."""
        return not (self.lost or self.is_cut or self.begins_late)

    def __repr__(self) -> str:
        return f"<{self.format} {self.path}: {len(self.calls)} calls of rank {self.rank} of {self.world_size}>"


class Notes:
    """Collects what a file does not tell; each thing once, with how often and where first."""

    def __init__(self, path: str) -> None:
        self.path = named(path)
        self._seen: dict[tuple[str, str], tuple[int, str]] = {}
        self._kinds: dict[str, int] = {}
        self._lost: set[str | None] = set()

    def lose(self, group: str | None = None) -> None:
        """Note that a call of `group` could not be read; None where that is not known either."""
        self._lost.add(group or None)

    @property
    def lost(self) -> tuple[str | None, ...]:
        """The groups of which calls could not be read, those that are known first."""
        return tuple(sorted(self._lost, key=lambda name: (name is None, name or "")))

    def add(self, id_: str, detail: str, where: str = "", count: int = 1) -> None:
        """Note one thing; `where` is said of the first one only."""
        key = (id_, detail)
        if key not in self._seen:
            if self._kinds.get(id_, 0) >= _MOST:
                key = (id_, "and more of the kind")
            else:
                self._kinds[id_] = self._kinds.get(id_, 0) + 1
        known, first = self._seen.get(key, (0, where))
        self._seen[key] = (known + count, first)

    def add_lost(self, id_: str, detail: str, where: str = "", group: str | None = None, count: int = 1) -> None:
        """Note one thing, by which a call of `group` could not be read."""
        self.add(id_, detail, where, count)
        self.lose(group)

    def findings(self, rank: int | None = None) -> tuple[Finding, ...]:
        """Return them as findings, errors first."""
        found = [self._finding(*key, *seen, rank) for key, seen in self._seen.items()]
        return tuple(sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), int(finding.id[4:]))))

    def _finding(self, id_: str, detail: str, count: int, where: str, rank: int | None) -> Finding:
        note = NOTES[id_]
        times = f" ({count:,} {note.of})" if count > 1 else ""
        place = f", first at {where}" if where and count > 1 else f", at {where}" if where else ""
        message = f"{self.path}: {note.says.format(detail)}{times}{place}   [{id_}]\n{note.advice}"
        names: dict[str, Any] = {"what": detail, "count": count, "rank": rank}
        return Finding(id_, note.severity, message, (), names, count=count)


def named(path: str) -> str:
    """Return a path as it stands in a message, which is one line and cannot steer a terminal."""
    return path if path.isprintable() else repr(path)


def short(value: Any) -> str:
    """Return `value` as text of bounded length, for a message."""
    return reprlib.repr(value)

"""Finds and reads the files that a person names, and finds the rank of each. `recordings` knows the formats."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from collective_rules.errors import CollectiveRulesError
from collective_rules.finding import ERROR, WARNING, Finding
from collective_rules.recordings import Recording, SourceError, read

_UNREADABLE, _NO_RECORDING = "FILE1", "FILE2"
_DIGITS = re.compile(r"(\d{1,9})\D*$")


@attrs.frozen
class _InputFile:
    """A file, and whether the person named only its folder."""

    path: str
    by_folder: bool


def read_all(
    paths: Iterable[str | os.PathLike[str]], world_size: int | None = None
) -> tuple[tuple[Recording, ...], tuple[Finding, ...], tuple[str, ...]]:
    """Read the recordings at `paths`, where a folder stands for its files; return them, with findings and notes.

    A file that cannot be read is a finding, and the others are read. A file without its rank gets
    the number at the end of its name, or else its place in the list; a note says so.

    Raises `CollectiveRulesError` where no recording can be read.
    """
    named = list(_files(paths))
    recordings: list[Recording] = []
    findings: list[Finding] = []
    notes: list[str] = []
    for place, file in enumerate(named):
        try:
            recording = read(file.path, world_size=world_size)
            if recording.rank is None:
                rank, how = _guessed_rank(file.path, place)
                notes.append(f"{file.path} does not hold its rank: taken as rank {rank}, {how}.")
                recording = read(file.path, rank=rank, world_size=world_size)
            recordings.append(recording)
        except SourceError as error:
            findings.append(_unreadable(file, error))
    if not recordings:
        if len(findings) == 1:
            raise CollectiveRulesError(findings[0].message.split("   [", 1)[0])
        raise CollectiveRulesError(
            f"none of {len(findings)} files can be read; the first: {findings[0].message.split('   [', 1)[0]}"
            if findings
            else "there is no file to compare: name the ranks' recordings, or a folder that holds them"
        )
    return tuple(recordings), tuple(findings), tuple(notes)


def _files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[_InputFile]:
    """Yield each file once; those of a folder in the order of their numbers."""
    seen: set[str] = set()
    for given in paths:
        path = os.fspath(given)
        try:
            is_folder = os.path.isdir(path)
            inside = sorted(os.listdir(path), key=_natural) if is_folder else []
        except (OSError, ValueError) as error:
            raise CollectiveRulesError(
                f"{path!r} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        several = [os.path.join(path, name) for name in inside if not name.startswith(".")]
        for file in [each for each in several if os.path.isfile(each)] if is_folder else [path]:
            real = file if "\0" in file else os.path.realpath(file)
            if real not in seen:
                seen.add(real)
                yield _InputFile(file, is_folder)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d{1,18})", name)
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)], name


def _guessed_rank(path: str, place: int) -> tuple[int, str]:
    digits = _DIGITS.search(Path(path).name.split(".", 1)[0])
    if digits:
        return int(digits[1]), "after the digits at the end of its name"
    return place, "after its place in the list"


def _unreadable(file: _InputFile, error: SourceError) -> Finding:
    if file.by_folder:
        message = f"{error}   [{_NO_RECORDING}]\nIt is left out, and the other files of the folder are compared."
        return Finding(_NO_RECORDING, WARNING, message)
    message = f"{error}   [{_UNREADABLE}]\nThe other files are compared, and this file is left out."
    return Finding(_UNREADABLE, ERROR, message)

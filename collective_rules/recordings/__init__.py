"""Recordings of what a program communicated, made by this library or by others, read as `Call`s.

`read` recognises our ledgers, Flight Recorder dumps, Kineto traces and execution traces by their content. It knows no
process group and compares nothing: `agree` does.
"""

from collective_rules.recordings.formats import read, same_ranks
from collective_rules.recordings.ledger_lines import LedgerWriter, write_ledger
from collective_rules.recordings.recording import NOTES, Recording, SourceError

__all__ = ["NOTES", "LedgerWriter", "Recording", "SourceError", "read", "same_ranks", "write_ledger"]

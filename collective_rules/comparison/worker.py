"""One rank's dry run, in a process of its own: it writes the rank's ledger, and returns how the script ended.

This module imports all modules that a rank needs, so that a process forked afterwards has them.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

import torch
import torch._dynamo

from collective_rules.dryrun import StepsDone, UnknownValueError, run_script
from collective_rules.errors import CollectiveRulesError, SimulationError, text_of
from collective_rules.mode.call_sites import source_line
from collective_rules.places import described
from collective_rules.recordings import write_ledger


class _Alarm:
    """Ends the script after a number of seconds, and keeps the script's line at that moment."""

    def __init__(self, seconds: float) -> None:
        self.rang, self.where = False, ""
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _ring(self, *_: Any) -> None:
        self.rang, self.where = True, source_line(2)
        raise StepsDone

    def stop(self) -> None:
        """Set no limit to the rest of the program."""
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_rank(payload: dict[str, Any]) -> dict[str, Any]:
    """Dry-run the payload's `script` with its `options`, for `deadline` seconds at most, and write the `ledger` file.

    Return the fields of a `RankResult` that differ from their defaults.
    """
    options = payload["options"]
    if payload["output"]:
        _put_output_into(payload["output"])
    alarm = _Alarm(payload["deadline"])
    try:
        result = run_script(payload["script"], payload["arguments"], **options)
    except StepsDone:  # the alarm rang outside of the run
        return {"ended": "late", "status": 1, "where": alarm.where}
    except CollectiveRulesError as error:
        return {"ended": "refused", "status": 2, "message": str(error)}
    finally:
        alarm.stop()
        sys.stdout.flush()  # the process ends without it
    write_ledger(result.ledger, payload["ledger"], rank=options["rank"], world_size=options["world_size"])
    unknown = isinstance(result.error, (UnknownValueError, SimulationError))
    return {
        "ended": "late" if alarm.rang else "unknown value" if unknown else result.reason,
        "status": result.status,
        "where": alarm.where or result.where,
        "message": _message(result.error, named=result.reason == "raised" and not unknown),
        "calls": result.ledger.count,
        "judged": bool(getattr(result.error, "findings", ())),
    }


def _message(error: BaseException | None, *, named: bool) -> str:
    if error is None or (isinstance(error, SystemExit) and isinstance(error.code, (int, type(None)))):
        return ""
    return described(error) if named else text_of(error)


def _put_output_into(path: str) -> None:
    sys.stdout.flush()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a rank that is killed has put out what it wrote until then
    with open(path, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


torch.set_num_threads(1)

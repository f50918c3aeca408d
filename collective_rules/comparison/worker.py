"""One rank's dry run, in a process of its own: writes its ledger, and tells how it ended.

Importing this module imports what every rank needs, so that a process forked afterwards need not.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
import torch._dynamo

from collective_rules.dryrun import StepsDone, UnknownValueError, run_script
from collective_rules.errors import CollectiveRulesError
from collective_rules.mode.call_sites import source_line
from collective_rules.mode.simulated import EchoError
from collective_rules.recordings import write_ledger

__all__ = ["run_rank"]

_MOST_CALLS = 5_000_000


class _Alarm:
    """Ends the script after a number of seconds, and keeps the line at which it then was."""

    def __init__(self, seconds: float) -> None:
        self.rang, self.where = False, ""
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _ring(self, *_: Any) -> None:
        self.rang, self.where = True, source_line(2)
        raise StepsDone

    def stop(self) -> None:
        """Let the rest take its time."""
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_rank(payload: dict[str, Any]) -> dict[str, Any]:
    """Dry-run the payload's `script` as its `rank`, for `deadline` seconds at most, and write the `ledger` file.

    Returns how it `ended` (as `Result.reason`, or "late", "unknown value", "refused"), with the script's own `status`,
    `where` it was, the `message`, and whether it was `judged` illegal by the rules.
    """
    if payload["output"]:
        _put_output_into(payload["output"])
    alarm = _Alarm(payload["deadline"])
    try:
        result = run_script(
            payload["script"],
            payload["arguments"],
            world_size=payload["world_size"],
            rank=payload["rank"],
            local_world_size=payload["local_world_size"],
            steps=payload["steps"],
            item=payload["item"],
            keep=_MOST_CALLS,
        )
    except StepsDone:  # it rang outside of the run
        return {"ended": "late", "status": 1, "where": alarm.where, "message": "", "calls": 0, "judged": False}
    except CollectiveRulesError as error:
        return {"ended": "refused", "status": 2, "where": "", "message": str(error), "calls": 0, "judged": False}
    finally:
        alarm.stop()
    write_ledger(result.ledger, payload["ledger"], rank=payload["rank"], world_size=payload["world_size"])
    unknown = isinstance(result.error, (UnknownValueError, EchoError))
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
    try:
        text = str(error)
    except Exception:
        text = "(it has no text: its __str__ raises)"
    return f"{type(error).__name__}: {text}".rstrip(": ") if named else text


def _put_output_into(path: str) -> None:
    sys.stdout.flush()
    with open(path, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


torch.set_num_threads(1)

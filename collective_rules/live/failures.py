"""Tells an exception that a program raises itself from that of a collective which failed."""

from __future__ import annotations

import dis
import os
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from collective_rules.mode import recorder
from collective_rules.mode.call_sites import is_program, place_text

_DISTRIBUTED = os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), "distributed", "")
_RAISE = dis.opmap["RAISE_VARARGS"]


def is_own(error: BaseException) -> bool:
    """Return whether the program raised the error: by a `raise`, or from a store that it asked itself.

    A failed collective raises in C++, or in a function of torch.distributed.
    """
    frames = [(frame.f_code, place) for frame, place in _walk(error.__traceback__)]
    if not frames:
        return False
    code, place = frames[-1]
    if code.co_filename.startswith(_DISTRIBUTED):
        return False
    if code.co_code[place] == _RAISE:
        return True
    sent = any(code.co_filename == recorder.__file__ or code.co_filename.startswith(_DISTRIBUTED) for code, _ in frames)
    return isinstance(error, dist.DistStoreError) and not sent


def line_of(error: BaseException) -> str:
    """Return the innermost line of the program from which an error came, as "train.py:88"; "" where there is none."""
    lines = [
        place_text(frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if is_program(frame.f_code.co_filename)
    ]
    return lines[-1] if lines else ""


def _walk(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    """Yield each frame with the place of its instruction, the innermost last."""
    while trace is not None:
        yield trace.tb_frame, trace.tb_lasti
        trace = trace.tb_next

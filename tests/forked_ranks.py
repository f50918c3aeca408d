"""Runs modules and scripts on ranks as torchrun does, but in a second: one process imports torch, and forks the ranks.

The store is in a process of its own, as torchrun's agent has it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from tests.commands import ROOT
from tests.flight_recorded import BUFFER

__all__ = ["fork_ranks"]


def fork_ranks(size: int, *arguments: str, within: float = 200.0) -> str:
    """Return what all ranks print, of a run of Python's `arguments`: "-m", a module and its words, or a script's.

    Raises AssertionError with what they put out where a rank does not end with status 0 within so many seconds.
    """
    process = _forking()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"size": size, "arguments": arguments, "within": within}) + "\n")
    process.stdin.flush()
    told = json.loads(process.stdout.readline())
    assert [0] * size == told["statuses"], f"{told['statuses']}\n{told['errors'][-4000:]}"
    return str(told["printed"])


@functools.cache
def _forking() -> subprocess.Popen[str]:
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **BUFFER}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.forked_ranks"],
        stdin=subprocess.PIPE,  # its end is the end of the process
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, **own},
        text=True,
        start_new_session=True,
    )
    atexit.register(process.kill)
    return process


def _serve() -> None:
    import torch.distributed.checkpoint.state_dict  # noqa: PLC0415
    import torch.distributed.fsdp  # noqa: PLC0415
    import torch.distributed.pipelining  # noqa: PLC0415
    import torch.distributed.tensor.parallel  # noqa: PLC0415

    import collective_rules.rule_mode  # noqa: F401, PLC0415

    torch.set_num_threads(1)
    torch.distributed.destroy_process_group = _after_a_moment(torch.distributed.destroy_process_group)
    for line in sys.stdin:
        sys.__stdout__.write(json.dumps(_run(**json.loads(line))) + "\n")
        sys.__stdout__.flush()


def _after_a_moment(destroy: Callable[..., None]) -> Callable[..., None]:
    """Let gloo's threads come to their end first.

    They drop the tensors of the last collective, for which they need the interpreter's lock. Where a model holds the
    last reference to its group, the program holds that lock while it waits for these threads: on a busy machine every
    third run of a script that trains by DDP, and ends, would hang.
    """

    def wrapped(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.2)
        destroy(*args, **kwargs)

    return wrapped


def _run(size: int, arguments: list[str], within: float) -> dict[str, Any]:
    listener = socket.create_server(("127.0.0.1", 0))
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors, listener:
        ranks = [_fork(rank, size, arguments, listener, printed.fileno(), errors.fileno()) for rank in range(-1, size)]
        statuses: dict[int, int | None] = dict.fromkeys(ranks[1:])
        until = time.monotonic() + within
        while None in statuses.values() and time.monotonic() < until and not any(statuses.values()):
            for pid, status in statuses.items():
                if status is None and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    statuses[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            time.sleep(0.02)
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            if statuses.get(pid) is None:
                os.waitpid(pid, 0)
        texts = {}
        for name, file in (("printed", printed), ("errors", errors)):
            file.seek(0)
            texts[name] = file.read().decode(errors="replace")
        return {"statuses": [*statuses.values()], **texts}


def _fork(rank: int, size: int, arguments: list[str], listener: socket.socket, printed: int, errors: int) -> int:
    pid = os.fork()
    if pid:
        with contextlib.suppress(PermissionError):
            os.setpgid(pid, pid)
        return pid
    os.setpgid(0, 0)
    os.dup2(printed, 1)
    os.dup2(errors, 2)
    if rank < 0:
        _hold_store(listener)
    port = str(listener.getsockname()[1])
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in numbers.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RUN_ID="tests")
    status = 1
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _hold_store(listener: socket.socket) -> NoReturn:
    from torch.distributed import TCPStore  # noqa: PLC0415

    port = listener.getsockname()[1]
    store = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False, master_listen_fd=listener.fileno())
    while store is not None:
        time.sleep(1000)
    os._exit(0)


if __name__ == "__main__":
    _serve()

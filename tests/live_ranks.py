"""Ranks in processes of their own, for programs that may end in any way: forked from one that has imported torch.

`Ranks.run(name)` runs a program of `tests.live_programs` on every rank under a `RuleMode(agree=…)`, and tells how it
ended on each.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from collective_rules import RuleMode
from tests import live_programs

START = 240.0  # seconds to import torch on a busy machine
GRACE = 30.0  # seconds beyond what a program may take, likewise
ROOT = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How one rank ended: an outcome ("passed", the name of an exception, "silent"), and what is known of it.

    `through`: whether its program came to its end, whatever was found then.
    """

    outcome: str
    seconds: float = 0.0
    message: str = ""
    findings: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    cause: str = ""
    noted: tuple[str, ...] = ()
    output: str = ""
    extra: Any = None
    through: bool = False


class Ranks:
    """Starts a process that forks ranks; `close` ends it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.live_ranks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self._answer(START)

    def run(
        self, program: str, size: int = 2, agree: Any = "always", *, deadline: float = 3.0, outlives: bool = False
    ) -> list[Ended]:
        """Run a program; ranks that have not ended some time after the deadline are killed, and are "silent".

        `outlives`: the store is in a process of its own, as torchrun has it, else in that of rank 0.
        """
        told = {"program": program, "size": size, "agree": agree, "deadline": deadline, "outlives": outlives}
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        ended = json.loads(self._answer(deadline * 4 + 4 * GRACE))
        return [
            Ended(**{**each, "findings": tuple((a, b, tuple(c)) for a, b, c in each.get("findings", ()))})
            for each in ended
        ]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._process.stdin.close()
        self._process.stdout.close()

    def _answer(self, seconds: float) -> str:
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.close()
            raise TimeoutError(f"the ranks' process did not answer within {seconds:g} s")
        return line


def _serve() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    with RuleMode(check=True):
        dist.all_reduce(torch.ones(1))
    dist.destroy_process_group()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), flush=True)


def _run(program: str, size: int, agree: Any, deadline: float, outlives: bool) -> list[dict[str, Any]]:
    listener = socket.create_server(("127.0.0.1", 0))
    log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the ranks
    children: dict[int, tuple[int, int]] = {}
    for rank in [*range(size), *([-1] if outlives else [])]:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.setpgid(0, 0)
            os.dup2(log.fileno(), 2)
            _rank(rank, program, size, agree, deadline, listener, writer, outlives)
        os.close(writer)
        children[rank] = (pid, reader)
    listener.close()
    ended: dict[int, dict[str, Any]] = {}
    until = time.monotonic() + deadline * 3 + GRACE / 2
    ranks = {reader: rank for rank, (_, reader) in children.items() if rank >= 0}
    while ranks and time.monotonic() < until:
        # A rank that stopped itself goes on when the others have ended: it must not harm anyone, nor hang.
        stopped = [pid for pid, _ in children.values() if _is_stopped(pid)]
        if stopped and len(ranks) == len(stopped):
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        for reader in select.select([*ranks], [], [], 0.1)[0]:
            text = b""
            while part := os.read(reader, 1 << 16):
                text += part
            ended[ranks.pop(reader)] = json.loads(text) if text else {"outcome": "died"}
    for pid, reader in children.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
    log.seek(0)
    output = log.read().decode(errors="replace")
    log.close()
    return [{"outcome": "silent", "output": output} | ended.get(rank, {}) for rank in range(size)]


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _rank(
    rank: int,
    program: str,
    size: int,
    agree: Any,
    deadline: float,
    listener: socket.socket,
    writer: int,
    outlives: bool,
) -> None:
    told: dict[str, Any] = {}
    try:
        serves = rank == (-1 if outlives else 0)
        told_store = {"master_listen_fd": listener.fileno()} if serves else {}
        port = listener.getsockname()[1]
        limit = timedelta(seconds=60)
        store = dist.TCPStore("127.0.0.1", port, None, serves, limit, wait_for_workers=False, **told_store)
        if rank < 0:
            time.sleep(1000)
        if outlives:
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        dist.barrier()
        told = live_programs.carry_out(program, rank, size, agree, deadline)
    except BaseException as error:
        told = {"outcome": f"harness: {type(error).__name__}", "message": str(error)}
    finally:
        with os.fdopen(writer, "wb") as answer:
            answer.write(json.dumps(told).encode())
        if rank == 0 and not outlives:
            time.sleep(0.3)  # its store goes with it
        os._exit(0)


if __name__ == "__main__":
    _serve()

"""PyTorch's own tests of torch.distributed, as its wheel ships them, on gloo and under a mode or a guard.

Upstream starts W new interpreters for each test. Here one process, the launcher, imports torch once and forks W ranks
for each test, so that a test costs what it does and leaves nothing behind. It reads one request a line and answers in
one, both JSON; what a rank tells comes back through a file of its own.

Started as `python -m tests.torch_own SIZE`. Linux only. It knows nothing of which tests are worth running.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import attrs

import collective_rules as cr
from tests.flight_recorded import BUFFER, dump, expected_dump, read_dump
from tests.without_gpus import ask_for_none, stay_on_cpu

ROOT = Path(__file__).resolve().parents[1]
PASSED, SKIPPED, FAILED, HUNG, DIED = "passed", "skipped", "failed", "hung", "died"
_START = 60.0  # seconds for the launcher to import torch and its tests
MODE, GUARD, THREAD = "mode", "guard", "guard, in a thread"
_GRACE = 3.0  # seconds for the other ranks when one has failed
_TAIL = 3000


@attrs.frozen
class Outcome:
    """What a test came to: on the worst rank `outcome`, and over all ranks what the mode checked and found.

    - `texts`: of each rank that did not pass, why. `ops`: how many calls of each op were checked.
    - `findings`: what the mode found, errors that the test itself caught too.
    - `unlike`: where the ledger and gloo's Flight Recorder tell different calls.
    """

    outcome: str
    texts: tuple[str, ...]
    ops: dict[str, int]
    findings: tuple[str, ...]
    unlike: tuple[str, ...]
    seconds: float


class Launcher:
    """The process that forks the ranks; ends with the block."""

    def __init__(self, size: int) -> None:
        environment = {
            **os.environ,
            **BUFFER,
            "BACKEND": "gloo",
            "WORLD_SIZE": str(size),
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "FATAL",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.torch_own", str(size)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # the ranks are in it too
        )

    def run(self, name: str, *, way: str = MODE, gpus: bool = False, deadline: float = 60.0) -> Outcome:
        """Run one of torch's tests on all ranks, or a "module:function"; it has `deadline` seconds.

        `way`: under the mode, under a guard, there in a thread that ran before, or by itself for "".
        `gpus` says that the test asks for GPUs: what it puts on one stays on the CPU.
        """
        told = self._ask({"name": name, "way": way, "gpus": gpus, "deadline": deadline}, deadline + _START)
        return Outcome(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})

    def names(self) -> list[str]:
        """Return the names of all tests that torch has."""
        return list(self._ask({}, _START))

    def _ask(self, request: dict[str, Any], within: float) -> Any:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        ready, _, _ = select.select([answers], [], [], within)
        line = answers.readline() if ready else ""
        if not line:
            raise RuntimeError(f"the launcher did not answer {request}: it ended, or hangs")
        return json.loads(line)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(10)


def serve(size: int) -> None:
    """Answer requests until there are no more."""
    own = _own()
    for line in sys.stdin:
        request = json.loads(line)
        answer = _run(own, size, **request) if request else [name for name in dir(own) if name.startswith("test_")]
        print(json.dumps(answer), flush=True)


def _own() -> Any:
    """Import torch's tests, as one class."""
    from torch.testing._internal import common_distributed  # noqa: PLC0415 - only the launcher imports torch's tests

    # Upstream runs tests of subgroups on eight ranks or more, but they are written for ranks 1 and 2.
    common_distributed.skip_if_small_worldsize = lambda test: test
    ask_for_none(common_distributed)
    from torch.testing._internal.distributed import distributed_test  # noqa: PLC0415 - as above

    class Own(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):
        def _barrier(self, timeout: float = 10, wait_for: int | None = None) -> None:
            """Wait for the other ranks, outside of the group; upstream looks ten times a second."""
            self.barriers = getattr(self, "barriers", 0) + 1
            here, until = Path(os.environ["TEMP_DIR"]) / "barrier", time.monotonic() + timeout
            (here / f"{self.barriers}.{self.rank}").touch()
            while len(list(here.glob(f"{self.barriers}.*"))) < (wait_for or int(self.world_size)):
                if time.monotonic() > until:
                    raise RuntimeError("the other ranks did not come to the barrier")
                time.sleep(0.002)

    return Own


def _run(own: Any, size: int, name: str, way: str, gpus: bool, deadline: float) -> dict[str, Any]:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as told:
        directory = Path(told)
        for folder in ("barrier", "test_dir"):
            (directory / folder).mkdir()
        ranks = {}
        for rank in range(size):
            process = os.fork()
            if not process:
                _be(own, rank, size, name, way, gpus, directory)
            ranks[process] = rank
        ended = dict(_ended(ranks, start + deadline, directory))
        results = [_result(directory, rank, ended.get(rank)) for rank in range(size)]
    worst = max((result["outcome"] for result in results), key=(SKIPPED, PASSED, HUNG, FAILED, DIED).index)
    ops: dict[str, int] = {}
    for result in results:
        for op, count in result.get("ops", {}).items():
            ops[op] = ops.get(op, 0) + count
    return {
        "outcome": worst,
        "texts": [f"rank {result['rank']}: {result['text']}" for result in results if result["outcome"] != PASSED],
        "ops": ops,
        "findings": [text for result in results for text in result.get("findings", ())],
        "unlike": [f"rank {result['rank']}: {text}" for result in results for text in result.get("unlike", ())],
        "seconds": round(time.monotonic() - start, 3),
    }


def _ended(ranks: dict[int, int], until: float, directory: Path) -> Iterator[tuple[int, int]]:
    """Yield the exit status of each rank that ended by itself, and kill the others."""
    waiting = {os.pidfd_open(process): process for process in ranks}
    failed = False
    while waiting and (left := until - time.monotonic()) > 0:
        for end in select.select([*waiting], [], [], left)[0]:
            process = waiting.pop(end)
            os.close(end)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            if status and not failed:
                failed, until = True, min(until, time.monotonic() + _GRACE)
            yield ranks[process], status
    for end, process in waiting.items():
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(end)


def _result(directory: Path, rank: int, status: int | None) -> dict[str, Any]:
    file, log = directory / f"rank{rank}.json", directory / f"rank{rank}.log"
    if file.exists():
        return {"rank": rank, **json.loads(file.read_text())}
    text = log.read_text(errors="replace")[-_TAIL:] if log.exists() else ""
    return {"rank": rank, "outcome": HUNG if status is None else DIED, "text": f"exit status {status}: {text}"}


def _be(own: Any, rank: int, size: int, name: str, way: str, gpus: bool, directory: Path) -> NoReturn:
    """Be one rank of one test."""
    status = 1
    try:
        log = os.open(directory / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        told = _test(own, rank, size, name, way, gpus, directory)
        text = json.dumps(told)
        (directory / f"rank{rank}.part").write_text(text)
        (directory / f"rank{rank}.part").rename(directory / f"rank{rank}.json")
        status = int(told["outcome"] not in {PASSED, SKIPPED})
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _test(own: Any, rank: int, size: int, name: str, way: str, gpus: bool, directory: Path) -> dict[str, Any]:
    import torch.distributed as dist  # noqa: PLC0415 - only ranks do
    from torch.testing._internal.common_utils import set_rng_seed  # noqa: PLC0415 - as above
    from torch.testing._internal.distributed import distributed_test  # noqa: PLC0415 - as above

    os.environ.update(TEMP_DIR=str(directory), INIT_METHOD=f"file://{directory}/init", MASTER_ADDR="127.0.0.1")
    distributed_test.INIT_METHOD = os.environ["INIT_METHOD"]  # read when torch's tests are imported
    module, _, function = name.rpartition(":")
    case = own("_barrier" if module else name)
    body = getattr(importlib.import_module(module), function) if module else getattr(case, name)
    case.rank, case.file_name = rank, f"{directory}/group"
    seconds = distributed_test.CUSTOM_PG_TIMEOUT.get(name, distributed_test.default_pg_timeout)
    dist.init_process_group(
        "gloo", init_method=case.init_method, world_size=size, rank=rank, timeout=timedelta(seconds=seconds)
    )
    case._barrier()
    set_rng_seed()
    outcome, text = PASSED, ""
    if gpus:
        body = stay_on_cpu(rank)(body)  # a context manager as a decorator: it counts in the thread that enters it
    if way == THREAD:
        body = _in_a_thread(body)
    under = {"": contextlib.nullcontext, MODE: lambda: cr.RuleMode(check=True)}.get(way, lambda: cr.guard(agree=False))
    ledger = None
    try:
        with under() as entered:
            ledger = getattr(entered, "ledger", entered)
            body()
    except unittest.SkipTest as reason:
        outcome, text = SKIPPED, str(reason)
    except SystemExit as left:
        outcome, text = (SKIPPED, f"torch skips it, by exit status {left.code}") if left.code else (PASSED, "")
    except Exception:
        outcome, text = FAILED, traceback.format_exc()[-_TAIL:]
    told: dict[str, Any] = {"outcome": outcome, "text": text}
    if ledger is not None:
        told["ops"] = {op: total.calls for (op,), total in ledger.by("op").items()}
        told["findings"] = [str(finding) for finding in ledger.findings]
        sent = [
            entry.call for entry in ledger.entries if not any(found.severity == "error" for found in entry.findings)
        ]
        told["unlike"] = _unlike(expected_dump(sent), read_dump(dump()))
    if outcome == PASSED:
        case._barrier()  # the others are done with this rank's connections
    return told


def _in_a_thread(body: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that carries `body` out in a thread, which runs from now on."""
    threads = ThreadPoolExecutor(1)
    threads.submit(threading.get_ident).result()
    return lambda: threads.submit(body).result()


def _unlike(ledger: dict[str, list[Any]], recorder: dict[str, list[Any]]) -> list[str]:
    """Say where the ledger and gloo's Flight Recorder differ first, of each group."""
    texts = []
    for group in sorted({*ledger, *recorder}):
        pairs = itertools.zip_longest(ledger.get(group, ()), recorder.get(group, ()))
        for place, (ours, theirs) in enumerate(pairs):
            if ours != theirs:
                texts.append(f"group {group}, entry {place}: {ours} in the ledger, {theirs} in the recorder")
                break
    return texts


if __name__ == "__main__":
    serve(int(sys.argv[1]))

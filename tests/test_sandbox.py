"""Whatever a job does, the sandbox says so in time, nothing of it is left, and the next job runs.

The jobs are in this file, too: what a child calls, with one payload, by the file's path and their name.
"""

import ctypes
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.sandbox import DIES, HANGS, OK, OUTCOMES, RAISES, Result, Sandbox
from collective_rules.sandbox import sandbox as sandbox_module
from collective_rules.sandbox.fork_server import ANSWER_LIMIT
from collective_rules.testing.run_calls import sandbox_warm_up  # noqa: F401 - the fork server calls it
from collective_rules.testing.world import World, WorldTimeout
from tests.leaks import gone, held

SHORT = 0.5


def job(function: Any) -> str:
    return f"{__file__}:{function.__name__}"


KILLED = """
import os, sys
from collective_rules.sandbox import Sandbox
with Sandbox(deadline=600) as box:
    if os.fork() == 0:  # what holds the sandbox's socket after its owner's death
        sys.stdin.read()
        os._exit(0)
    box.run(sys.argv[1], {"file": sys.argv[2], "fifo": sys.argv[3], "then": "hangs"})
"""


@attrs.frozen
class Parent:
    """A process with a sandbox whose job writes to `file` what it has started, and then to `listening`."""

    process: subprocess.Popen[bytes]
    file: Path
    listening: int


@pytest.fixture(scope="module", autouse=True)
def to_be_killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """It takes some seconds to get ready, while the other tests run."""
    folder = tmp_path_factory.mktemp("parent")
    file, fifo = folder / "pids", folder / "fifo"
    os.mkfifo(fifo)
    listening = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, job(start_processes), str(file), str(fifo)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE) as process:
        yield Parent(process, file, listening)
        process.kill()
    os.close(listening)


@pytest.fixture(scope="module")
def boxes() -> Iterator[list[Sandbox]]:
    """The sandboxes of this module."""
    made: list[Sandbox] = []
    yield made
    for each in made:
        each.close()


@pytest.fixture
def box(boxes: list[Sandbox]) -> Sandbox:
    """A sandbox that is made once, and again after a test that closes it."""
    if not boxes or boxes[-1].closed:
        boxes.append(Sandbox(deadline=30))
    return boxes[-1]


def left(pids: Any) -> list[int]:
    """Those processes that are still there, zombies too."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# -- jobs


def echo(payload: Any) -> Any:
    return payload


def fail(text: str) -> None:
    raise ValueError(text)


def fail_without_text(_: Any) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

    raise MuteError


def leave_politely(status: int) -> None:
    sys.exit(status)


def circumstances(_: Any) -> list[Any]:
    before, threads = len(sys.modules), len(os.listdir(f"/proc/{os.getppid()}/task"))
    all_reduce([1, 1])
    with FakeTensorMode():
        torch.ones(2) + 1
    leads = os.getsid(0) == os.getpid()
    return [torch.get_num_threads(), threads, os.environ["OMP_NUM_THREADS"], leads, len(sys.modules) - before]


def wait_for_ever(_: Any) -> None:
    threading.Event().wait()


def read_if(file: str) -> str:
    return Path(file).read_text() if file else ""


def wait_if(really: bool) -> None:
    if really:
        wait_for_ever(None)


def wait_with_the_interpreter_lock(_: Any) -> None:
    ctypes.PyDLL(None).sleep(60)


def wait_deaf(_: Any) -> None:
    for each in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(each, signal.SIG_IGN)
    threading.Event().wait()


def stop(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def one_of_this_file(name: str) -> None:
    globals()[name](None)


def abort(last_words: str) -> None:
    print(last_words, file=sys.stderr)
    os.abort()


def kill_its_group(by: int) -> None:
    os.killpg(0, by)


def kill_itself(by: int) -> None:
    os.kill(os.getpid(), by)


def close_all_files(_: Any) -> None:
    os.closerange(0, 1000)


def flood(last_words: str) -> None:
    megabyte = b"x" * 2**20
    for stream in (1, 2) * 128:
        os.write(stream, megabyte)
    abort(f"\n{last_words}")


def answer_by_bytes(size: int) -> None:
    """Write an answer of one's own to the fork server."""
    for name in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{name}"
        if os.path.exists(link) and os.readlink(link).startswith("socket:"):
            threading.Thread(target=os.write, args=(int(name), b"x" * size + b"\n"), daemon=True).start()
    threading.Event().wait()


def big(size: int) -> str:
    return "x" * size


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def judge(fields: dict[str, Any]) -> Result:
    return Result(**fields)


def no_result(_: Any) -> Result:
    return Result("perhaps")


def fork_and_answer_twice(_: Any) -> int:
    if child := os.fork():
        os.waitpid(child, 0)
    return child


def start_processes(payload: dict[str, str]) -> list[int]:
    """Write down the fork server, this process, one of another session and a double-forked one; end in some way.

    If that has been done before, by a process whose work this one does again, only return.
    """
    if os.path.exists(payload["file"]):
        return []
    sys.stdin.read()  # there is nothing to wait for
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    pids = [os.getppid(), os.getpid(), subprocess.Popen(command, start_new_session=True).pid]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if (orphan := os.fork()) > 0:
            os.write(writing, f"{orphan}".encode())
            os._exit(0)
        signal.pause()
    os.waitpid(child, 0)
    pids.append(int(os.read(reading, 100)))
    # A rename: whoever waits for the file finds all of it.
    Path(payload["file"] + "~").write_text(json.dumps(pids))
    os.rename(payload["file"] + "~", payload["file"])
    if "fifo" in payload:
        os.close(os.open(payload["fifo"], os.O_WRONLY))
    if "interrupt" in payload:
        os.kill(int(payload["interrupt"]), signal.SIGINT)
    if payload["then"] == HANGS:
        threading.Event().wait()
    if payload["then"] == DIES:
        os.abort()
    return pids


def start_processes_or_wait(payload: dict[str, str]) -> Any:
    """Or wait until those have been started that another payload asks for."""
    return start_processes(payload) if "then" in payload else Path(payload["fifo"]).read_text()


def lose_processes(payload: dict[str, str]) -> list[int]:
    """Start processes, if told to, and tell which are gone when somebody opens the FIFO `until`."""
    pids = start_processes(payload) if payload else []
    if payload:
        Path(payload["until"]).read_text()
    return sorted({*pids} - {*left(pids)})


def meet(payload: dict[str, Any]) -> int:
    """Come back when `size` have come to `folder`; what would be an event is several processes' own."""
    Path(payload["folder"], f"{os.getpid()}").touch()
    while len(os.listdir(payload["folder"])) < payload["size"]:
        os.sched_yield()
    return os.getpid()


def pid_unless(payload: str) -> int:
    if payload == "raise":
        raise ValueError(os.getpid())
    if payload:
        getattr(os, payload)()
    return os.getpid()


def parent(_: Any) -> int:
    return os.getppid()


def kill_the_fork_server_unless(file: str) -> None:
    """Make the file, if it has a name, and kill the fork server unless the file was there."""
    if not os.path.exists(file):
        if file:
            Path(file).touch()
        os.kill(os.getppid(), signal.SIGKILL)
        wait_for_ever(None)


def all_reduce(sizes: list[int]) -> Result:
    calls = [{"tensors": [torch.ones(size)]} for size in sizes]
    try:
        returned = World(len(sizes), timeout=1.0).run("c10d::allreduce_", calls)
    except WorldTimeout as error:
        return Result(HANGS, [str(error)])
    return Result(OK, value=[each.values[0][0].sum().item() for each in returned])


# -- results


@pytest.mark.parametrize("value", [None, 1.5, "é\n\ud800", [1, {"a": [True]}], {"": None}], ids=repr)
def test_a_value_comes_back(box: Sandbox, value: Any) -> None:
    """Payload and value are carried as JSON data, there and back."""
    assert Result(OK, value=value) == box.run(job(echo), value)


def test_a_job_is_a_function_of_a_module_or_of_a_file(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's path may be relative to the working directory of this process."""
    monkeypatch.chdir(Path(__file__).parent)
    names = ["math:factorial", f"{Path(__file__).name}:echo"]
    assert [6, 3] == [box.run(name, 3).value for name in names]


SIMPLE: list[tuple[Any, Any, str, str]] = [
    (fail, "no", "raises ValueError: no", "ValueError: no"),
    (fail, "", "raises ValueError", "ValueError"),
    (fail_without_text, None, "raises MuteError: (no text: its __str__ raised ValueError)", "its __str__"),
    (leave_politely, 3, "raises SystemExit: 3", "SystemExit: 3"),
    (no_result, None, "raises CallError: outcome='perhaps', but should be one of 'ok', 'raises', ...", "CallError"),
    (abort, "last words", "dies by signal 6 (SIGABRT)", "last words"),
    (kill_itself, signal.SIGKILL, "dies by signal 9 (SIGKILL)", ""),
    (kill_its_group, signal.SIGKILL, "dies by signal 9 (SIGKILL)", ""),
    (kill_itself, signal.SIGFPE, "dies by signal 8 (SIGFPE)", ""),
    (kill_itself, 40, "dies by signal 40", ""),
    (ctypes.string_at, 0, "dies by signal 11 (SIGSEGV)", ""),
    (os._exit, 3, "dies with exit status 3", ""),
    (os._exit, 0, "dies with exit status 0", ""),
    (close_all_files, None, "dies with exit status 1", ""),
]


@pytest.mark.parametrize(
    ("function", "payload", "shown", "message"), SIMPLE, ids=lambda value: getattr(value, "__name__", None)
)
def test_every_outcome_is_told_and_the_next_job_runs(
    box: Sandbox, function: Any, payload: Any, shown: str, message: str
) -> None:
    """Exceptions, signals and exit statuses are told apart; none is the end of the sandbox."""
    module = {ctypes.string_at: "ctypes", os._exit: "os"}.get(function, __file__)
    result = box.run(f"{module}:{function.__name__}", payload)
    assert str(result).startswith(shown.removesuffix("..."))
    assert message in result.message
    assert OK == box.run(job(echo), 1).outcome


def test_a_job_finds_all_that_was_promised(box: Sandbox) -> None:
    """One thread, in the fork server too, a session, and nothing left to import for a call."""
    assert [1, 1, "1", True, 0] == box.run(job(circumstances), None).value


def test_a_job_that_does_not_come_back_hangs(box: Sandbox) -> None:
    """The deadline holds in Python, in C with the interpreter lock held, stopped, and for the deaf; others go on."""
    waits = [wait_for_ever, wait_with_the_interpreter_lock, wait_deaf, stop]
    found = [result for _, result in box.map(job(one_of_this_file), [each.__name__ for each in waits], deadline=SHORT)]
    assert [Result(HANGS, ["no answer within 0.5 s"])] * 4 == found
    assert OK == box.run(job(echo), 1).outcome


def test_a_job_may_judge_by_itself(box: Sandbox) -> None:
    """A result that a job returns is passed on as it is."""
    results = [Result(outcome, ["by itself"], value=[outcome]) for outcome in OUTCOMES]
    payloads = [{"outcome": each.outcome, "details": each.details, "value": each.value} for each in results]
    found = dict(box.map(job(judge), payloads))
    assert results == [found[place] for place in range(len(OUTCOMES))]
    assert [*OUTCOMES] == [str(found[place]).split(" by")[0] for place in range(len(OUTCOMES))]


@pytest.mark.parametrize(
    ("function", "payload", "message"),
    [
        (big, ANSWER_LIMIT, r"an answer of \d+ bytes of JSON, but should be \d+ at most"),
        (answer_by_bytes, ANSWER_LIMIT + 2**20, r"an answer of more than \d+ bytes"),
        (answer_by_bytes, 9, "an answer that is not a result: 'xxxxxxxxx'"),
        (nested, 10**5, "an answer that is not JSON data: maximum recursion depth"),
    ],
    ids=["big", "endless", "garbled", "nested"],
)
def test_an_answer_that_is_none_is_told(box: Sandbox, function: Any, payload: int, message: str) -> None:
    """Too big, garbled or not JSON data: the job raises that."""
    result = box.run(job(function), payload)
    assert RAISES == result.outcome
    assert re.match(message, result.message)
    assert OK == box.run(job(echo), 1).outcome


def test_output_neither_blocks_nor_piles_up(box: Sandbox) -> None:
    """Of 256 MB, the last 4 kB are the message of the death."""
    result = box.run(job(flood), "last words")
    assert result.message.endswith("x\nlast words")
    assert len(result.message) <= 4096


def test_gloo_may_break(box: Sandbox) -> None:
    """What the sandbox is for: a mismatch is survived, and a legal call beside it answers."""
    found = dict(box.map(job(all_reduce), [[2, 2], [1, 4096], [3, 3]]))
    assert ([4.0, 4.0], [6.0, 6.0]) == (found[0].value, found[2].value)
    assert found[1].outcome in {HANGS, DIES}


# -- many payloads


def test_results_come_in_the_order_of_completion(box: Sandbox, tmp_path: Path) -> None:
    """A slow payload does not hold up those after it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    answers = box.map(job(read_if), [str(fifo), "", "", "", "", ""])
    assert {1, 2, 3, 4, 5} == {place for place, _ in itertools.islice(answers, 5)}
    fifo.write_text("at last")
    assert [(0, Result(OK, value="at last"))] == list(answers)


def test_as_many_children_as_workers_run_side_by_side(box: Sandbox, tmp_path: Path) -> None:
    """Four that wait for each other come back, each with a process of its own."""
    payload = {"folder": str(tmp_path), "size": box.workers}
    results = [result for _, result in box.map(job(meet), [payload] * box.workers)]
    assert box.workers == len({result.value for result in results})


def test_payloads_are_taken_as_they_are_needed(box: Sandbox) -> None:
    """There may be no end of payloads, and other jobs may run while some are at work."""
    payloads = itertools.count()
    answers = box.map(job(echo), payloads)
    for place, result in itertools.islice(answers, 10):
        assert place == result.value
        assert place == box.run(job(echo), place).value
    assert next(payloads) <= 10 + box.workers
    answers.close()  # type: ignore[attr-defined]


def test_reuse_keeps_children_while_all_is_well(box: Sandbox) -> None:
    """Many payloads share a process; a death, an exception or a process left over costs that payload alone."""
    payloads = [""] * 60
    payloads[20], payloads[40], payloads[50] = "abort", "raise", "fork"
    found = dict(box.map(job(pid_unless), payloads, reuse=True))
    assert {20: DIES, 40: RAISES} == {place: each.outcome for place, each in found.items() if each.outcome != OK}
    pids = [found[place].value for place in range(60) if found[place].outcome == OK]
    assert len(set(pids)) <= box.workers + 3
    assert int(found[40].message.removeprefix("ValueError: ")) not in pids[-19:]
    assert not left(pids)
    pids = [result.value for _, result in box.map(job(pid_unless), [""] * 20)]
    assert 20 == len(set(pids))
    assert not left(pids)


# -- what is left


def test_the_end_of_a_child_is_not_the_end_of_others(box: Sandbox, tmp_path: Path) -> None:
    """What a job has started lives as long as its run, even when its parent there is gone."""
    file, started, until = (tmp_path / name for name in ("pids", "started", "until"))
    for each in (started, until):
        os.mkfifo(each)
    with open(os.open(started, os.O_RDONLY | os.O_NONBLOCK)) as listening:
        answers = box.map(
            job(lose_processes), [{}, {"file": str(file), "fifo": str(started), "until": str(until), "then": OK}]
        )
        assert (0, Result(OK, value=[])) == next(answers)
        assert select.select([listening], [], [], 10)[0]
    assert OK == box.run(job(echo), 1).outcome
    until.write_text("")
    assert (1, Result(OK, value=[])) == next(answers)
    assert not left(json.loads(file.read_text())[1:])


@pytest.mark.parametrize(("then", "reuse"), [(OK, False), (OK, True), (HANGS, False), (DIES, False)])
def test_no_process_outlives_its_run(box: Sandbox, tmp_path: Path, then: str, reuse: bool) -> None:
    """Not those of another session, not those whose parents are gone: all have ended when the result is told."""
    file = tmp_path / "pids"
    for _, result in box.map(job(start_processes), [{"file": str(file), "then": then}], deadline=1, reuse=reuse):
        server, *started = json.loads(file.read_text())
        assert not left(started)
        assert [server] == left([server])
        assert then == result.outcome


def test_a_job_that_forks_answers_once(box: Sandbox) -> None:
    """What a fork of the child returns is not the job's answer, even if it comes first."""
    assert box.run(job(fork_and_answer_twice), None).value > 0


def test_what_is_not_waited_for_is_ended(box: Sandbox, tmp_path: Path) -> None:
    """Whoever stops taking results ends the children that are at work."""
    file, fifo = tmp_path / "pids", tmp_path / "fifo"
    os.mkfifo(fifo)
    payloads = [{"fifo": str(fifo)}, {"file": str(file), "fifo": str(fifo), "then": HANGS}]
    answers = box.map(job(start_processes_or_wait), payloads)
    assert 0 == next(answers)[0]
    start = time.monotonic()
    answers.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < box.deadline / 2
    assert not left(json.loads(file.read_text())[1:])


def test_nothing_outlives_a_parent_that_is_killed(to_be_killed: Parent) -> None:
    """The fork server, child and what that has started end when nobody is left to ask for them."""
    assert select.select([to_be_killed.listening], [], [], 60)[0], "the job was not started"
    to_be_killed.process.kill()
    to_be_killed.process.wait()
    pids = json.loads(to_be_killed.file.read_text())
    assert 4 == len(pids)
    assert gone(pids)


def test_a_fork_has_no_part_in_the_sandbox(box: Sandbox) -> None:
    """A forked process can neither use nor end it."""
    server = box.run(job(parent), None).value
    child = os.fork()
    if child == 0:
        try:
            box.run(job(echo), 1)
        except CollectiveRulesError:
            box.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert 0 == os.waitpid(child, 0)[1]
    assert server == box.run(job(parent), None).value


# -- what is no good


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deadline": 0}, "deadline=0, but should be a positive number of seconds"),
        ({"deadline": float("inf")}, "deadline=inf, but"),
        ({"deadline": float("nan")}, "deadline=nan, but"),
        ({"deadline": "5"}, "deadline='5', but"),
        ({"workers": 0}, "workers=0, but should be a whole number of at least 1"),
        ({"workers": 1.5}, "workers=1.5, but"),
        ({"warm": "math"}, "warm='math', but should be a sequence of names of modules"),
        ({"warm": ["no.such"]}, "'no.such' cannot be imported: ModuleNotFoundError: No module named 'no'"),
    ],
    ids=str,
)
def test_a_sandbox_says_what_it_cannot_be(arguments: dict[str, Any], message: str) -> None:
    """A bad argument is named, with its value, when the sandbox is made; nothing is left of it."""
    before = held()
    with pytest.raises(CallError, match=re.escape(message)):
        Sandbox(**arguments)
    assert before == held(before)


@pytest.mark.parametrize(
    ("name", "payload", "deadline", "message"),
    [
        ("math", 1, 1, "job='math', but should be 'package.module:function' or '/path/to/file.py:function'"),
        (":echo", 1, 1, "job=':echo', but"),
        (None, 1, 1, "job=None, but"),
        ("no.such:echo", 1, 1, "'no.such:echo' cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("/no/such.py:echo", 1, 1, "'/no/such.py:echo' cannot be imported: FileNotFoundError"),
        ("math:such", 1, 1, "job='math:such', but should name a function of math: there is no 'such'"),
        ("math:pi", 1, 1, "job='math:pi', but should name a function of math"),
        ("math:sqrt", {1}, 1, "payload={1}, but should be JSON data: Object of type set is not JSON serializable"),
        ("math:sqrt", 1, -1, "deadline=-1, but should be a positive number of seconds"),
    ],
)
def test_a_run_says_what_it_cannot_do(box: Sandbox, name: Any, payload: Any, deadline: float, message: str) -> None:
    """A job that is none, a payload that is not JSON data or a bad deadline is named; the next job runs."""
    with pytest.raises(CallError, match=re.escape(message)):
        box.run(name, payload, deadline=deadline)
    with pytest.raises(CallError, match=re.escape(message)):
        list(box.map(name, [payload], deadline=deadline, reuse=True))
    assert OK == box.run(job(echo), 1).outcome


# -- what takes another fork server: last, for it takes some seconds


def test_an_interrupt_closes_the_sandbox_which_leaves_nothing(box: Sandbox, tmp_path: Path) -> None:
    """Ctrl-C while waiting for a result, not meant for the fork server, ends all processes, files and threads."""
    file = tmp_path / "pids"
    assert os.getsid(0) != os.getsid(box.run(job(parent), None).value)
    answers = box.map(job(wait_if), [False, True], reuse=True)
    assert (0, Result(OK)) == next(answers)
    fork = os.fork()
    if fork == 0:  # what holds the sandbox's socket, too
        signal.alarm(60)
        signal.pause()
    before = held()  # OpenBLAS ends its threads where a process is forked
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        box.run(job(start_processes), {"file": str(file), "then": HANGS, "interrupt": str(os.getpid())})
    assert box.closed
    assert time.monotonic() - start < sandbox_module._GRACE
    os.kill(fork, signal.SIGKILL)
    os.waitpid(fork, 0)
    assert not left(json.loads(file.read_text()))
    after = before._replace(files=before.files - 2, sockets=before.sockets - 1, children=before.children - 2)
    assert after == held(after), "two children, the log of one and the socket to it"
    for use in (lambda: next(answers), lambda: box.run(job(echo), 1), lambda: box.map(job(echo), [1])):
        with pytest.raises(CollectiveRulesError, match="<Sandbox of 4 workers, closed> cannot be used"):
            use()


def test_the_loss_of_the_fork_server_is_made_good(box: Sandbox, tmp_path: Path) -> None:
    """Its children end with it. What they have started is ended, and what is unanswered is tried once more."""
    file, fifo = tmp_path / "pids", tmp_path / "fifo"
    os.mkfifo(fifo)
    payloads = [{"fifo": str(fifo)}, {"file": str(file), "fifo": str(fifo), "then": HANGS}]
    answers = box.map(job(start_processes_or_wait), payloads)
    assert 0 == next(answers)[0]
    server, child, *others = json.loads(file.read_text())
    os.kill(server, signal.SIGKILL)
    assert gone([server, child])
    assert others == left(others)
    start = time.monotonic()
    assert OK == box.run(job(echo), 1).outcome
    assert time.monotonic() - start < box.deadline
    assert [(1, Result(OK, value=[]))] == list(answers)
    assert gone(others)


def test_who_loses_every_fork_server_dies_of_it(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing is as good as lost. All that was asked of it is suspect, and done alone."""
    monkeypatch.setattr(sandbox_module, "_GRACE", 0.5)
    assert OK == box.run(job(kill_the_fork_server_unless), __file__).outcome  # imported: that may take its time
    os.kill(box.run(job(parent), None).value, signal.SIGSTOP)
    found = dict(box.map(job(kill_the_fork_server_unless), [__file__, __file__, __file__, ""], deadline=3 * SHORT))
    assert [OK, OK, OK, DIES] == [found[place].outcome for place in range(4)]
    assert "the fork server was lost (it died): status -9" == found[3].message

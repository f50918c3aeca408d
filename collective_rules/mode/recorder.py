"""Records and checks the collectives that it is told of, and sends them or simulates them.

A dispatch mode and the kernels tell it of calls; it does not know which of the two did.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as _c10d

from collective_rules.backends import BACKENDS
from collective_rules.call import on_device
from collective_rules.check import check as check_call
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, WARNING, Finding
from collective_rules.ledger import CallFacts, Entry, Ledger
from collective_rules.mode import python_groups, works
from collective_rules.mode.call_sites import CallSites, is_given_to_program, source_line
from collective_rules.mode.group_arguments import UnknownGroupError
from collective_rules.mode.group_making import GroupMaking, Make
from collective_rules.mode.kernels import Send
from collective_rules.mode.observer import Observer
from collective_rules.mode.postcheck import difference
from collective_rules.mode.reader import ArgumentReader, ArgumentReaders, DeviceTypes
from collective_rules.mode.simulated import Simulator
from collective_rules.nested import leaves
from collective_rules.spec import Group

UNWAITED = "MODE2"
"""The id of the finding that nobody waits for a call: for a functional collective's result, or for a Work."""

NO_TABLE = "MODE3"
"""The id of the finding that there is no table of a backend's limits."""

_CHECKS = {False: "", True: "raise", "raise": "raise", "warn": "warn", "record": "record"}


class _Inside(threading.local):
    """Whether the thread is inside of a call that is recorded: what it is made of is no call of the program."""

    now = False


class CallRecorder:
    """Records each collective that it is told of, checks it, and sends it or simulates it.

    `check`, `execute`, `backend` and `keep` are those of `RuleMode`. `observer` follows the calls, too.
    `device_types` says where tensors are, in a run in which all of them are on the cpu. `modules`: whether entries tell
    the module at work, which takes hooks on every module.

    Raises `CallError` for an argument of another kind.
    """

    def __init__(
        self,
        *,
        check: bool | str = False,
        execute: bool = True,
        backend: str | None = "auto",
        keep: int = 100_000,
        observer: Observer | None = None,
        device_types: DeviceTypes | None = None,
        modules: bool = True,
    ) -> None:
        if not isinstance(check, (bool, str)) or check not in _CHECKS:
            raise CallError(f"check={check!r}, but should be False, True, 'raise', 'warn' or 'record'")
        if not isinstance(execute, bool):
            raise CallError(f"execute={execute!r}, but should be True or False")
        if backend not in (None, "auto", *BACKENDS):
            names = ", ".join(map(repr, BACKENDS))
            raise CallError(f"backend={backend!r}, but should be 'auto', None or one of {names}")
        if isinstance(keep, bool) or not isinstance(keep, int) or not 0 <= keep <= sys.maxsize:
            raise CallError(f"keep={keep!r}, but should be the number of calls to keep, 0 or more")
        self.ledger = Ledger(keep)
        self._observer = observer
        self._check = _CHECKS[check]
        self.executes = execute
        self._backend = backend
        self._readers = ArgumentReaders(device_types)
        self._device_types = device_types
        self._without_table: set[str] = set()
        self._simulator = Simulator()
        self._sites = CallSites(self._stepped, modules=modules)
        self._pending: dict[int, Entry] = {}
        self._lost: list[Entry] = []
        self._inside = _Inside()
        self._start = 0.0
        self._coalescing: dict[Any, Any] = {}
        self._parents: dict[int, tuple[Group, Group]] = {}
        self._had_groups = False

    def start(self) -> None:
        """Begin a block. Raises `SimulationError` where nothing is to be sent and a group is written in Python."""
        if not self.executes:
            python_groups.start(self)
        if self._observer is not None:
            self._observer.start(self._note)
        self._start = time.perf_counter()
        self._had_groups = dist.is_initialized()
        self._coalescing = dict(dist.distributed_c10d._world.pg_coalesce_state)
        self._sites.start()
        works.start(self._dropped)

    def stop(self) -> None:
        """Remove the hooks; an interrupt may come in between, and then once more."""
        python_groups.stop(self)
        self._sites.stop()
        self._lost += works.stop(self._dropped)

    def leave(self, error: BaseException | None) -> None:
        """End the block, which `error` left."""
        if error is not None:
            # After an exception in a coalescing manager, torch keeps this state, and sends nothing from then on.
            dist.distributed_c10d._world.pg_coalesce_state.clear()
            dist.distributed_c10d._world.pg_coalesce_state.update(self._coalescing)
        self._coalescing = {}
        pending = dict.fromkeys([*self._lost, *self._pending.values()])
        self._lost, self._pending = [], {}
        try:
            for entry in pending if error is None else ():
                self._report((_unwaited(entry),), entry, warn=True)
        finally:
            if self._observer is not None:
                self._observer.leave(error)

    def reader(self, op: Any) -> ArgumentReader | None:
        """Return the reader of `op`; None for an op that is no collective, and inside of a collective."""
        return None if self._inside.now else self._readers.of(op)

    def hear(self, op: Any, send: Send, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Record a call that a kernel tells of, unless it is part of one that is recorded, and carry it out."""
        reader = self.reader(op)
        return send(*args, **kwargs) if reader is None else self.carry_out(reader, send, args, kwargs)

    def hear_of_groups(self, making: GroupMaking, make: Make) -> Any:
        """Record that groups are about to be made, and make them, also where nothing is sent."""
        if self._inside.now:
            return make(None)
        if making.call.row.rule.numbers_anew and not self._had_groups:
            self._had_groups = True
            return make(None)
        self._inside.now = True
        try:
            group = making.call.group
            if id(group) not in self._parents:  # to compare the ranks of a large group takes long
                equal = next((each for _, each in self._parents.values() if each == group), group)
                self._parents[id(group)] = (group, equal)
            group = self._parents[id(group)][1]
            facts = CallFacts.of(attrs.evolve(making.call, group=group))
            entry = self._enter_facts(facts, source_line(2), asynchronous=not making.waits)
            if self._observer is None:
                return make(None)
            self._observer.before(entry, None)
            return make(self._observer.limit())
        finally:
            self._inside.now = False

    def carry_out(
        self, reader: ArgumentReader, send: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Record a call, check it, send it or simulate it, and return what the program gets.

        Raises `CallError` for an illegal call, where `check` says so, and what the observer raises.
        """
        self._inside.now = True
        try:
            return self._carry_out(reader, send, args, kwargs)
        finally:
            self._inside.now = False

    def see(
        self, reader: ArgumentReader, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, check: bool = False
    ) -> None:
        """Record a call that is carried out elsewhere."""
        entered = self._enter(reader, args, kwargs)
        if check and entered is not None:
            self._precheck(*entered)

    def _carry_out(
        self, reader: ArgumentReader, send: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        works.tell_of_dropped()
        if reader.waits:
            self._waited((*args, *kwargs.values()))
            return send(*args, **kwargs) if self.executes else next(iter((*args, *kwargs.values())))
        entered = self._enter(reader, args, kwargs)
        if entered is None:
            return send(*args, **kwargs)
        entry, backend = entered
        if self._check:
            self._precheck(entry, backend)
        if self._observer is not None:
            self._observer.before(entry, backend)
        if self.executes:
            returned = sent = send(*args, **kwargs)
            if self._check:
                self._postcheck(entry, reader.named(args, kwargs), returned)
            if self._observer is not None:
                returned = self._observer.after(entry, returned)
        else:
            returned = sent = self._simulator.run(entry.facts, reader.named(args, kwargs), entry.source)
        if reader.functional:
            self._pend(entry, returned)
        elif entry.asynchronous and _needs_wait(entry.facts) and is_given_to_program():
            works.watch(_work(sent), _work(returned), self._dropped, entry)
        return returned

    def _precheck(self, entry: Entry, backend: str | None) -> None:
        facts = entry.facts
        if self._check and facts.findings is None:
            elsewhere = self._device_types is not None  # where all tensors are on the cpu, none tells its device
            facts.findings = check_call(on_device(facts.call, "meta") if elsewhere else facts.call, backend)
        if facts.findings:
            self._report(facts.findings, entry)

    def _postcheck(self, entry: Entry, named: Mapping[str, Any], returned: Any) -> None:
        facts = entry.facts
        wrong = difference(facts, named, returned) if _is_legal(facts.findings) else None
        if wrong is not None:
            self._report((wrong,), entry)

    def _enter(
        self, reader: ArgumentReader, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Entry, str | None] | None:
        """Record a call, and return its entry and its backend; None for a call of a group that nobody here knows."""
        try:
            facts = reader.read(args, kwargs)
        except UnknownGroupError:
            return None
        entry = self._enter_facts(facts, source_line(3), asynchronous=reader.asynchronous(args, kwargs))
        return entry, self._judge(facts) if self._backend == "auto" else self._backend

    def _enter_facts(self, facts: CallFacts, source: str, *, asynchronous: bool) -> Entry:
        module, phase = self._sites.now()
        return self.ledger.enter(facts, source, module, phase, time.perf_counter() - self._start, asynchronous)

    def _judge(self, facts: CallFacts) -> str | None:
        """Return the backend by whose limits a call is judged: its own, if there is a table of that backend's limits.

        Where there is none, note so once.
        """
        name = facts.backend
        if name is None or name in BACKENDS:
            return name
        if self._check and name not in self._without_table:
            self._without_table.add(name)
            finding = _no_table(name, facts.call.group.global_rank)
            self.ledger.find((finding,))
            if self._check == "warn" or (self._check == "raise" and self.executes):  # else the ledger is what is read
                warnings.warn(finding.message, stacklevel=2)
        return None

    def _report(self, findings: tuple[Finding, ...], entry: Entry, *, warn: bool = False) -> None:
        """Note findings; raise or warn as `check` says, and warn always with `warn`."""
        entry.findings += findings
        self.ledger.find(findings)
        errors = tuple(finding for finding in findings if finding.severity == ERROR)
        if errors and self._check == "raise":
            raise CallError(f"{errors[0].message}\n  at {entry.source}", findings)
        for finding in findings if self._check == "warn" or warn else ():
            warnings.warn(f"{finding.message}\n  at {entry.source}", stacklevel=2)

    def _note(self, findings: tuple[Finding, ...]) -> None:
        """Note findings between ranks that raise no error."""
        self.ledger.find(findings)
        for finding in findings if self._check == "warn" else ():
            warnings.warn(finding.message, stacklevel=2)

    def _pend(self, entry: Entry, returned: Any) -> None:
        for storage in _storages((returned,)):
            earlier = self._pending.get(storage)
            if earlier is not None and earlier is not entry:
                self._lost.append(earlier)  # its memory was freed, or is used again, before any wait
            self._pending[storage] = entry

    def _waited(self, values: Iterable[Any]) -> None:
        for storage in _storages(values):
            entry = self._pending.pop(storage, None)
            if entry is not None:
                entry.waited = source_line()
                if self._observer is not None:
                    self._observer.waited(entry)

    def _dropped(self, entry: Entry) -> None:
        self._report((_unwaited(entry),), entry, warn=True)

    def _stepped(self) -> None:
        self.ledger.steps += 1


def _is_legal(findings: tuple[Finding, ...] | None) -> bool:
    return not any(finding.severity == ERROR for finding in findings or ())


def _needs_wait(facts: CallFacts) -> bool:
    """Return whether a program that does not wait for the call's Work may use the tensors of the call too early."""
    row = facts.call.row
    if facts.backend is None or facts.backend not in BACKENDS or not (row.reads or row.writes):
        return False
    # With that switch, wait_tensor waits for Works, too.
    return BACKENDS[facts.backend].needs_wait and not _c10d._allow_inflight_collective_as_graph_input()


def _work(returned: Any) -> Any:
    """Return the Work that an op returned, alone or as the last."""
    boxed = returned[-1] if isinstance(returned, (tuple, list)) else returned
    return dist.Work.unbox(boxed) if isinstance(boxed, torch.ScriptObject) else None


def _storages(values: Iterable[Any]) -> Iterator[int]:
    """Yield what identifies the memory of each strided tensor in `values`, and in their lists."""
    for tensor in leaves(values, torch.Tensor):
        if tensor.layout is torch.strided:
            yield tensor.untyped_storage()._cdata


def _no_table(backend: str, rank: int) -> Finding:
    known = ", ".join(map(repr, BACKENDS))
    message = (
        f"the limits of {backend!r} are not known: only what every backend needs is checked   [{NO_TABLE}]\n"
        f"There are tables for {known}; backend= names one that takes the same."
    )
    return Finding(NO_TABLE, WARNING, message, (rank,))


def _unwaited(entry: Entry) -> Finding:
    call = entry.facts.call
    if any(output.kind == "work" for output in call.row.returns):
        says = "the program never waits on the Work, so it may use the tensors too early"
        advice = "Keep the Work that the call returns, and call wait() on it before you use the tensors."
    else:
        says = "the program never waits on the result, so it may read the result too early"
        advice = "Use the result, or call wait_tensor on it, before the block ends."
    message = f"{call.op}: {says}   [{UNWAITED}]\n    {call.row.notation}\n{advice}"
    return Finding(UNWAITED, WARNING, message, (call.group.global_rank,), op=call.op)

"""The dispatch mode: sees each collective of a block, records and checks it, and sends it or simulates it."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode, _push_mode

from collective_rules.backends import BACKENDS
from collective_rules.call import on_device
from collective_rules.check import check as check_call
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, WARNING, Finding
from collective_rules.ledger import CallFacts, Entry, Ledger
from collective_rules.mode.call_sites import CallSites, source_line
from collective_rules.mode.observer import Observer
from collective_rules.mode.postcheck import difference
from collective_rules.mode.reader import ArgumentReader, ArgumentReaders, DeviceTypes
from collective_rules.mode.simulated import Simulator
from collective_rules.mode.threads import follow, unfollow
from collective_rules.nested import leaves

UNWAITED = "MODE2"
"""The id of the finding that a functional collective's result was never waited on."""

NO_TABLE = "MODE3"
"""The id of the finding that there is no table of a backend's limits."""

_CHECKS = {False: "", True: "raise", "raise": "raise", "warn": "warn", "record": "record"}


class _Subclasses(dict[type, bool]):
    """Whether a tensor type decomposes its ops itself: the mode then sees the ops into which it decomposes them."""

    def __missing__(self, kind: type) -> bool:
        own = kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__  # type: ignore[attr-defined]
        waits = self[kind] = own and not issubclass(kind, (FakeTensor, FunctionalTensor))
        return waits


class DispatchMode(TorchDispatchMode):
    """Sees each collective of a block: records it, checks it, and sends it or simulates it.

    `check`, `execute`, `backend` and `keep` are those of `RuleMode`. `observer` follows the calls, too.
    `device_types` says where tensors are, in a run in which all of them are on the cpu.

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
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
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
        self._execute = execute
        self._backend = backend
        self._readers = ArgumentReaders(device_types)
        self._device_types = device_types
        self._without_table: set[str] = set()
        self._defers = _Subclasses()
        self._simulator = Simulator()
        self._sites = CallSites(self._stepped)
        self._pending: dict[int, Entry] = {}
        self._lost: list[Entry] = []
        self._depth = 0
        self._start = 0.0
        self._coalescing: dict[Any, Any] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile compile under the mode, which sees the collectives of compiled code as the code runs."""
        return True

    def __enter__(self) -> Ledger:
        if self._depth:
            self._depth += 1
            return self.ledger
        if self._observer is not None:
            self._observer.start(self._note)
        self._start = time.perf_counter()
        self._coalescing = dict(dist.distributed_c10d._world.pg_coalesce_state)
        try:
            self._sites.start()
            follow(self)
            super().__enter__()  # type: ignore[no-untyped-call]  # torch's
        except BaseException:  # an interrupt: the with statement does not leave a block that was not entered
            self._leave()
            raise
        self._depth = 1
        return self.ledger

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._depth:
            return
        self._depth -= 1
        if self._depth:
            return
        self._leave()
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

    def _leave(self) -> None:
        """Remove the mode, its hooks and its thread patch, those that are there; an interrupt comes after that."""
        try:
            self._remove()
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        try:
            if any(mode is self for mode in _get_current_dispatch_mode_stack()):
                above = []  # torch pops the top mode, which is another one where modes are left out of order
                while _get_current_dispatch_mode_stack()[-1] is not self:
                    above.append(_pop_mode())
                super().__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch's
                for mode in reversed(above):
                    _push_mode(mode)
        finally:
            try:
                unfollow(self)
            finally:
                self._sites.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            if self._defers[kind]:
                if self._depth and kind.__name__ == "LocalTensor":
                    self._see_local(func, args, kwargs or {})
                return NotImplemented
        reader = self._readers.of(func)
        # torch.compile takes the modes away while it compiles, but not where DDPOptimizer calls it.
        if reader is None or not self._depth or torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        return self._collective(reader, func, args, kwargs or {})

    def _collective(self, reader: ArgumentReader, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if reader.waits:
            self._waited((*args, *kwargs.values()))
            return func(*args, **kwargs) if self._execute else next(iter((*args, *kwargs.values())))
        entry, backend = self._see(reader, args, kwargs)
        if self._check:
            self._precheck(entry, backend)
        if self._observer is not None:
            self._observer.before(entry, backend)
        if self._execute:
            returned = func(*args, **kwargs)
            if self._check:
                self._postcheck(entry, reader.named(args, kwargs), returned)
            if self._observer is not None:
                returned = self._observer.after(entry, returned)
        else:
            returned = self._simulator.run(entry.facts, reader.named(args, kwargs), entry.source)
            for outer in _outer_modes(self):
                outer._see(reader, args, kwargs)
        if reader.functional:
            self._pend(entry, returned)
        return returned

    def _see_local(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record and check a collective that LocalTensorMode carries out for all ranks, and does not pass on."""
        reader = self._readers.of(func)
        if reader is not None and not reader.waits:
            self._precheck(*self._see(reader, args, kwargs))

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

    def _see(
        self, reader: ArgumentReader, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Entry, str | None]:
        facts = reader.read(args, kwargs)
        module, phase = self._sites.now()
        at = time.perf_counter() - self._start
        entry = self.ledger.enter(facts, source_line(3), module, phase, at, reader.asynchronous(args, kwargs))
        return entry, self._judge(facts) if self._backend == "auto" else self._backend

    def _judge(self, facts: CallFacts) -> str | None:
        """Return the backend by whose limits a call is judged: its own, if there is a table of that backend's limits.

        Where there is none, note so once.
        """
        name = facts.backend
        if name is None or name in BACKENDS:
            return name
        if self._check and name not in self._without_table:
            self._without_table.add(name)
            finding = _no_table(name, facts.call.group.rank)
            self.ledger.findings.append(finding)
            if self._check == "warn" or (self._check == "raise" and self._execute):  # else the ledger is what is read
                warnings.warn(finding.message, stacklevel=2)
        return None

    def _report(self, findings: tuple[Finding, ...], entry: Entry, *, warn: bool = False) -> None:
        """Note findings; raise or warn as `check` says, and warn always with `warn`."""
        entry.findings += findings
        self.ledger.findings.extend(findings)
        errors = tuple(finding for finding in findings if finding.severity == ERROR)
        if errors and self._check == "raise":
            raise CallError(f"{errors[0].message}\n  at {entry.source}", findings)
        for finding in findings if self._check == "warn" or warn else ():
            warnings.warn(f"{finding.message}\n  at {entry.source}", stacklevel=2)

    def _note(self, findings: tuple[Finding, ...]) -> None:
        """Note findings between ranks that raise no error."""
        self.ledger.findings.extend(findings)
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

    def _stepped(self) -> None:
        self.ledger.steps += 1


def _is_legal(findings: tuple[Finding, ...] | None) -> bool:
    return not any(finding.severity == ERROR for finding in findings or ())


def _storages(values: Iterable[Any]) -> Iterator[int]:
    """Yield what identifies the memory of each strided tensor in `values`, and in their lists."""
    for tensor in leaves(values, torch.Tensor):
        if tensor.layout is torch.strided:
            yield tensor.untyped_storage()._cdata


def _outer_modes(mode: DispatchMode) -> list[DispatchMode]:
    """Return the modes that would see the op if it were passed on."""
    return [
        other for other in _get_current_dispatch_mode_stack() if isinstance(other, DispatchMode) and other is not mode
    ]


def _no_table(backend: str, rank: int) -> Finding:
    known = ", ".join(map(repr, BACKENDS))
    message = (
        f"the limits of {backend!r} are not known: only what every backend needs is checked   [{NO_TABLE}]\n"
        f"There are tables for {known}; backend= names one that takes the same."
    )
    return Finding(NO_TABLE, WARNING, message, (rank,))


def _unwaited(entry: Entry) -> Finding:
    call = entry.facts.call
    message = (
        f"{call.op}: the program never waits on the result, so it may read the result too early   [{UNWAITED}]\n"
        f"    {call.row.notation}\n"
        "Use the result, or call wait_tensor on it, before the block ends."
    )
    return Finding(UNWAITED, WARNING, message, (call.group.rank,), op=call.op)

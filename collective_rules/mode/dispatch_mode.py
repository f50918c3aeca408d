"""The dispatch mode: sees each collective of a block, records and checks it, and sends it or simulates it."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode, _push_mode
from torch.utils._pytree import tree_map

from collective_rules.ledger import Ledger
from collective_rules.mode import kernels
from collective_rules.mode.recorder import CallRecorder
from collective_rules.mode.threads import follow, unfollow


class _Subclasses(dict[type, bool]):
    """Whether a tensor type decomposes its ops itself: the mode then sees the ops into which it decomposes them."""

    def __missing__(self, kind: type) -> bool:
        own = kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__  # type: ignore[attr-defined]
        waits = self[kind] = own and not issubclass(kind, (FakeTensor, FunctionalTensor))
        return waits


class DispatchMode(TorchDispatchMode):
    """Sees each collective of a block: records it, checks it, and sends it or simulates it.

    It tells `recorder` of them, which does so.
    """

    def __init__(self, recorder: CallRecorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._recorder, self.ledger = recorder, recorder.ledger
        self._defers = _Subclasses()
        self._depth = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile compile under the mode, which sees the collectives of compiled code as the code runs."""
        return True

    def __enter__(self) -> Ledger:
        if self._depth:
            self._depth += 1
            return self.ledger
        try:
            self._recorder.start()
            kernels.listen(self._recorder)
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
        self._recorder.leave(error)

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
                kernels.unlisten(self._recorder)
            finally:
                self._recorder.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            if self._defers[kind]:
                if self._depth and kind.__name__ == "LocalTensor":
                    self._see_local(func, args, kwargs or {})
                return NotImplemented
        reader = self._recorder.reader(func)
        # torch.compile takes the modes away while it compiles, but not where DDPOptimizer calls it.
        if reader is None or not self._depth or torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        if not self._recorder.executes and not reader.waits:
            for outer in _outer_modes(self):
                outer._recorder.see(reader, args, kwargs or {})
        return self._recorder.carry_out(reader, func, args, kwargs or {})

    def _see_local(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record and check a collective that LocalTensorMode carries out for all ranks, and does not pass on.

        It is recorded as the group's own rank makes it. A message is not checked: its partner is not that rank's.
        """
        reader = self._recorder.reader(func)
        if reader is not None and not reader.waits:
            args, kwargs = tree_map(_of_one_rank, (args, kwargs))
            self._recorder.see(reader, args, kwargs, check=not reader.row.rule.point_to_point)


def _of_one_rank(value: Any) -> Any:
    """Return what this process, or else the first rank, has of a LocalTensor, or of a size that differs by rank."""
    by_rank = getattr(value, "_local_tensors", None) or getattr(getattr(value, "node", None), "_local_ints", None)
    if not isinstance(by_rank, dict) or not by_rank:
        return value
    return by_rank.get(dist.get_rank(), next(iter(by_rank.values())))


def _outer_modes(mode: DispatchMode) -> list[DispatchMode]:
    """Return the modes that would see the op if it were passed on."""
    return [
        other for other in _get_current_dispatch_mode_stack() if isinstance(other, DispatchMode) and other is not mode
    ]

"""Where in the program a call is made: the source line, the module at work, the phase of training.

Modules are followed by torch's global forward hooks, optimizers by their global step hooks. In the backward pass the
module is the one in whose forward the autograd node at work was made, which the node's sequence number tells.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
import typing_extensions
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

__all__ = ["Places", "source_line"]

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
# What torch and Python put between a caller and an op: decorators, context managers, threads, runpy.
_LIBRARY = (
    _HERE,
    _TORCH,
    os.path.abspath(typing_extensions.__file__),
    *(os.path.abspath(module.__file__ or "") for module in (contextlib, threading)),
    "<frozen",
)
_EXAMPLES = (os.path.join(_TORCH, "testing", "_internal", ""),)
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_MARKS = 1 << 18

_is_library: dict[str, bool] = {}
_names: dict[str, str] = {}


def source_line() -> str:
    """Return the innermost line outside of torch and of this library, as "train.py:88"; "" where there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        library = _is_library.get(file)
        if library is None:
            library = _is_library[file] = file.startswith(_LIBRARY) and not file.startswith(_EXAMPLES)
        if not library:
            return f"{_names.get(file) or _shorten(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _shorten(file: str) -> str:
    here = os.getcwd() + os.sep
    name = _names[file] = file.removeprefix(here)
    return name


class Places:
    """Follows modules and optimizers from `start` to `stop`. `stepped` is called after each optimizer step."""

    def __init__(self, stepped: Callable[[], None]) -> None:
        self._stepped = stepped
        self._local = threading.local()
        self._paths: weakref.WeakKeyDictionary[torch.nn.Module, dict[int, str]] = weakref.WeakKeyDictionary()
        self._handles: list[Any] = []
        self._numbers: list[int] = []
        self._marked: list[str] = []
        self._thread = 0

    def start(self) -> None:
        """Install the hooks."""
        self._thread = threading.get_ident()
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
            register_optimizer_step_pre_hook(self._enter_step),
            register_optimizer_step_post_hook(self._leave_step),
        ]

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def now(self) -> tuple[str, str]:
        """Return the module and the phase."""
        stack = self._stack
        if torch._C._current_graph_task_id() != -1:
            return (stack[-1][1] if stack else self._of_node()), "backward"
        if getattr(self._local, "steps", 0):
            return "", "optimizer"
        return (stack[-1][1], "forward") if stack else ("", "")

    @property
    def _stack(self) -> list[tuple[torch.nn.Module, str]]:
        try:
            return self._local.stack  # type: ignore[no-any-return]  # what the next lines put there
        except AttributeError:
            self._local.stack = []
            return self._local.stack  # type: ignore[no-any-return]  # as above

    def _enter_module(self, module: torch.nn.Module, inputs: Any) -> None:
        stack = self._stack
        path = self._path(stack, module)
        stack.append((module, path))
        self._mark(path)

    def _leave_module(self, module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        stack = self._stack
        if any(known is module for known, _ in stack):  # one that was entered before the hooks is not
            while stack.pop()[0] is not module:
                pass  # an interrupt skipped its hook
            self._mark(stack[-1][1] if stack else "")

    def _path(self, stack: list[tuple[torch.nn.Module, str]], module: torch.nn.Module) -> str:
        root = stack[0][0] if stack else module
        paths = self._paths.get(root)
        if paths is None or id(module) not in paths:
            paths = {id(each): _clean(name) for name, each in root.named_modules()}
            paths[id(root)] = type(root).__name__
            self._paths[root] = paths
        path = paths.get(id(module))
        return f"{stack[-1][1]}.{type(module).__name__}" if path is None else path or stack[-1][1]

    def _mark(self, path: str) -> None:
        """Note that autograd nodes made from now on belong to `path`."""
        if threading.get_ident() != self._thread or not torch.is_grad_enabled():
            return
        if torch._C._current_graph_task_id() != -1:
            return  # recomputed in the backward pass, where the stack tells
        number = torch._C._autograd._get_sequence_nr()
        if self._numbers and self._numbers[-1] >= number:
            self._marked[-1] = path
            return
        if len(self._numbers) >= _MARKS:
            del self._numbers[: _MARKS // 2], self._marked[: _MARKS // 2]
        self._numbers.append(number)
        self._marked.append(path)

    def _of_node(self) -> str:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return ""
        place = bisect.bisect_right(self._numbers, node._sequence_nr()) - 1
        # AccumulateGrad has the largest number there is, and belongs to no module's forward.
        return self._marked[place] if place >= 0 and "AccumulateGrad" not in node.name() else ""

    def _enter_step(self, *_: Any) -> None:
        self._local.steps = getattr(self._local, "steps", 0) + 1

    def _leave_step(self, *_: Any) -> None:
        self._local.steps = getattr(self._local, "steps", 1) - 1
        if self._local.steps == 0:
            self._stepped()


def _clean(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)

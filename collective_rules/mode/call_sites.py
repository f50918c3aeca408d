"""Where in the program a call is made: the source line, the module at work, the phase of training.

torch's global forward hooks follow modules, its global step hooks follow optimizers. In the backward pass the module is
the one whose forward made the autograd node at work; the node's sequence number tells the module.
"""

from __future__ import annotations

import bisect
import contextlib
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import typing_extensions
from torch.fx import GraphModule
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_PYTHON = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_LIBRARY = (_HERE, _TORCH, os.path.abspath(typing_extensions.__file__), "<frozen")
_EXAMPLES = (os.path.join(_TORCH, "testing", "_internal", ""),)
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_MARKS = 1 << 18
_OUTSIDE, _OPTIMIZER = ("", ""), ("", "optimizer")
_graph_task = torch._C._current_graph_task_id

# These functions wait for the sends and receives that they dispatch; others return a Work.
_WAITING = tuple(
    inspect.unwrap(function).__code__
    for function in (dist.send, dist.recv, dist.send_object_list, dist.recv_object_list)
)


_C10D = inspect.unwrap(dist.all_reduce).__code__.co_filename
_BETWEEN = (
    _HERE,
    *(os.path.join(_TORCH, *name.split("/")) for name in ("_compile.py", "_dynamo/", "_ops.py", "utils/")),
)
"""Files of the frames between the function that makes a call and this library."""


_BY_FUNCTION_MODE = torch.overrides.handle_torch_function.__code__
_AROUND = frozenset({_C10D, dist.all_reduce.__code__.co_filename, contextlib.__file__})
"""Files of the frames of a function of torch.distributed, with what decorates it."""


class _Lines(dict[str, dict[int, str] | None]):
    """File → line number → text ("train.py:88") of the lines that were met; None for a file of a library."""

    def __missing__(self, file: str) -> dict[int, str] | None:
        standard = file.startswith(_PYTHON) and not any(folder in file for folder in _INSTALLED)
        library = standard or file.startswith(_LIBRARY)
        lines = self[file] = None if library and not file.startswith(_EXAMPLES) else {}
        return lines


_lines = _Lines()


def is_program(file: str) -> bool:
    """Return whether code of `file` is the program's own: neither torch's, nor this library's, nor Python's."""
    return _lines[file] is not None


def source_line(above: int = 1) -> str:
    """Return the innermost line outside of torch and of this library, as "train.py:88"; "" where there is none.

    The search skips the innermost `above` frames.
    """
    frame: Any = sys._getframe(above)
    while frame is not None:
        code = frame.f_code
        lines = _lines[code.co_filename]
        if lines is not None:
            number = frame.f_lineno
            if number not in lines:
                lines[number] = place_text(code.co_filename, number)
            return lines[number]
        frame = frame.f_back
    return ""


def place_text(file: str, number: int) -> str:
    """Return "train.py:88", with the file relative to the current directory."""
    try:
        here = os.getcwd() + os.sep
    except FileNotFoundError:
        here = ""
    # A path need not be UTF-8: what stands for its bytes in a str cannot be written down.
    return f"{file.removeprefix(here)}:{number}".encode(errors="backslashreplace").decode()


def is_waited_for() -> bool:
    """Return whether the function of torch.distributed at work waits for its calls, as send does and isend does not."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if _lines[code.co_filename] is not None:
            return False
        if any(code is waiting for waiting in _WAITING):
            return True
        frame = frame.f_back
    return False


def is_given_to_program() -> bool:
    """Return whether the program gets the Work of the call that this library is told of.

    It does where it calls a function of torch.distributed, in Python. Other parts of torch keep a Work, pass it on to
    C++, or drop it, as DDP does for uneven inputs; and a call from C++ comes from whatever Python runs C++.
    """
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename != _C10D:
        return False
    above = frame
    while above is not None:
        if above.f_code is _BY_FUNCTION_MODE and above.f_back.f_code.co_filename == _C10D:
            frame = above.f_back  # called once more by a mode, `torch.device` for one, which knows not who called first
        above = above.f_back
    while frame is not None and frame.f_code.co_filename in _AROUND:
        frame = frame.f_back
    return frame is not None and is_program(frame.f_code.co_filename)


class _Local(threading.local):
    """Of each thread: the modules whose forward runs, with their paths, and the number of steps that run."""

    def __init__(self) -> None:
        self.stack: list[tuple[torch.nn.Module, str]] = []
        self.steps = 0


class CallSites:
    """Follows modules and optimizers from `start` to `stop`. `stepped` is called after each optimizer step.

    `modules`: whether it follows modules; else it knows neither them nor the forward pass.
    """

    def __init__(self, stepped: Callable[[], None], *, modules: bool = True) -> None:
        self._stepped, self._modules = stepped, modules
        self._local = _Local()
        self._paths: weakref.WeakKeyDictionary[torch.nn.Module, dict[int, str]] = weakref.WeakKeyDictionary()
        self._handles: list[Any] = []
        self._numbers: list[int] = []
        self._marked: list[str] = []
        self._thread = 0

    def start(self) -> None:
        """Install the hooks."""
        self._thread = threading.get_ident()
        # One by one: after an interrupt in between, `stop` has to know the hooks that are there.
        add = self._handles.append
        if self._modules:
            add(register_module_forward_pre_hook(self._enter_module))
            add(register_module_forward_hook(self._leave_module, always_call=True))
        add(register_optimizer_step_pre_hook(self._enter_step))
        add(register_optimizer_step_post_hook(self._leave_step))

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def now(self) -> tuple[str, str]:
        """Return the module and the phase."""
        local = self._local
        stack = local.stack
        if _graph_task() != -1:
            return (stack[-1][1] if stack else self._of_node()), "backward"
        if local.steps:
            return _OPTIMIZER
        return (stack[-1][1], "forward") if stack else _OUTSIDE

    def _enter_module(self, module: torch.nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return  # dynamo would trace the hook, and with it the modules of the stack
        stack = self._local.stack
        path = self._path(stack, module)
        stack.append((module, path))
        self._mark(path)

    def _leave_module(self, module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        stack = self._local.stack
        if any(entered is module for entered, _ in stack):  # a module that was entered before the hooks is not
            while stack.pop()[0] is not module:
                pass  # an interrupt skipped its hook
            self._mark(stack[-1][1] if stack else "")

    def _path(self, stack: list[tuple[torch.nn.Module, str]], module: torch.nn.Module) -> str:
        root = stack[0][0] if stack else module
        paths = self._paths.get(root)
        if paths is None or id(module) not in paths:
            paths = {id(each): _clean(name) for name, each in root.named_modules()}
            paths[id(root)] = type(root._orig_mod if _is_compiled(root) else root).__name__
            self._paths[root] = paths
        path = paths.get(id(module))
        if path is not None:
            return path or stack[-1][1]
        # torch.compile calls the graph modules that it makes in place of the modules that it compiled.
        return stack[-1][1] if isinstance(module, GraphModule) else f"{stack[-1][1]}.{type(module).__name__}"

    def _mark(self, path: str) -> None:
        """Note that autograd nodes made from now on belong to `path`."""
        if threading.get_ident() != self._thread or not torch.is_grad_enabled():
            return
        if _graph_task() != -1:
            return  # recomputed in the backward pass: there the stack tells the module
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
        # AccumulateGrad has the largest number of all, and belongs to no module's forward.
        return self._marked[place] if place >= 0 and "AccumulateGrad" not in node.name() else ""

    def _enter_step(self, *_: Any) -> None:
        self._local.steps += 1

    def _leave_step(self, *_: Any) -> None:
        self._local.steps = max(0, self._local.steps - 1)
        if self._local.steps == 0:
            self._stepped()


def _is_compiled(module: torch.nn.Module) -> bool:
    """Return whether `torch.compile(module)` returned this module."""
    return "_orig_mod" in module._modules


def _clean(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)

"""Python in a process of its own, alone or on the ranks of torchrun: how it ends, and what it puts out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "run_python", "torchrun"]

ROOT = Path(__file__).resolve().parents[1]


def run_python(
    *arguments: str, within: float = 120.0, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python on one thread, without its warnings, and wait for its end."""
    command = [sys.executable, "-W", "ignore", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=within, check=False)


def torchrun(size: int, *arguments: str) -> tuple[str, ...]:
    """Return the arguments of Python that run a program on `size` ranks."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *arguments)

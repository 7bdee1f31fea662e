"""Measurements in a process of their own, so that seconds and peak memory are theirs alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qubo_compress as qc

MEBIBYTE = 1 << 20
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def in_new_process(call: Callable[..., Any], *given: Any, threads: int) -> Any:
    """The answer of a call that is made in a new process with a number of threads; raises what the call raises."""
    os.environ |= {name: str(threads) for name in THREAD_VARIABLES}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.submit(call, *given).result()


def warm_up() -> None:
    """Load what is compiled, or compile it where nobody has yet, so that it counts in no method's seconds."""
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 32, generator=generator), torch.randint(8, (16,), generator=generator))]
    budget = qc.Budget(ratio=3)
    table = qc.compress(model, batches, budget, solver="exact", progress=False).table
    for solver in ("auto", "annealer", "greedy", "uniform"):
        qc.solve(table.problem(budget), solver, time_limit=1.0)


def reset_peak_memory() -> None:
    """Let the peak of this process's memory start at what it holds now; does nothing where Linux does not allow it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """The most memory this process held since the last reset, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024

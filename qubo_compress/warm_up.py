"""Compile every kernel once, so that nobody waits for it later: ``python -m qubo_compress.warm_up``.

Numba caches compiled code next to the package or, if that folder is read-only, in the user's cache folder. After an
update of the package the kernels are compiled again.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from qubo_compress._internal import compiling
from qubo_compress.budget import Budget
from qubo_compress.menu.coding.kernels import contexts_of_place
from qubo_compress.menu.coding.layout import CodeLayout
from qubo_compress.menu.coding.trellis.search import Quantizers, nearest
from qubo_compress.menu.menu import Menu
from qubo_compress.pipeline.compress import compress
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers import greedy, solve
from qubo_compress.solvers import random as random_search
from qubo_compress.solvers.annealer import annealer
from qubo_compress.solvers.exact import exact
from qubo_compress.solvers.opponents import genetic_operators, spdy

WORK = 4
SECONDS = 600.0  # never reached: the work limits end first


def warm_up() -> float:
    """Compile, or read from the cache, what solving and compressing need; returns the seconds it took."""
    start = time.perf_counter()
    with compiling.announced():
        for part in (annealer, exact, greedy, random_search, genetic_operators, spdy):
            part.warm_up()
        for kind in ("separable", "sparse", "dense", "low-rank"):
            problem = random_problem(kind, groups=4, choices=3, seed=0)
            solve(problem, "auto", time_limit=SECONDS, work_limit=WORK)
        _compress_a_small_network()
    return time.perf_counter() - start


def _compress_a_small_network() -> None:
    """Encode, price and pack every kind of choice on the default menu and on the fullest one."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        ).eval()
    batches = [(torch.randn(16, 2, 5, 5, generator=generator), torch.arange(16) % 3)]
    for menu in (None, Menu.of("quantize", "prune", "compensate", "trellis", coded=True)):
        compress(model, batches, Budget(ratio=2), menu=menu, solver="greedy", progress=False)
    # Reading codes back: such a small network may pick no choice that needs it.
    nothing = np.zeros(1, dtype=np.int64)
    contexts_of_place(nothing, nothing, 0, 0, 0, 0, 1, 1.0)
    # Fine-tuning on a trellis.
    quantizers = Quantizers(CodeLayout(1, 1, states=8), 1.0, 1)
    nearest(np.zeros((1, 1)), quantizers, quantizers.free())


if __name__ == "__main__":
    print(f"kernels are compiled ({warm_up():.0f} s)")

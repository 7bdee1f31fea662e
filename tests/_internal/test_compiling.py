"""Compiling is done before a search begins, and said when it takes more than a moment."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

from qubo_compress._internal import compiling

_SEARCH_COMPILES_NOTHING = """
import qubo_compress.solvers  # noqa: F401
from qubo_compress import ChoiceProblem, solve
from qubo_compress._internal.compiling import KERNELS
from qubo_compress.solvers import greedy
from qubo_compress.solvers.annealer import annealer
from qubo_compress.solvers.exact import exact

def compiled():
    return {(kernel.py_func.__module__, kernel.py_func.__name__, len(kernel.signatures)) for kernel in KERNELS}

late = set()
for kind, structure in (("separable", "separable"), ("low-rank", "factor"), ("sparse", "pairs"), ("dense", "pairs")):
    for budgets in (0, 1, 2):
        for part in (annealer, greedy):
            part.warm_up(structure)
        exact.warm_up_for(ChoiceProblem.random(kind, groups=3, choices=2, budgets=budgets))
        before = compiled()
        for groups, choices in ((4, 3), (14, 6), (40, 4)):
            problem = ChoiceProblem.random(kind, groups=groups, choices=choices, seed=1, budgets=budgets)
            for solver in ("annealer", "exact", "greedy", "auto"):
                solve(problem, solver, time_limit=0.5, work_limit=20)
        late |= compiled() - before
print(sorted(late))
"""


def test_a_search_compiles_nothing():
    run = subprocess.run([sys.executable, "-c", _SEARCH_COMPILES_NOTHING], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_a_long_wait_is_announced_once(caplog, monkeypatch):
    monkeypatch.setattr(compiling, "_ANNOUNCED_AFTER", 0.0)
    compiling._announce.cache_clear()
    said = threading.Event()
    monkeypatch.setattr(compiling._logger, "warning", lambda message: said.set() or caplog.messages.append(message))
    with compiling.announced():
        assert said.wait(60.0)


def test_a_short_wait_is_not(caplog, monkeypatch):
    monkeypatch.setattr(compiling, "_ANNOUNCED_AFTER", 3600.0)
    with caplog.at_level(logging.WARNING), compiling.announced():
        pass
    assert not caplog.records

"""Threads are counted by the affinity: a process that is confined to one processor starts one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qubo_compress._internal import processors

ROOT = Path(__file__).parents[2]

CONFINED = """
import concurrent.futures, json, os
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.cpu_count = lambda: 64
pools, made = [], concurrent.futures.ThreadPoolExecutor.__init__
def noted(self, max_workers=None, *arguments, **named):
    pools.append(max_workers)
    made(self, max_workers, *arguments, **named)
concurrent.futures.ThreadPoolExecutor.__init__ = noted
from qubo_compress import ChoiceProblem, solve
problem = ChoiceProblem.random(kind="low-rank", groups=12, choices=4, seed=0)
used = {}
for name in ("annealer", "exact"):
    pools.clear()
    solve(problem, name, time_limit=60.0, work_limit=40)
    used[name] = max(pools)
print(json.dumps(used))
"""


def test_all_processors_of_the_affinity_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 6}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert processors.usable_processors() == 3


@pytest.mark.parametrize(("counted", "expected"), [(5, 5), (None, 1)])
def test_where_no_affinity_is_known_all_are_counted(monkeypatch, counted, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert processors.usable_processors() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_solvers_start_no_more_threads_than_they_may_use():
    command = [sys.executable, "-c", CONFINED]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == {"annealer": 1, "exact": 1}

"""The public benchmark: contenders in separate processes, and tables of their records."""

from __future__ import annotations

import math
import os

import pytest

from benchmarks.solvers import contest, public_tables, worker
from benchmarks.solvers.contenders import CONTENDERS
from benchmarks.solvers.published.colouring import colouring_problem
from qubo_compress.problem.generators import random_problem


def record(contender, instance="nug12", energy=578.0, **others):
    return {
        "contender": contender, "instance": instance, "seconds": 3.0, "seed": 0, "energy": energy, "bound": 500.0,
        "proven": False, "taken": 2.0, "cpu_seconds": 1.0, "trace": [[0.2, 600.0], [0.5, energy]], "started": 4.0,
    } | others  # fmt: skip


def failed(contender, error, **others):
    return {"contender": contender, "instance": "nug12", "seconds": 3.0, "seed": 0, "error": error} | others


def test_the_page_says_who_finds_who_proves_and_who_loses():
    page = public_tables.report([
        record("annealer", energy=580.0), record("cfn", bound=578.0, proven=True),
        failed("gurobi", "ProblemTooLarge: 200", taken=0.0, started=1.0),
        failed("highs", "killed after 5.6 s", taken=5.6, started=1.0),
    ])  # fmt: skip
    assert "**Where `annealer` misses it:** nug12 (0.346 %; ahead: `cfn`)" in page
    assert "**Who proves it:** `cfn` 1 of 1" in page
    assert "| nug12 | 0.346 % | **0** | killed | too large |" in page
    assert "13.5 %" in page and "**proven**, 2 s" in page


def test_seconds_to_the_best_value_come_from_the_trace_or_are_the_whole_search():
    best = {"nug12": 578.0}
    assert public_tables.seconds_to_best(record("cfn"), best) == 0.5
    assert public_tables.seconds_to_best(record("scip", trace=[]), best) == 2.0
    assert math.isinf(public_tables.seconds_to_best(record("cfn", energy=579.0), best))


def test_a_refuted_optimum_or_a_false_bound_stops_the_page():
    with pytest.raises(ValueError, match="below the stated optimum"):
        public_tables.best_values([record("cfn", energy=577.0)])
    with pytest.raises(ValueError, match="claims a bound"):
        public_tables.best_values([record("cfn"), record("scip", bound=579.0)])


def test_bounds_of_whole_energies_are_rounded_up_for_everybody(monkeypatch):
    monkeypatch.setitem(CONTENDERS, "greedy", lambda: "greedy")
    found = worker.solved(colouring_problem("myciel3", 4), "greedy", 1.0, 0)
    assert found["bound"] is None or found["bound"] == int(found["bound"])
    assert worker.whole(colouring_problem("myciel3", 4))
    assert not worker.whole(random_problem("dense", groups=4, choices=3, seed=0))
    assert found["cpu_seconds"] >= 0.0 and found["taken"] >= 0.0


def test_a_contender_works_in_a_process_of_its_own_and_is_killed_when_late(monkeypatch):
    with contest.Contest(max(os.sched_getaffinity(0))) as running:
        name = "gurobi"
        if public := running.solve(name, "queen7_7, 7 colours", 5.0, 0):
            assert "ProblemTooLarge" in public["error"] or "gurobipy" in public["error"]
        monkeypatch.setattr(contest, "LATE_SECONDS", -5.0)
        late = running.solve("highs", "knapsack 100, 50 %", 1.0, 0)  # is installed, so it works until it is killed
        assert late["error"].startswith("killed")
        assert "highs" not in running._processes

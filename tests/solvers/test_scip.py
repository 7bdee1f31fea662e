"""SCIP agrees with exact: another solver on another formulation."""

from __future__ import annotations

import numpy as np
import pytest

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import ProblemTooLarge
from qubo_compress.solvers import Search, SearchLimits
from qubo_compress.solvers.scip import Scip

pyscipopt = pytest.importorskip("pyscipopt")


@pytest.mark.parametrize(
    "kind, budgets", [("low-rank", 1), ("low-rank", 2), ("sparse", 1), ("dense", 1), ("separable", 2)]
)
def test_agrees_with_exact(kind, budgets):
    rank = 6 if kind == "low-rank" else None
    problem = ChoiceProblem.random(kind=kind, groups=6, choices=4, seed=1, budgets=budgets, rank=rank)
    exact = solve(problem, "exact", time_limit=30.0)
    scip = solve(problem, "scip", time_limit=30.0)
    assert exact.status == "optimal"
    assert scip.energy == pytest.approx(exact.energy, rel=1e-5, abs=1e-9)
    assert scip.bound <= exact.energy + 1e-9 * max(1.0, abs(exact.energy))
    assert scip.gap < 1e-4


def test_a_problem_too_large_is_refused_before_a_model_is_built(monkeypatch):
    monkeypatch.setattr(pyscipopt, "Model", lambda *_, **__: pytest.fail("a model was made"))
    problem = ChoiceProblem.random(kind="low-rank", groups=300, choices=16, seed=0, rank=512)
    with pytest.raises(ProblemTooLarge, match="2,457,600"):
        solve(problem, "scip", time_limit=60.0)


def test_ctrl_c_gives_the_best_so_far(ctrl_c):
    problem = ChoiceProblem.random(kind="low-rank", groups=26, choices=10, seed=0, rank=40)
    ctrl_c(3.0)  # far from a proof on any machine
    solution = solve(problem, "scip", time_limit=3600.0)
    assert solution.interrupted and problem.is_feasible(solution.assignment)


def test_the_same_nodes_give_the_same_answer():
    problem = ChoiceProblem.random(kind="low-rank", groups=10, choices=8, seed=2)
    first, second = (solve(problem, "scip", time_limit=1e6, work_limit=30) for _ in range(2))
    assert (first.assignment == second.assignment).all()
    assert first.work == second.work and 1 < first.work <= 30
    assert first.details["repeats"]


def test_a_search_that_the_clock_ended_does_not_claim_to_repeat(clock):
    problem = ChoiceProblem.random(kind="low-rank", groups=40, choices=10, seed=0, rank=40)
    with clock(1e-9):  # SCIP has a clock of its own; building the model takes no time of ours
        search = Search(problem, SearchLimits(0.5), np.random.default_rng(0))
        search.run(Scip())
    assert search.details["repeats"] is False

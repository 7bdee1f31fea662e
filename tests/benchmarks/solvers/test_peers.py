"""Exact solvers of others: their answers fit, and their bounds hold, on problems small enough to enumerate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from benchmarks.solvers.contenders import CONTENDERS, missing
from benchmarks.solvers.peers.gurobi import MOST_QUADRATIC
from benchmarks.solvers.peers.linearised import linearised
from benchmarks.solvers.published.colouring import colouring_problem
from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound, ProblemTooLarge, UnsupportedProblem
from qubo_compress.problem.generators import random_problem
from qubo_compress.testing.solvers import brute_force, rescaled

PEERS = ("cp-sat", "highs", "gurobi")


def peer(name):
    for package in missing(name):
        pytest.importorskip(package)  # gurobipy is no part of dev
    return CONTENDERS[name]()


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(
    ("kind", "budgets", "scale"), [("separable", 1, 1.0), ("sparse", 2, 1e-7), ("dense", 1, 1e6), ("dense", 0, 1.0)]
)
def test_peers_prove_small_problems_at_every_scale(name, kind, budgets, scale):
    problem = rescaled(random_problem(kind, groups=5, choices=4, seed=5, budgets=budgets), scale)
    least, _ = brute_force(problem)
    solution = solve(problem, peer(name), time_limit=60.0)
    assert problem.is_feasible(solution.assignment)
    assert solution.energy == pytest.approx(least, rel=1e-5)
    assert solution.bound <= least + 1e-9 * abs(least)
    assert solution.status == "optimal"


@pytest.mark.parametrize("name", PEERS)
def test_peers_claim_nothing_false_without_time(name):
    problem = random_problem("dense", groups=6, choices=4, seed=1, budgets=1)
    least, _ = brute_force(problem)
    try:
        solution = solve(problem, peer(name), time_limit=1e-3)
    except NoFeasibleFound:
        return
    assert solution.energy >= least - 1e-9
    assert solution.bound is None or solution.bound <= least + 1e-9 * abs(least)


@pytest.mark.parametrize("name", PEERS)
def test_peers_prove_that_nothing_fits(name):
    """Even costs, an odd total: each budget alone could be met."""
    costs = np.array([[2, 4, 2, 4], [-2, -4, -2, -4]]) + np.array([[0], [6]])
    problem = ChoiceProblem(linear=np.zeros(4), group_offsets=[0, 2, 4], costs=costs, limits=[5, 12 - 5])
    with pytest.raises(InfeasibleBudget, match="proven"):
        solve(problem, peer(name), time_limit=30.0)


@pytest.mark.parametrize("table", [[[0, 3, 3, 7]] * 8, np.arange(32).reshape(8, 4)])
def test_both_ways_of_writing_a_table_mean_the_same(table):
    """Few costs become one variable each, many become one for each pair of choices."""
    values = np.array(table, dtype=float).reshape(8, -1)
    values = np.hstack([values, values[:, ::-1]])
    rows, columns = values.shape
    pairs = np.zeros((rows + columns, rows + columns))
    pairs[:rows, rows:] = values
    problem = ChoiceProblem(
        linear=np.linspace(0.0, -6.0, rows + columns), group_offsets=[0, rows, rows + columns],
        costs=np.zeros((0, rows + columns), dtype=int), limits=[], pairs=sparse.csr_array(pairs + pairs.T),
    )  # fmt: skip
    programme = linearised(problem, np.inf)
    assert bool(programme.clauses) == (np.unique(values).size <= 3)
    least, _ = brute_force(problem)
    for name in ("cp-sat", "highs"):
        assert solve(problem, peer(name), time_limit=30.0).energy == pytest.approx(least)


def test_gurobi_refuses_what_its_licence_does_not_allow():
    solver = peer("gurobi")
    with pytest.raises(ProblemTooLarge, match=f"{MOST_QUADRATIC} choices"):
        solve(colouring_problem("queen7_7", 7), solver)
    with pytest.raises(UnsupportedProblem, match="factor"):
        solve(random_problem("low-rank", groups=5, choices=4, seed=0), solver)

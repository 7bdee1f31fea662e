"""cfn proves what it is for, and says what it cannot do."""

from __future__ import annotations

import pytest

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InfeasibleBudget, MissingDependency, ProblemTooLarge
from qubo_compress.solvers import cfn

pytest.importorskip("pytoulbar2")


@pytest.mark.parametrize("kind, budgets", [("dense", 1), ("dense", 2), ("sparse", 2), ("low-rank", 1)])
def test_agrees_with_exact(kind, budgets):
    rank = 6 if kind == "low-rank" else None
    problem = ChoiceProblem.random(kind=kind, groups=6, choices=4, seed=1, budgets=budgets, rank=rank)
    found, truth = solve(problem, "cfn", time_limit=60.0), solve(problem, "exact", time_limit=60.0)
    assert found.status == truth.status == "optimal"
    assert found.energy == pytest.approx(truth.energy, rel=1e-6)


def test_dense_pairs_are_proven_with_and_without_a_local_search():
    problem = ChoiceProblem.random(kind="dense", groups=14, choices=10, seed=0)
    helped = solve(problem, "cfn", time_limit=60.0)
    alone = solve(problem, "cfn", time_limit=60.0, local_search=False)
    given = solve(problem, "cfn", time_limit=60.0, local_search=False, first=tuple(alone.assignment.tolist()))
    assert helped.status == alone.status == given.status == "optimal"
    assert helped.assignment.tolist() == alone.assignment.tolist() == given.assignment.tolist()
    assert helped.work < alone.work


def test_an_optimum_of_zero_is_proven():
    problem = ChoiceProblem.random(kind="low-rank", groups=8, choices=4, seed=0)
    everything = problem.with_limits(problem.totals([0] * 8))
    solution = solve(everything, "cfn", time_limit=60.0)
    assert solution.energy == 0.0 and solution.status == "optimal"


def test_an_infeasible_problem_is_proven_to_be_so():
    problem = ChoiceProblem([0.0] * 4, [0, 2, 4], [[4, 1, 4, 1], [1, 4, 1, 4]], [4, 4])
    with pytest.raises(InfeasibleBudget):
        solve(problem, "cfn", time_limit=60.0, local_search=False)


def test_a_problem_too_large_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr(cfn, "prove_by_network", lambda *_, **__: pytest.fail("it was built"))
    problem = ChoiceProblem.random(kind="low-rank", groups=300, choices=16, seed=0)
    with pytest.raises(ProblemTooLarge, match="11,481,600"):
        solve(problem, "cfn", time_limit=60.0)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(cfn, "toulbar2_is_installed", lambda: False)
    monkeypatch.setitem(__import__("sys").modules, "pytoulbar2", None)
    with pytest.raises(MissingDependency, match=r"qubo_compress\[cfn\]"):
        solve(ChoiceProblem.random(kind="dense", groups=3, choices=2, seed=0), "cfn")


def test_it_says_that_it_uses_one_core():
    assert cfn.Cfn().threads == 1

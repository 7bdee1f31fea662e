"""Every solver that takes pair costs keeps to the true budgets and claims nothing false; the others refuse them."""

from __future__ import annotations

import numpy as np
import pytest

import qubo_compress as qc
from qubo_compress import ChoiceProblem
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound, UnsupportedProblem
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.exact.bounds import lower_bound
from qubo_compress.solvers.solver import make_solver
from qubo_compress.testing import brute_force

ABLE = [name for name in qc.solvers.names() if make_solver(name).accepts_pair_costs and not make_solver(name).remote]
KINDS = ("channels", "dense", "low-rank", "sparse", "separable")


def paired(kind: str, seed: int, tight: float = 0.45) -> ChoiceProblem:
    share = 0.0 if kind == "channels" else 0.8
    return random_problem(kind, 5, 3, seed, budgets=1 + seed % 2, pair_costs=share, budget_fraction=tight)


def test_those_of_the_issue_can() -> None:
    assert {"annealer", "auto", "greedy", "random", "uniform", "decomposition", "simulated-annealing"} <= set(ABLE)


@pytest.mark.parametrize("name", ABLE)
def test_budgets_are_kept_and_claims_hold(name: str) -> None:
    for number, kind in enumerate(KINDS):
        problem = paired(kind, number, (0.45, 0.12)[number % 2])
        truth = brute_force(problem)
        try:
            solution = qc.solve(problem, name, time_limit=10.0, work_limit=30, seed=number)
        except NoFeasibleFound:
            continue
        except InfeasibleBudget:
            assert truth is None, f"{name} calls {kind} infeasible"
            continue
        assert truth is not None and problem.is_feasible(solution.assignment)
        assert solution.energy == pytest.approx(problem.energy(solution.assignment), rel=1e-12)
        assert solution.bound is None or solution.bound <= truth[0] + 1e-9 * max(1.0, abs(truth[0]))
        assert solution.status != "optimal" or solution.energy <= truth[0] + 1e-6 * max(1.0, abs(truth[0]))
        assert not [note for note in solution.notes if "dropped" in note or "claimed" in note]


@pytest.mark.parametrize("name", sorted(set(qc.solvers.names()) - set(ABLE)))
def test_the_others_refuse_at_once(name: str) -> None:
    if make_solver(name).accepts_pair_costs:
        return  # in the cloud
    with pytest.raises(UnsupportedProblem, match="cannot take pair costs.*annealer"):
        qc.solve(paired("sparse", 0), name, time_limit=1.0)


def test_a_decomposition_refuses_what_its_inner_solver_refuses() -> None:
    with pytest.raises(UnsupportedProblem, match="'spdy' cannot take pair costs"):
        qc.solve(paired("sparse", 0), "decomposition", inner="spdy")
    with pytest.raises(UnsupportedProblem, match="'spdy' cannot take pair costs"):
        qc.solve(paired("sparse", 0), "auto", heuristic="spdy")


def test_auto_proves_small_problems_and_tries_modest_ones() -> None:
    small = qc.solve(paired("channels", 0), "auto", time_limit=30.0)
    assert small.status == "optimal" and small.notes[0].startswith("auto chose exact: budgets with pair costs")
    modest = random_problem("channels", 12, 4, 1)
    solution = qc.solve(modest, "auto", time_limit=12.0, threads=1)
    assert solution.notes[0].startswith("auto chose annealer, then exact: budgets with pair costs, 12 groups")
    assert modest.is_feasible(solution.assignment) and solution.bound is not None


def test_bounds_hold_with_pair_costs() -> None:
    for kind in KINDS:
        for seed in range(3):
            problem = paired(kind, seed)
            truth = brute_force(problem)
            bound = lower_bound(problem, 0.2)
            assert truth is None or bound is None or bound <= truth[0] + 1e-9


def test_pair_costs_of_hundreds_of_groups_are_kept() -> None:
    problem = random_problem("channels", 300, 4, 0, neighbours=5)
    answers = {
        name: qc.solve(problem, name, time_limit=60.0, work_limit=40) for name in ("annealer", "greedy", "uniform")
    }
    assert all(problem.is_feasible(solution.assignment) for solution in answers.values())
    assert answers["annealer"].energy < answers["greedy"].energy < answers["uniform"].energy
    assert (np.asarray(answers["annealer"].assignment) == 3).sum() > 0  # it removes channels

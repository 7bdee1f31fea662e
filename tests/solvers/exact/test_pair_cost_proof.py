"""Proofs under budgets with pair costs: enumeration, the linearised program, infeasibility, and bounds alone."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.exact import pair_cost_proof
from qubo_compress.solvers.exact.infeasibility import proves_infeasible
from qubo_compress.solvers.exact.integer_programming import solve_milp
from qubo_compress.solvers.exact.pair_cost_proof import totals_of
from qubo_compress.testing import brute_force

KINDS = ("channels", "dense", "low-rank", "sparse", "separable")


def paired(kind: str, seed: int, groups: int = 5, fraction: float = 0.45) -> ChoiceProblem:
    share = 0.0 if kind == "channels" else 0.8
    return random_problem(kind, groups, 3, seed, budgets=1 + seed % 2, pair_costs=share, budget_fraction=fraction)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), fraction=st.sampled_from([0.08, 0.2, 0.45]))
def test_enumeration_proves_the_optimum_or_that_there_is_none(kind: str, seed: int, fraction: float) -> None:
    problem = paired(kind, seed, fraction=fraction)
    truth = brute_force(problem)
    try:
        solution = solve(problem, "exact", time_limit=60.0)
    except InfeasibleBudget:
        assert truth is None
        return
    assert truth is not None and solution.status == "optimal" and solution.notes == ("method: enumeration",)
    assert solution.energy == pytest.approx(truth[0], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_programme_proves_the_optimum(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_cost_proof, "FEW_COMBINATIONS", 1)
    for seed in range(2):
        problem = paired(kind, seed)
        truth = brute_force(problem)
        assert truth is not None
        solution = solve(problem, "exact", time_limit=60.0)
        assert solution.status == "optimal" and "with pair costs" in solution.notes[0]
        assert solution.energy == pytest.approx(truth[0], abs=1e-7)
        assert solution.bound is not None and solution.bound <= truth[0] + 1e-9


def test_the_programme_alone_keeps_to_the_budgets() -> None:
    for seed in range(3):
        problem = random_problem("channels", 8, 3, seed, budgets=2)
        answer = solve_milp(problem, time.perf_counter() + 60.0)
        assert answer.assignment is not None and problem.is_feasible(answer.assignment)
        assert 0.0 <= problem.energy(answer.assignment) - answer.bound < 1e-4


@pytest.mark.parametrize("kind", ["channels", "low-rank"])
def test_with_a_work_limit_the_bound_holds_and_the_answer_repeats(kind: str) -> None:
    problem = paired(kind, 1, groups=16)
    first, again = (solve(problem, "exact", time_limit=2.0, work_limit=50) for _ in range(2))
    assert (first.assignment == again.assignment).all() and problem.is_feasible(first.assignment)
    best = solve(problem, "annealer", time_limit=60.0, work_limit=400).energy
    assert first.bound is None or first.bound <= best + 1e-9


def excluded() -> ChoiceProblem:
    """Two of three groups must take their second choice, and any two of them cost too much together."""
    matrix = np.zeros((6, 6), dtype=np.int64)
    for v, w in ((1, 3), (1, 5), (3, 5)):
        matrix[v, w] = matrix[w, v] = 6
    return ChoiceProblem(
        linear=[0.0] * 6, group_offsets=[0, 2, 4, 6], costs=[[4, 0] * 3, [1, 0] * 3], limits=[10, 1],
        pair_costs=[sparse.csr_array(matrix), None],
    )  # fmt: skip


def test_products_of_choices_prove_that_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = excluded().with_limits([9, 1])
    assert brute_force(problem) is None
    assert not proves_infeasible(problem.without_pair_costs(), time.perf_counter() + 3600.0)
    assert proves_infeasible(problem, time.perf_counter() + 3600.0)
    assert not proves_infeasible(problem, time.perf_counter() + 3600.0, integers=False)
    with pytest.raises(InfeasibleBudget):
        solve(problem, "greedy", time_limit=60.0)
    monkeypatch.setattr(pair_cost_proof, "FEW_COMBINATIONS", 1)
    with pytest.raises(InfeasibleBudget):
        solve(problem, "exact", time_limit=60.0)
    assert solve(excluded(), "exact", time_limit=30.0).status == "optimal"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), room=st.integers(0, 12))
def test_nothing_that_fits_is_called_infeasible(seed: int, room: int) -> None:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.integers(-4, 5, size=(8, 8)), 1)
    for group in range(0, 8, 2):
        upper[group, group + 1] = 0
    problem = ChoiceProblem(
        linear=[0.0] * 8, group_offsets=[0, 2, 4, 6, 8], costs=rng.integers(0, 5, size=(2, 8)), limits=[room, room],
        pair_costs=[sparse.csr_array(upper + upper.T), None],
    )  # fmt: skip
    if brute_force(problem) is not None:
        assert not proves_infeasible(problem, time.perf_counter() + 3600.0, integers=seed % 3 == 0)
        return
    with pytest.raises((InfeasibleBudget, NoFeasibleFound)):
        solve(problem, "greedy", time_limit=5.0, work_limit=20)


def test_totals_of_many_are_those_of_each() -> None:
    for kind in KINDS:
        problem = paired(kind, 3)
        rows = np.random.default_rng(0).integers(problem.group_sizes, size=(9, 5))
        assert totals_of(problem, rows).tolist() == [problem.totals(row).tolist() for row in rows]

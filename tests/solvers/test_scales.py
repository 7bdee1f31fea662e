"""Gaps, bounds and statuses do not depend on the unit of the energies, nor on a constant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from benchmarks.studies.statuses import WORK, judge, random_small
from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InfeasibleBudget, InvalidProblem, NoFeasibleFound
from qubo_compress.problem.energy_scale import energy_scale, standardise
from qubo_compress.problem.generators import planted_problem
from qubo_compress.solvers.exact import proof
from qubo_compress.solvers.exact.certificates import check_bound, least_energy
from qubo_compress.testing.solvers import rescaled


def ring(groups, choices, budgets, seed, reaches=(1,)):
    """Pairs around a ring; several budgets, so that HiGHS is asked."""
    rng = np.random.default_rng(seed)
    total = groups * choices
    table = np.zeros((total, total))
    for g in range(groups):
        for reach in reaches:
            rows, columns = choices * g, choices * ((g + reach) % groups)
            block = rng.normal(size=(choices, choices))
            table[rows : rows + choices, columns : columns + choices] += block
            table[columns : columns + choices, rows : rows + choices] += block.T
    costs = rng.integers(1, 1000, size=(budgets, total))
    return ChoiceProblem(
        linear=rng.normal(size=total),
        group_offsets=np.arange(0, total + 1, choices),
        costs=costs,
        limits=(costs.mean(axis=1) * groups).astype(int),
        pairs=sparse.csr_array(table),
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    exponent=st.integers(-12, 9),
    constant=st.sampled_from([0.0, 1.0, -1e6, 1e9]),
    solver=st.sampled_from(["exact", "annealer", "auto"]),
)
def test_no_claim_is_wrong_at_any_scale(seed, exponent, constant, solver):
    problem = rescaled(random_small(np.random.default_rng(seed)), 10.0**exponent, constant)
    bare = problem.without_constant()
    optimum = least_energy(bare)
    try:
        solution = solve(problem, solver, time_limit=20.0, work_limit=WORK.get(solver), seed=1)
    except NoFeasibleFound:
        return
    except InfeasibleBudget:
        assert optimum == np.inf
        return
    assert not judge(bare, solution, optimum)
    assert check_bound(problem, solution).verified or solution.bound is None


@pytest.mark.parametrize("solver", ["exact", "annealer", "auto"])
def test_a_constant_proves_nothing(solver):
    problem, optimum = planted_problem(groups=30, choices=8, seed=3)
    plain, large = (
        solve(rescaled(problem, 1.0, constant), solver, work_limit=100, time_limit=60.0) for constant in (0.0, 1e9)
    )
    assert (plain.assignment == large.assignment).all()
    energy, least = problem.energy(large.assignment), problem.energy(optimum)
    assert large.status == "feasible" or energy <= least + 1e-5 * abs(least)


@pytest.mark.parametrize("scale", [1e-9, 1e-7, 1e9])
def test_programmes_prove_at_every_scale_and_claim_no_bound_above_the_optimum(scale, monkeypatch):
    monkeypatch.setattr(proof, "toulbar2_is_installed", lambda: False)  # others would prove it first
    monkeypatch.setattr(proof, "LARGEST_TREE_BLOCKS", -1)
    problem = ring(14, 3, 2, seed=1, reaches=(1, 5))
    optimum = solve(problem, "exact", time_limit=60.0)
    scaled = solve(rescaled(problem, scale, 0.0), "exact", time_limit=60.0)
    assert optimum.status == scaled.status == "optimal"
    assert "mixed-integer programming" in scaled.notes[-1]
    assert scaled.bound / scale <= optimum.energy + 1e-9 * abs(optimum.energy)


@pytest.mark.parametrize("scale", [1e-7, 1e-5, 1.0, 1e6])
def test_scip_proves_at_every_scale(scale):
    pytest.importorskip("pyscipopt")
    problem = ring(8, 3, 1, seed=3)
    scaled = solve(rescaled(problem, scale, 0.0), "scip", time_limit=60.0)
    optimum = solve(problem, "exact", time_limit=60.0).energy
    assert scaled.status == "optimal"
    assert problem.energy(scaled.assignment) == pytest.approx(optimum, rel=1e-9)
    assert scaled.bound / scale <= optimum + 1e-9 * abs(optimum)


def keeping(kind, choices, scale):
    """A problem whose optimum is zero: the first choice of every group costs nothing and meets nothing."""
    groups, rng = 20, np.random.default_rng(5)
    total = groups * choices
    linear = rng.random(total)
    linear[::choices] = 0.0
    pairs = None
    if kind == "pairs":
        table = np.triu(rng.random((total, total)) * (rng.random((total, total)) < 0.1), 1)
        table = table + table.T
        group = np.arange(total) // choices
        table[group[:, None] == group] = 0.0
        table[::choices] = table[:, ::choices] = 0.0
        pairs = scale * sparse.csr_array(table)
    costs = np.tile(np.arange(choices, 0, -1), groups)[None]
    offsets = np.arange(0, total + 1, choices)
    return ChoiceProblem(scale * linear, offsets, costs, [choices * groups], pairs=pairs)


@pytest.mark.parametrize("scale", [1e-17, 1.0])
@pytest.mark.parametrize("kind", ["separable", "pairs"])
@pytest.mark.parametrize("solver", ["annealer", "auto", "exact"])
def test_an_optimum_of_zero_is_optimal(solver, kind, scale):
    for choices in (2, 5):
        solution = solve(keeping(kind, choices, scale), solver, time_limit=60.0)
        assert solution.energy == 0.0
        assert solution.status == "optimal"


def test_tiny_energies_are_not_optimal_by_themselves():
    problem = ChoiceProblem.random("low-rank", groups=30, choices=8, seed=1)
    tiny = rescaled(problem, 1e-17, 0.0)
    assert solve(tiny, "annealer", work_limit=50, time_limit=60.0).status == "feasible"


def test_prohibitive_choices_do_not_widen_the_tolerance():
    linear = np.tile([0.0, 1.0, 2.0, 1e12], 6)
    problem = ChoiceProblem(linear, np.arange(0, 25, 4), np.tile([9, 5, 2, 1], 6)[None], [30])
    assert energy_scale(problem).typical <= 20.0
    assert solve(problem, "exact").energy == least_energy(problem)


def test_standardised_problems_have_the_energies_of_the_original():
    for kind in ("separable", "sparse", "low-rank"):
        problem = rescaled(ChoiceProblem.random(kind, groups=6, choices=5, seed=2), 3e-8, 17.0)
        standard = standardise(problem)
        rng = np.random.default_rng(0)
        assert standard.problem.constant == 0.0
        assert 0.2 < energy_scale(standard.problem).typical / 6 < 5.0
        for _ in range(20):
            assignment = rng.integers(0, 5, size=6)
            again = standard.energy(standard.problem.energy(assignment))
            assert again == pytest.approx(problem.energy(assignment), rel=1e-15, abs=1e-15)
            assert (standard.problem.totals(assignment) == problem.totals(assignment)).all()


def test_certificates_hold_at_another_scale():
    problem = rescaled(ChoiceProblem.random("low-rank", groups=9, choices=6, seed=4), 1e-8, 5.0)
    solution = solve(problem, "exact", certificate=True, time_limit=60.0)
    check = check_bound(problem, solution, most=10)
    assert solution.status == "optimal" and check.how == "dual certificate" and check.verified


@pytest.mark.parametrize(
    "costs, limits",
    [
        ([[2**62, 1] * 3], [2**62]),
        ([[2**53 + 1, 2**53] * 3], [3 * 2**53 + 1]),
        ([[1, 2] * 3], [2**63 - 1]),
    ],
)
def test_totals_beyond_exact_numbers_are_refused(costs, limits):
    with pytest.raises(InvalidProblem, match=r"2\*\*"):
        ChoiceProblem([0.0, 1.0] * 3, [0, 2, 4, 6], costs, limits)


def test_large_totals_within_exact_numbers_are_told_apart():
    costs = [[2**50 + 1, 2**50] * 3]
    problem = ChoiceProblem([0.0, 1.0] * 3, [0, 2, 4, 6], costs, [3 * 2**50 + 1])
    for solver in ("exact", "annealer", "greedy"):
        assert solve(problem, solver, time_limit=60.0, work_limit=50).energy == 2.0


def test_energies_that_overflow_are_refused():
    with pytest.raises(InvalidProblem, match="overflow"):
        ChoiceProblem([1e308] * 6, [0, 2, 4, 6], [[1] * 6], [3])


def test_pairs_that_rounding_made_unsymmetric_are_evened_out_and_tiny_ones_compared():
    table = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0 + 1e-13, 0.0, 0.0]])
    problem = ChoiceProblem([0.0] * 3, [0, 2, 3], np.zeros((0, 3), dtype=int), [], pairs=sparse.csr_array(table))
    assert (problem.pairs != problem.pairs.T).nnz == 0
    uneven = 1e-12 * np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    with pytest.raises(InvalidProblem, match="symmetric"):
        ChoiceProblem([0.0] * 3, [0, 2, 3], np.zeros((0, 3), dtype=int), [], pairs=sparse.csr_array(uneven))

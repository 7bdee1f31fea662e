"""Whole costs are below energies, by at most one unit per table; budgets are exact."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qubo_compress import ChoiceProblem
from qubo_compress.problem.energy_scale import standardise
from qubo_compress.solvers.exact.cost_network import CostNetwork, cost_network, network_entries


def problem_of(kind: str, seed: int, budgets: int, outlier: float = 0.0) -> ChoiceProblem:
    rank = 3 if kind == "low-rank" else None
    drawn = ChoiceProblem.random(kind=kind, groups=4, choices=3, seed=seed, budgets=budgets, rank=rank)
    linear = drawn.linear.copy()
    linear[5] += outlier
    return standardise(
        ChoiceProblem(
            linear, drawn.group_offsets, drawn.costs, drawn.limits, drawn.fixed_costs, drawn.factor, drawn.pairs
        )
    ).problem


def everything(problem: ChoiceProblem) -> list[np.ndarray]:
    return [np.array(picks) for picks in itertools.product(*(range(size) for size in problem.group_sizes))]


def within_rounding(problem: ChoiceProblem, network: CostNetwork, picks: np.ndarray) -> bool:
    """Whether the energy of a cost is below the real one, by at most one unit per table and what is deducted."""
    tables = problem.num_groups + len(network.coupled)
    apart = problem.energy(picks) - network.energy(network.cost(picks))
    return 0.0 <= apart <= tables * network.unit + 3.0 * network.rounding


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["separable", "sparse", "dense", "low-rank"]),
    seed=st.integers(0, 50),
    budgets=st.integers(0, 2),
    outlier=st.sampled_from([0.0, 1e3, -1e3, 1e9, -1e12]),
)
def test_costs_are_energies_rounded_down_and_budgets_are_exact(kind, seed, budgets, outlier):
    problem = problem_of(kind, seed, budgets, outlier)
    network = cost_network(problem, None, np.inf)
    assert network.alone.min() >= 0 and network.tables.min(initial=0) >= 0
    assert network.tables.size <= network_entries(problem)
    for picks in everything(problem):
        assert within_rounding(problem, network, picks)
        assert network.fits(picks) == problem.is_feasible(picks)


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(["dense", "low-rank"]), seed=st.integers(0, 50), outlier=st.sampled_from([0.0, 1e6, 1e12]))
def test_no_better_assignment_changes_its_cost_when_large_entries_are_replaced(kind, seed, outlier):
    problem = problem_of(kind, seed, 1, outlier)
    fitting = [picks for picks in everything(problem) if problem.is_feasible(picks)]
    first = fitting[seed % len(fitting)]
    network = cost_network(problem, first, np.inf)
    below = network.cost(first)
    assert network.alone.max() <= below + 1 and network.tables.max() <= below + 1
    for picks in everything(problem):
        if problem.energy(picks) < problem.energy(first):
            assert within_rounding(problem, network, picks)
        assert network.energy(min(below, network.cost(picks))) <= problem.energy(picks)


def test_weights_are_reduced_by_what_every_assignment_has_in_common():
    problem = ChoiceProblem([0.0] * 4, [0, 2, 4], [[10, 16, 7, 13]], [29], fixed_costs=[3])
    network = cost_network(problem, None, np.inf)
    assert network.weights.tolist() == [[0, 1, 0, 1]] and network.room.tolist() == [1]
    beyond = problem.with_limits([20])  # no second choice fits, however much it weighs
    network = cost_network(beyond, None, np.inf)
    assert network.weights.tolist() == [[0, 1, 0, 1]] and network.room.tolist() == [0]


def test_the_unit_is_fine_enough_for_a_proof_and_coarse_enough_for_large_costs():
    pairs = sparse.csr_array(np.array([[0, 0, 1.0, 0], [0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 0]]))
    for prohibitive, finest in ((1.0, 2.0**-20), (1e15, 2.0)):
        problem = ChoiceProblem([0.0, prohibitive, 0.0, 1.0], [0, 2, 4], [[1] * 4], [2], pairs=pairs)
        network = cost_network(problem, None, np.inf)
        assert network.unit <= finest and math.log2(network.unit).is_integer()
        assert int(network.alone.sum()) + int(network.tables.sum()) < 2**53


def test_building_ends_at_the_deadline():
    assert cost_network(problem_of("dense", 0, 1), None, -np.inf) is None


@pytest.mark.parametrize("kind", ["sparse", "dense", "low-rank", "separable"])
def test_entries_are_counted_before_they_are_built(kind):
    problem = problem_of(kind, 0, 1)
    assert network_entries(problem) == cost_network(problem, None, np.inf).tables.size

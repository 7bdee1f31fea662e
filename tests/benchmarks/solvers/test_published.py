"""Problems of others as choice problems: energies are the published objectives, and known optima are found."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.solvers.public import INSTANCES
from benchmarks.solvers.published import assignment, colouring, frequencies, knapsack
from benchmarks.solvers.published.assignment import assignment_problem, matrices
from benchmarks.solvers.published.colouring import colouring_problem, graph
from benchmarks.solvers.published.frequencies import WEIGHTS, frequency_problem
from benchmarks.solvers.published.knapsack import knapsack_problem, knapsack_values
from qubo_compress import solve

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", ["nug8", "nug12", "had12", "tai12a", "chr12a", "nug15"])
def test_an_assignment_costs_its_flows_times_its_distances(name):
    first, second = matrices(name)
    problem = assignment_problem(name)
    for seed in range(5):
        places = np.random.default_rng(seed).permutation(len(first))
        assert problem.energy(places) == (first * second[np.ix_(places, places)]).sum()
        assert problem.is_feasible(places)
    taken_twice = places.copy()
    taken_twice[0] = taken_twice[1]
    assert not problem.is_feasible(taken_twice)


def test_the_published_best_assignment_of_nug12_has_the_published_cost():
    """QAPLIB's solution file: (12, 7, 9, 3, 4, 8, 11, 1, 5, 6, 10, 2), 578."""
    first, second = matrices("nug12")
    places = np.array([12, 7, 9, 3, 4, 8, 11, 1, 5, 6, 10, 2]) - 1
    assert (first * second[np.ix_(places, places)]).sum() == 578


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_frequencies_cost_the_weights_of_the_constraints_that_they_break(seed):
    data = json.loads(frequencies._DATA.read_text())
    problem = FREQUENCIES
    picks = np.random.default_rng(seed).integers(problem.group_sizes)
    links = [int(f) for kind, k in zip(data["kinds"], picks, strict=True) for f in _pair(data, kind, k)]
    assert all(abs(links[2 * g] - links[2 * g + 1]) == 238 for g in range(16))
    broken = [WEIGHTS[w] for w, i, j, apart in data["soft"] if abs(links[i] - links[j]) <= apart]
    assert problem.energy(picks) == sum(broken)


FREQUENCIES = frequency_problem()


def _pair(data, kind, number):
    low = data["frequencies"][kind][number]
    return low, next(f for f in data["frequencies"][kind] if abs(f - low) == data["apart"])


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_a_knapsack_earns_the_profits_of_what_is_packed(seed):
    profits, weights, capacity = knapsack_values(12, 0.5, seed)
    problem = knapsack_problem(12, 0.5, seed)
    packed = np.random.default_rng(seed).integers(0, 2, 12)
    both = np.outer(packed, packed)
    assert problem.energy(packed) == -(np.triu(profits) * both).sum()
    assert problem.is_feasible(packed) == (packed @ weights <= capacity)
    assert weights.min() >= 1 and weights.max() <= 50 <= capacity <= weights.sum()


@pytest.mark.parametrize(
    ("name", "vertices", "edges"),
    [("myciel3", 11, 20), ("myciel4", 23, 71), ("myciel5", 47, 236), ("queen5_5", 25, 160), ("queen8_8", 64, 728)],
)
def test_graphs_have_the_published_sizes(name, vertices, edges):
    adjacency = graph(name)
    assert (adjacency == adjacency.T).all() and not adjacency.diagonal().any()
    assert (len(adjacency), int(adjacency.sum()) // 2) == (vertices, edges)


def test_a_colouring_costs_one_for_every_edge_of_one_colour():
    problem, adjacency = colouring_problem("queen5_5", 5), graph("queen5_5")
    colours = np.random.default_rng(0).integers(0, 5, 25)
    assert problem.energy(colours) == (adjacency & np.equal.outer(colours, colours)).sum() / 2
    rows, columns = np.divmod(np.arange(25), 5)
    assert problem.energy((2 * rows + columns) % 5) == 0


@pytest.mark.parametrize(("colours", "least"), [(3, 1.0), (4, 0.0)])
def test_exact_proves_the_colours_of_the_smallest_mycielski_graph(colours, least):
    solution = solve(colouring_problem("myciel3", colours), "exact", time_limit=60.0)
    assert (solution.status, solution.energy) == ("optimal", least)


@pytest.mark.parametrize(("problem", "least"), [(assignment_problem("nug8"), 214.0), (FREQUENCIES, 159.0)])
def test_the_published_optima_are_proven(problem, least):
    pytest.importorskip("pytoulbar2")
    solution = solve(problem, "cfn", time_limit=120.0)
    assert (solution.status, solution.energy) == ("optimal", least)


def test_every_instance_can_be_made_and_names_its_source():
    sizes = {name: public.make().num_groups for name, public in INSTANCES.items()}
    assert min(sizes.values()) >= 12
    assert all(public.source for public in INSTANCES.values())


@pytest.mark.parametrize("module", [assignment, colouring, frequencies, knapsack])
def test_the_examples_of_the_conversions_are_right(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed

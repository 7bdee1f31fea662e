"""EvoPress: the published mutation and selection, exact budgets, and the real loss of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.problem.network_loss import NetworkLoss
from qubo_compress.solvers.opponents.evopress import MOST_SWITCHES, CostLevels, EvoPress
from qubo_compress.testing import brute_force


class Recorded(NetworkLoss):
    """A loss that is the energy, and remembers what it was asked."""

    def __init__(self, problem: ChoiceProblem) -> None:
        self.problem = problem
        self.asked: list[tuple[bytes, int | None]] = []
        self.seeds: list[int] = []

    def redraw(self, seed: int) -> None:
        self.seeds.append(seed)

    def __call__(self, assignment: IntArray, examples: int | None = None) -> float:
        self.evaluations += examples or 0
        assert self.problem.is_feasible(assignment)
        self.asked.append((assignment.tobytes(), examples))
        return self.problem.energy(assignment)


def test_the_defaults_are_those_published() -> None:
    published = EvoPress()
    assert (published.generations, published.offspring, published.survivors) == (150, 128, (16, 4, 1))
    assert (published.switches, published.reach, published.least_traded) == (3, 1, 0.8)
    # 2,048, 16,384 and 131,072 tokens.
    assert [later / earlier for earlier, later in zip(published.samples, published.samples[1:], strict=False)] == [8, 8]


def test_the_number_of_switches_is_the_smaller_of_two_draws() -> None:
    problem = ChoiceProblem.random(kind="separable", groups=30, choices=6, seed=0)
    levels = CostLevels(problem.with_limits(problem.costs.sum(axis=1)))
    cheapest = np.array([order[0] for order in levels.by_level])
    rng = np.random.default_rng(0)
    draws = 3000
    moved = Counter(int(levels.levels(levels.mutated(cheapest, 3, rng, 0.8)).sum()) for _ in range(draws))
    shares = [moved[count] / draws for count in (1, 2, 3)]
    assert sum(moved.values()) == sum(moved[count] for count in (1, 2, 3))
    assert np.allclose(shares, [5 / 9, 3 / 9, 1 / 9], atol=0.03)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["separable", "dense"]), seed=st.integers(0, 10**6), budgets=st.integers(0, 2),
    reach=st.integers(1, 4),
)  # fmt: skip
def test_no_offspring_exceeds_a_budget(kind: str, seed: int, budgets: int, reach: int) -> None:
    rng = np.random.default_rng(seed)
    problem = ChoiceProblem.random(kind=kind, groups=8, choices=5, seed=seed, budgets=budgets)
    levels = CostLevels(problem, reach)
    parents = levels.uniform_starts() or levels.random_start(rng)
    for parent in parents:
        assert problem.is_feasible(parent)
        for _ in range(10):
            child = levels.mutated(parent, 3, rng, 0.8)
            if child is not None:
                assert problem.is_feasible(child)
                steps = np.abs(levels.levels(child) - levels.levels(parent))
                assert steps.sum() <= reach * MOST_SWITCHES


def test_uneven_trades_are_drawn_again() -> None:
    # One group of large steps and three of small ones: as a small one goes up only the large one can give way.
    problem = ChoiceProblem(
        linear=np.zeros(8), group_offsets=[0, 2, 4, 6, 8], costs=[[1, 100, 1, 2, 1, 2, 1, 2]], limits=[103]
    )
    levels, rng = CostLevels(problem), np.random.default_rng(0)
    parent = np.array([1, 0, 0, 0])
    even = [levels.mutated(parent, 1, rng, 0.8) for _ in range(60)]
    free = [levels.mutated(parent, 1, rng, 0.0) for _ in range(60)]
    assert all(child is None or child[0] == 1 for child in even)
    assert any(child is not None and child[0] == 0 for child in free)


@pytest.mark.parametrize("kind", ["separable", "dense", "low-rank"])
def test_small_problems_are_solved(kind: str) -> None:
    for seed in range(3):
        problem = ChoiceProblem.random(
            kind=kind, groups=5, choices=4, seed=seed, rank=6 if kind == "low-rank" else None
        )
        truth = brute_force(problem)
        assert truth is not None
        solver = EvoPress(generations=15, offspring=32, reach=3, least_traded=0.0)
        found = min(solve(problem, solver, time_limit=60.0, seed=start).energy for start in range(4))
        assert found == pytest.approx(truth[0], abs=1e-9)


def test_selection_asks_for_growing_samples_and_the_parent_competes_last() -> None:
    problem = ChoiceProblem.random(kind="dense", groups=20, choices=10, seed=1)
    loss = Recorded(problem)
    solution = solve(problem, "evopress", time_limit=60.0, loss=loss, generations=1)
    counts = Counter(examples for _, examples in loss.asked)
    starts = len(CostLevels(problem).uniform_starts()) or 1
    assert counts == {8: 128, 64: 16, 512: starts + 4 + 1}
    assert len(set(loss.seeds)) == len(loss.seeds) == 1 + 3
    assert solution.work == starts + 128
    spent = 128 * 8 + 16 * 64 + (starts + 5) * 512
    assert solution.details["network_evaluations"] == spent
    # The sample of the last stage is asked for the parent and for the four best of the stage before.
    finalists = [key for key, examples in loss.asked if examples == 512][starts:]
    parent = np.array(solution.details["history"][0]["assignment"]).tobytes()
    assert finalists[0] == parent
    by_energy = sorted(
        {key for key, examples in loss.asked if examples == 64}, key=lambda key: problem.energy(np.frombuffer(key, int))
    )
    assert set(finalists[1:]) == set(by_energy[:4])


def test_the_parent_never_gets_worse_and_is_the_answer() -> None:
    problem = ChoiceProblem.random(kind="dense", groups=15, choices=8, seed=2)
    loss = Recorded(problem)
    solution = solve(problem, "evopress", time_limit=60.0, loss=loss, generations=20, offspring=32)
    losses = [entry["loss"] for entry in solution.details["history"]]
    assert len(losses) == 21 and losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert tuple(solution.assignment) == solution.details["history"][-1]["assignment"]
    assert solution.details["loss"] == pytest.approx(solution.energy)


def test_evaluations_stay_within_their_limit() -> None:
    problem = ChoiceProblem.random(kind="dense", groups=15, choices=8, seed=2)
    for most in (10_000, 25_000):
        loss = Recorded(problem)
        options = {"offspring": 32, "survivors": (8, 2, 1), "samples": (4, 32, 128), "generations": None}
        solution = solve(problem, "evopress", time_limit=60.0, loss=loss, most_evaluations=most, **options)
        asked = sum(examples or 0 for _, examples in loss.asked)
        assert asked == solution.details["network_evaluations"] <= most
        assert asked + 32 * 4 + 8 * 32 + 3 * 128 > most


def test_an_interrupted_generation_is_as_if_it_had_not_begun() -> None:
    problem = ChoiceProblem.random(kind="dense", groups=15, choices=8, seed=2)
    loss = Recorded(problem)

    def breaking(assignment: IntArray, examples: int | None) -> float:
        if len(loss.asked) > 700:
            raise KeyboardInterrupt
        return loss(assignment, examples)

    solution = solve(problem, "evopress", time_limit=60.0, loss=breaking)
    assert solution.interrupted and solution.details["generations"] >= 2
    again = solve(problem, "evopress", time_limit=60.0, loss=Recorded(problem), work_limit=solution.work)
    assert (again.assignment == solution.assignment).all() and again.work == solution.work


def test_it_improves_a_real_network(sample: Callable[[str], Any]) -> None:
    found = sample("grouped-view-inplace")
    menu = qc.Menu(bits=(2, 3, 4, 8), sparsity=(0.0, 0.5))
    table = qc.measure(found.model, found.batches, menu=menu, metric="magnitude", progress=False)
    problem = table.problem(qc.Budget(bytes=int(table.problem(qc.Budget(ratio=1)).smallest_totals()[0] * 1.15)))
    loss = table.stitched_loss(found.model, found.batches, "kl")
    spent = loss.evaluations
    options = {"generations": 8, "offspring": 16, "survivors": (4, 1), "samples": (6, 24)}
    solution = solve(problem, "evopress", time_limit=60.0, loss=loss, **options)
    assert solution.details["loss"] < solution.details["history"][0]["loss"]
    assert solution.details["network_evaluations"] == loss.evaluations - spent
    assert loss(solution.assignment) == solution.details["loss"]


@pytest.mark.parametrize(
    "options",
    [{"offspring": 0}, {"survivors": (4, 2)}, {"samples": (8,)}, {"reach": 0}, {"least_traded": 2}, {"generations": 0}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSolverOption):
        EvoPress(**options)

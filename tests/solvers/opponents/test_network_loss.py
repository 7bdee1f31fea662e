"""What a search minimises, and how it is counted."""

from __future__ import annotations

import numpy as np
import pytest

from qubo_compress import ChoiceProblem
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.problem.network_loss import LossFunction, NetworkLoss
from qubo_compress.solvers import Search, SearchLimits
from qubo_compress.solvers.opponents.network_loss import Objective


def objective_of(problem: ChoiceProblem, loss: LossFunction | None) -> Objective:
    return Objective(Search(problem, SearchLimits(1.0), np.random.default_rng(0)), loss)


@pytest.mark.parametrize("kind", ["separable", "sparse", "dense", "low-rank"])
def test_without_a_loss_it_is_the_energy(kind: str) -> None:
    problem = ChoiceProblem.random(kind=kind, groups=9, choices=5, seed=1)
    objective, rng = objective_of(problem, None), np.random.default_rng(0)
    for _ in range(20):
        assignment = rng.integers(problem.group_sizes)
        assert objective(assignment) == pytest.approx(problem.energy(assignment), rel=1e-12, abs=1e-12)
    assert (objective.calls, objective.evaluations, objective.real) == (20, 0, False)


class Counting(NetworkLoss):
    evaluations = 100
    seed = -1

    def redraw(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, assignment: IntArray, examples: int | None = None) -> float:
        self.evaluations += 7
        return 0.5


PROBLEM = ChoiceProblem.random(kind="separable", groups=3, choices=2, seed=0)
HERE = np.zeros(3, dtype=np.int64)


def test_a_loss_counts_and_redraws_and_a_function_is_counted() -> None:
    counting = Counting()
    objective = objective_of(PROBLEM, counting)
    objective.redraw(9)
    assert (objective(HERE), objective.evaluations, counting.seed) == (0.5, 7, 9)
    plain = objective_of(PROBLEM, lambda assignment, examples: 0.5)
    plain.redraw(9)
    plain(HERE, 16)
    assert plain.evaluations == 16


def test_a_loss_of_04_counts_and_redraws_too_with_a_warning() -> None:
    older = type("Older", (), {name: vars(Counting)[name] for name in ("evaluations", "seed", "redraw", "__call__")})()
    with pytest.warns(DeprecationWarning, match="Older has evaluations or redraw.*inherit from"):
        objective = objective_of(PROBLEM, older)
    objective.redraw(9)
    assert (objective(HERE), objective.evaluations, older.seed) == (0.5, 7, 9)


def test_what_is_best_by_the_loss_is_the_answer() -> None:
    objective = objective_of(PROBLEM, Counting())
    for assignment, value in ((HERE, 3.0), (HERE + 1, 2.0)):
        objective.accept(assignment, value)
    result, figures = objective.search.result(), objective.figures()
    assert [found.tolist() for found in result.assignments] == [[1, 1, 1]] and not result.trace
    assert figures["loss"] == 2.0 and [entry["loss"] for entry in figures["history"]] == [3.0, 2.0]

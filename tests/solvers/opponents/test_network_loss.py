"""What a search minimises, and how it is counted."""

from __future__ import annotations

import numpy as np
import pytest

from qubo_compress import ChoiceProblem
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.solvers.opponents.network_loss import Objective


@pytest.mark.parametrize("kind", ["separable", "sparse", "dense", "low-rank"])
def test_without_a_loss_it_is_the_energy(kind: str) -> None:
    problem = ChoiceProblem.random(kind=kind, groups=9, choices=5, seed=1)
    objective, rng = Objective(problem, None), np.random.default_rng(0)
    for _ in range(20):
        assignment = rng.integers(problem.group_sizes)
        assert objective(assignment) == pytest.approx(problem.energy(assignment), rel=1e-12, abs=1e-12)
    assert (objective.calls, objective.evaluations, objective.real) == (20, 0, False)


def test_the_count_of_the_loss_itself_is_preferred() -> None:
    problem = ChoiceProblem.random(kind="separable", groups=3, choices=2, seed=0)

    class Counting:
        evaluations = 100
        seed = -1

        def redraw(self, seed: int) -> None:
            self.seed = seed

        def __call__(self, assignment: IntArray, examples: int | None) -> float:
            self.evaluations += 7
            return 0.5

    counting = Counting()
    objective = Objective(problem, counting)
    objective.redraw(9)
    assert (objective(np.zeros(3, dtype=np.int64)), objective.evaluations, counting.seed) == (0.5, 7, 9)
    plain = Objective(problem, lambda assignment, examples: 0.5)
    plain.redraw(9)
    plain(np.zeros(3, dtype=np.int64), 16)
    assert plain.evaluations == 16

"""What a search minimises: the problem's energy, or a loss that somebody else measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.generators import random_problem

RealLoss = Callable[[IntArray, int | None], float]
"""(assignment (G,), number of examples or None for all) -> mean loss; ``qubo_compress.StitchedLoss`` is one."""


@runtime_checkable
class Redrawn(Protocol):
    """A loss on a sample of its examples that can be drawn anew."""

    def redraw(self, seed: int) -> None:
        """Take another sample, the same for every assignment until the next call."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A loss that counts the examples it forwards through the network."""

    evaluations: int


class Objective:
    """Energies of a problem, or a real loss on some examples, with a count of what was asked.

    Args:
        problem: gives the energies where there is no loss.
        loss: the real loss, or None.

    Example:
        >>> problem = ChoiceProblem.random(kind="separable", groups=2, choices=2, seed=0)
        >>> objective = Objective(problem, lambda assignment, examples: 1.0)
        >>> objective(problem.group_sizes - 1, 16), objective.evaluations, objective.calls
        (1.0, 16, 1)
    """

    def __init__(self, problem: ChoiceProblem, loss: RealLoss | None) -> None:
        self.problem, self.loss = problem, loss
        self.calls = 0
        self._chosen = np.zeros(problem.num_choices, dtype=np.bool_)
        self._asked = 0
        self._before = loss.evaluations if isinstance(loss, Counted) else 0

    @property
    def real(self) -> bool:
        """Whether a loss is asked, not the energy."""
        return self.loss is not None

    @property
    def evaluations(self) -> int:
        """Examples forwarded since the start: the loss's own count, or those asked for where it keeps none."""
        return self.loss.evaluations - self._before if isinstance(self.loss, Counted) else self._asked

    def redraw(self, seed: int) -> None:
        """Take another sample of examples, where the loss can."""
        if isinstance(self.loss, Redrawn):
            self.loss.redraw(seed)

    def __call__(self, assignment: IntArray, examples: int | None = None) -> float:
        """The value of an assignment; ``examples`` is of no account for an energy."""
        self.calls += 1
        if self.loss is None:
            return self._energy(assignment)
        self._asked += examples or 0
        return float(self.loss(assignment, examples))

    def _energy(self, assignment: IntArray) -> float:
        pairs = self.problem.pairs
        if pairs is None:
            return self.problem.energy(assignment)
        chosen = self.problem.selected(assignment)
        inner = pair_sum(pairs.indptr, pairs.indices, pairs.data, chosen, self._chosen)
        return self.problem.constant + float(self.problem.linear[chosen].sum()) + 0.5 * inner


@compiled
def pair_sum(
    indptr: npt.NDArray[np.int32],
    indices: npt.NDArray[np.int32],
    data: FloatArray,
    chosen: IntArray,
    mask: npt.NDArray[np.bool_],
) -> float:
    """Sum of the pair energies among the chosen; ``mask`` (V,) is false before and after.

    Scipy takes fifty times as long to cut the same rows and columns out of a dense table of 500 groups.
    """
    total = 0.0
    for v in chosen:
        mask[v] = True
    for v in chosen:
        for i in range(indptr[v], indptr[v + 1]):
            if mask[indices[i]]:
                total += data[i]
    for v in chosen:
        mask[v] = False
    return total


def warm_up() -> float:
    """Compile (or load from the disk cache) what energies need; returns the seconds it took."""
    start = time.perf_counter()
    Objective(random_problem("dense", groups=3, choices=2, seed=0), None)(np.zeros(3, dtype=np.int64))
    return time.perf_counter() - start

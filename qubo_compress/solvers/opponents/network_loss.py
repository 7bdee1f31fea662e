"""What a search minimises: the problem's energy, or a loss that somebody else measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress._internal import compiling
from qubo_compress._internal.compiling import compiled
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.problem.generators import tiny_problem
from qubo_compress.problem.network_loss import LossFunction, network_loss
from qubo_compress.solvers.search import Search, SearchLimits


class Objective:
    """Energies of a problem, or the network's loss on some examples; what is best by it is the search's answer.

    Args:
        search: gets the answer, and gives the energies if there is no loss.
        loss: the network's loss, or None.

    Attributes:
        calls: assignments asked for.

    Example:
        >>> from qubo_compress.solvers import Search, SearchLimits
        >>> from qubo_compress import ChoiceProblem
        >>> problem = ChoiceProblem.random(kind="separable", groups=2, choices=2, seed=0)
        >>> search = Search(problem, SearchLimits(1.0), np.random.default_rng(0))
        >>> objective = Objective(search, lambda assignment, examples: 1.0)
        >>> objective(problem.group_sizes - 1, 16), objective.evaluations, objective.calls
        (1.0, 16, 1)
    """

    def __init__(self, search: Search, loss: LossFunction | None) -> None:
        self.search, self.problem = search, search.problem
        self.loss = None if loss is None else network_loss(loss)
        search.pool.size = 1
        self.calls = 0
        self.value = np.inf
        self._history: list[dict[str, Any]] = []
        self._chosen = np.zeros(search.problem.num_choices, dtype=np.bool_)
        self._before = 0 if self.loss is None else self.loss.evaluations

    @property
    def real(self) -> bool:
        """Whether a loss is asked, not the energy."""
        return self.loss is not None

    @property
    def evaluations(self) -> int:
        """Examples forwarded since the start."""
        return 0 if self.loss is None else self.loss.evaluations - self._before

    def redraw(self, seed: int) -> None:
        """Take another sample of examples."""
        if self.loss is not None:
            self.loss.redraw(seed)

    def __call__(self, assignment: IntArray, examples: int | None = None) -> float:
        """The value of an assignment; ``examples`` is of no account for an energy."""
        self.calls += 1
        return self._energy(assignment) if self.loss is None else float(self.loss(assignment, examples))

    def accept(self, assignment: IntArray, value: float) -> None:
        """Make an assignment of this value the answer."""
        self.value = value
        if self.loss is None:
            self.search.keep(assignment, value)
        else:
            self.search.settle(assignment)
            self._history.append(
                {"evaluations": self.evaluations, "loss": value, "assignment": tuple(assignment.tolist())}
            )

    def figures(self) -> dict[str, Any]:
        """What was asked, for the details."""
        return {
            "candidates_scored": self.calls,
            "network_evaluations": self.evaluations,
            "loss": self.value,
            "history": tuple(self._history),
        }

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


@compiling.once
def warm_up(structure: str) -> None:
    """Compile (or load from the disk cache) what energies need."""
    search = Search(tiny_problem(structure), SearchLimits(1.0), np.random.default_rng(0))
    Objective(search, None)(np.zeros(3, dtype=np.int64))

"""Back from a problem that was read from a model: assignments as the model's own samples."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress._internal.reader import printable
from qubo_compress.errors import InvalidAssignment
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray

_ROUNDED = 1e-5
"""Distance from an integer up to which solvers of integer programs return it."""


@dataclass(frozen=True, eq=False)
class ModelSamples:
    """Translates assignments to samples of the model that the problem was read from, and back.

    Attributes:
        problem: the problem.
        labels: the model's variables, in its order.
        values: (V, N) value of every variable where a choice is selected, as a sparse matrix of integers that stores no
            zeros. A variable has the sum over the selected choices, so choices without it give 0.
        groups: (N,) the group that decides each variable.

    Example:
        >>> import dimod
        >>> dqm = dimod.DiscreteQuadraticModel()
        >>> colour = dqm.add_variable(3, label="colour")
        >>> problem, samples = ChoiceProblem.from_dqm(dqm)
        >>> samples([2]), samples.assignment({"colour": 2}).tolist()
        ({'colour': 2}, [2])
    """

    problem: ChoiceProblem
    labels: tuple[Hashable, ...]
    values: sparse.csr_array
    groups: IntArray

    def __call__(self, assignment: npt.ArrayLike) -> dict[Hashable, int]:
        """Variable -> value of one assignment.

        Raises:
            InvalidAssignment: when it does not pick one existing choice per group.
        """
        self.problem.selected(assignment)  # raises for anything but one assignment
        row = self.rows(np.asarray(assignment)[None])[0]
        return dict(zip(self.labels, row.tolist(), strict=True))

    def rows(self, assignments: npt.ArrayLike) -> IntArray:
        """(M, N) values of all variables for (M, G) assignments; with ``labels``, what dimod takes for samples.

        Raises:
            InvalidAssignment: when one of them does not pick one existing choice per group.
        """
        chosen = [self.problem.selected(row) for row in np.asarray(assignments)]
        if not chosen:
            return np.zeros((0, len(self.labels)), dtype=np.int64)
        picked = np.concatenate(chosen)
        starts = np.arange(0, picked.size + 1, self.problem.num_groups)
        shape = (len(chosen), self.problem.num_choices)
        picks = sparse.csr_array((np.ones(picked.size, dtype=np.int64), picked, starts), shape=shape)
        return np.asarray((picks @ self.values).toarray(), dtype=np.int64)

    def assignment(self, sample: Mapping[Any, Any]) -> IntArray:
        """(G,) the assignment of a sample; values within 1e-5 of an integer, as solvers return them, count as it.

        Raises:
            InvalidAssignment: when a variable is missing, or the values of a group are those of none of its choices.
        """
        missing = [label for label in self.labels if label not in sample]
        if missing:
            raise InvalidAssignment(f"the sample lacks the variable {printable(repr(missing[0]))}")
        given = np.array([float(sample[label]) for label in self.labels])
        given = np.where(np.abs(given - np.rint(given)) <= _ROUNDED, np.rint(given), given)
        offsets, total, filled = self.problem.group_offsets, self.problem.num_choices, np.diff(self.values.indptr)
        same = self.values.data == given[self.values.indices]
        met = np.bincount(np.repeat(np.arange(total), filled)[same], minlength=total)
        on = np.bincount(self.groups[given != 0], minlength=self.problem.num_groups)
        fits = (met == filled) & (filled == np.repeat(on, self.problem.group_sizes))
        chosen = np.minimum.reduceat(np.where(fits, np.arange(total), total), offsets[:-1])
        lost = np.flatnonzero(chosen == total)
        if lost.size:
            name = self.problem.group_names[lost[0]]
            raise InvalidAssignment(
                f"the sample's variables of the group {printable(name)} have the values of no choice"
            )
        return np.asarray(chosen - offsets[:-1], dtype=np.int64)


def unique_names(labels: Iterable[Hashable]) -> tuple[str, ...]:
    """Labels of any kind as distinct texts: 1 and "1" may both be labels of one model.

    Example:
        >>> unique_names([1, "x", "1", ("x", 0)])
        ('1', 'x', "'1'", "('x', 0)")
    """
    names: dict[str, None] = {}
    for label in labels:
        name = str(label)
        if name in names:
            name = repr(label)
        number = 2
        while name in names:
            name, number = f"{label} ({number})", number + 1
        names[name] = None
    return tuple(names)

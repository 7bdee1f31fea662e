"""The choice problem as a dwave-optimization model: one integer per group, and no penalty anywhere.

Energies and costs are constants indexed by the integers, so the model has a few dozen symbols whatever the size of the
problem, and budgets are constraints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from qubo_compress._internal.optional import require
from qubo_compress.encodings.encoding import Decoded
from qubo_compress.errors import InvalidAssignment, ProblemTooLarge
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray

if TYPE_CHECKING:
    from dwave.optimization.model import Model

LARGEST_CONSTANTS = 50_000_000
"""Most constants in a model, 8 bytes each: 400 MB of the 750 MB that Leap documents for a state."""


def to_nonlinear(problem: ChoiceProblem) -> tuple[Model, NonlinearDecoder]:
    """A nonlinear model (one array of integers, one constraint per budget) and its inverse.

    With a factor the objective is the squared norm of the sum of the selected rows, so that the pair
    energies are never formed. The model's only decision is the integer array of the local choices.

    Raises:
        ProblemTooLarge: when the factor, or the blocks of coupled groups, hold more numbers than
            :data:`LARGEST_CONSTANTS`.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=3, choices=4, seed=0)
        >>> model, decode = to_nonlinear(problem)
        >>> assignments = next(model.iter_decisions())
        >>> model.states.resize(1)
        >>> assignments.set_state(0, [2, 0, 3])
        >>> with model.lock():
        ...     bool(abs(float(model.objective.state(0)) - problem.energy([2, 0, 3])) < 1e-9)
        True
        >>> decode(model).assignments.tolist()
        [[2, 0, 3]]
    """
    optimization = require("dwave.optimization")  # importing it takes as long as numpy and scipy together
    _check_size(problem)
    model: Model = optimization.Model()
    groups, widest = np.arange(problem.num_groups), int(problem.group_sizes.max())
    choices = model.integer(problem.num_groups, lower_bound=0, upper_bound=problem.group_sizes - 1)
    # Ragged groups: a table of global numbers keeps every index in range, which adding offsets to the integers would
    # not.
    local = np.minimum(np.arange(widest), problem.group_sizes[:, None] - 1)
    numbers = model.constant(problem.group_offsets[:-1, None] + local)
    selected = numbers[model.constant(groups), choices]
    terms = [model.constant(problem.diagonal)[selected].sum(), model.constant(problem.constant)]
    if problem.factor is not None and problem.factor.shape[1]:
        total = model.constant(problem.factor.astype(np.float64))[selected, :].sum(axis=0)
        terms.append(model.constant(0.5) * (total * total).sum())
    elif problem.structure == "pairs":
        terms.append(_sum_over_pairs(model, choices, pair_blocks(problem)))
    model.minimize(optimization.add(*terms))
    for b, room in enumerate((problem.limits - problem.fixed_costs).tolist()):
        spent = model.constant(problem.costs[b].astype(np.float64))[selected].sum()
        matrix = None if problem.pair_costs is None else problem.pair_costs[b]
        if matrix is not None:
            spent = spent + _sum_over_pairs(model, choices, blocks_of(matrix, problem))
        model.add_constraint(spent <= model.constant(float(room)))
    return model, NonlinearDecoder(problem)


def _sum_over_pairs(model: Model, choices: Any, blocks: PairBlocks) -> Any:
    """The sum of a table's values at the choices of every coupled pair of groups."""
    first, second = (choices[model.constant(side)] for side in (blocks.first, blocks.second))
    rows = model.constant(blocks.starts)[model.constant(np.arange(blocks.first.size)), first]
    return model.constant(blocks.values)[rows + second].sum()


@dataclass(frozen=True, eq=False)
class PairBlocks:
    """Pair energies or pair costs of coupled groups, block by block in one flat array.

    Attributes:
        first: (P,) the group of the rows of each block.
        second: (P,) the group of its columns; ``first < second``.
        starts: (P, widest group) where each row of each block begins in ``values``.
        values: the blocks' numbers, row by row, followed by as many zeros as the widest group has choices.
    """

    first: IntArray
    second: IntArray
    starts: IntArray
    values: FloatArray


def pair_blocks(problem: ChoiceProblem) -> PairBlocks:
    """The blocks of ``pairs`` with any nonzero value, each pair of groups once."""
    if problem.pairs is None:
        raise InvalidAssignment("the problem has no pair energies")
    return blocks_of(problem.pairs, problem)


def blocks_of(pairs: sparse.csr_array, problem: ChoiceProblem) -> PairBlocks:
    """The blocks of a symmetric (V, V) matrix with any nonzero value, each pair of groups once."""
    sizes, groups = problem.group_sizes, problem.num_groups
    owner = np.repeat(np.arange(groups), sizes)
    entries = pairs.tocoo()
    upper = entries.row < entries.col
    rows, columns, values = entries.row[upper], entries.col[upper], entries.data[upper]
    keys, block = np.unique(owner[rows] * groups + owner[columns], return_inverse=True)
    first, second = keys // groups, keys % groups
    begins = np.concatenate([[0], np.cumsum(sizes[first] * sizes[second])])
    widest = int(sizes.max())
    local = np.minimum(np.arange(widest), sizes[first][:, None] - 1)
    starts = begins[:-1, None] + local * sizes[second][:, None]
    flat = np.zeros(int(begins[-1]) + widest)
    inner = problem.group_offsets[:-1]
    row, column = rows - inner[first[block]], columns - inner[second[block]]
    flat[begins[block] + row * sizes[second[block]] + column] = values
    return PairBlocks(first, second, starts, flat)


def _check_size(problem: ChoiceProblem) -> None:
    constants = 0 if problem.factor is None else problem.factor.size
    owner, sizes = np.repeat(np.arange(problem.num_groups), problem.group_sizes), problem.group_sizes
    for matrix in (problem.pairs, *(problem.pair_costs or ())):
        if matrix is not None:
            rows = np.repeat(owner, np.diff(matrix.indptr))
            blocks = np.unique(rows * problem.num_groups + owner[matrix.indices])
            constants += int((sizes[blocks // problem.num_groups] * sizes[blocks % problem.num_groups]).sum()) // 2
    if constants > LARGEST_CONSTANTS:
        raise ProblemTooLarge(
            f"a nonlinear model of this problem would hold {constants:,} constants; at most {LARGEST_CONSTANTS:,} "
            "are built. Reduce the factor's rank, or use the solver 'annealer'"
        )


@dataclass(frozen=True, eq=False)
class NonlinearDecoder:
    """Reads assignments from the states of a solved model, or from its integers.

    Attributes:
        problem: that was encoded.
    """

    problem: ChoiceProblem

    def __call__(self, samples: Any) -> Decoded:
        """Assignments of every state of the model, or of an array (G,) or (N, G) of integers.

        Integers out of range, which only a faulty solver returns, are clipped and counted as invalid.

        Raises:
            InvalidAssignment: when the number of groups differs, or a value is not an integer.
        """
        rows = np.asarray(_integers_of(samples) if hasattr(samples, "iter_decisions") else samples)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.problem.num_groups:
            raise InvalidAssignment(
                f"samples of this model have {self.problem.num_groups} integers, one per group; got shape {rows.shape}"
            )
        rounded = np.rint(rows.astype(np.float64))
        if not np.array_equal(rounded, rows):
            raise InvalidAssignment("samples of a nonlinear model are integers; got fractions")
        valid = np.clip(rounded, 0, self.problem.group_sizes - 1)
        return Decoded(valid.astype(np.int64), (valid != rounded).sum(axis=-1))


def _integers_of(model: Model) -> FloatArray:
    """(N, G) values of the model's integers in each of its states that has been set."""
    integers: Any = next(model.iter_decisions())
    # A solver may return the states of symbols one by one; unset states are skipped.
    rows = [integers.state(i) for i in range(model.states.size()) if integers.has_state(i)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), -1)

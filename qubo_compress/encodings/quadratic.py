"""Pair energies as one matrix, dense or sparse depending on how many there are, and models built from it."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import dimod
import numpy as np
from scipy import sparse

from qubo_compress.errors import ProblemTooLarge
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray

LARGEST_COUPLINGS = 100_000_000
"""Most couplings of a model: at a peak of about 70 bytes each, 7 GB."""

_DENSE_SHARE = 0.05
"""Above this share of stored pairs, dense arrays are faster than sparse ones."""

PairEnergies: TypeAlias = FloatArray | sparse.csr_array
"""(V, V) symmetric pair energies of choices, zero within groups."""


def pair_energies(problem: ChoiceProblem, dense: bool | None = None) -> PairEnergies:
    """(V, V) pair energies, multiplied out when the problem has a factor.

    Args:
        problem: the problem.
        dense: whether to return a dense array; None decides by the share of stored pairs.

    Raises:
        ProblemTooLarge: when there would be more couplings than :data:`LARGEST_COUPLINGS`.
    """
    total = problem.num_choices
    if dense is None:
        dense = _mostly_coupled(problem)
    refuse_too_many(problem, dense)
    if problem.structure == "factor" and problem.factor is not None:
        factor = problem.factor.astype(np.float64)
        gram: FloatArray = factor @ factor.T
        for start, stop in pairwise(problem.group_offsets):
            gram[start:stop, start:stop] = 0.0
        return gram if dense else sparse.csr_array(gram)
    if problem.pairs is None:
        return np.zeros((total, total)) if dense else sparse.csr_array((total, total))
    return problem.pairs.toarray() if dense else problem.pairs


def with_pairs(pairs: PairEnergies, more: sparse.csr_array | None) -> PairEnergies:
    """The sum of pair energies; dense if the first ones are."""
    if more is None:
        return pairs
    return pairs + more.toarray() if isinstance(pairs, np.ndarray) else sparse.csr_array(pairs + more)


def refuse_too_many(problem: ChoiceProblem, dense: bool | None = None) -> None:
    """Raise :class:`ProblemTooLarge` if :func:`pair_energies` would, before building anything."""
    if dense is None:
        dense = _mostly_coupled(problem)
    everything = dense or problem.structure == "factor"
    couplings = problem.num_choices**2 // 2 if everything else _stored(problem) // 2
    if couplings > LARGEST_COUPLINGS:
        raise ProblemTooLarge(
            f"a quadratic model of this problem would take about {couplings:,} couplings; at most "
            f"{LARGEST_COUPLINGS:,} are built. Use a solver that reads the factor itself, such as 'annealer'"
        )


def _mostly_coupled(problem: ChoiceProblem) -> bool:
    return problem.structure == "factor" or _stored(problem) > _DENSE_SHARE * problem.num_choices**2


def _stored(problem: ChoiceProblem) -> int:
    """Stored pair energies, and pair costs, which prices make pair energies."""
    costs = sum(matrix.nnz for matrix in problem.pair_costs or () if matrix is not None)
    return int(costs) + (0 if problem.pairs is None else int(problem.pairs.nnz))


def coupling_sums(pairs: PairEnergies) -> FloatArray:
    """(V,) sum of the magnitudes of every choice's pair energies."""
    return np.asarray(abs(pairs).sum(axis=1), dtype=np.float64).ravel()


def binary_model(linear: FloatArray, pairs: PairEnergies, offset: float) -> dimod.BinaryQuadraticModel:
    """Linear . x + 1/2 x . pairs x + offset over the bits 0, 1, ...; the diagonal of ``pairs`` is ignored."""
    if isinstance(pairs, np.ndarray):
        bqm = dimod.BinaryQuadraticModel(linear.size, dimod.BINARY)
        if linear.size:
            bqm.add_linear_from_array(np.ascontiguousarray(linear))  # type: ignore[arg-type]
            bqm.add_quadratic_from_dense(np.triu(pairs, k=1))
        bqm.offset += offset
        return bqm
    upper = sparse.triu(pairs, k=1).tocoo()
    return dimod.BinaryQuadraticModel.from_numpy_vectors(
        np.array(linear, dtype=np.float64), (upper.row, upper.col, upper.data), offset, dimod.BINARY
    )


def energy_spread(problem: ChoiceProblem) -> float:
    """An upper bound on the range of assignments' energies, from the range of every term."""
    starts = problem.group_offsets[:-1]
    pairs = pair_energies(problem, dense=None if problem.structure != "factor" else True)
    own = np.maximum.reduceat(problem.linear, starts) - np.minimum.reduceat(problem.linear, starts)
    if isinstance(pairs, np.ndarray):
        largest = np.maximum.reduceat(np.abs(pairs), starts, axis=1).sum(axis=1)
    else:
        largest = coupling_sums(pairs)
    return float(own.sum() + np.maximum.reduceat(largest, starts).sum())

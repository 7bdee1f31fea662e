"""The input of the annealer's kernels: one choice problem as plain arrays, in one of three forms."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.kernel_arguments import KernelArguments
from qubo_compress.problem.choice_problem import ChoiceProblem, FactorArray, FloatArray, IntArray
from qubo_compress.solvers.annealer.cost_rows import make_cost_rows

DENSE, SPARSE, FACTOR = 0, 1, 2

_DENSE_BYTES = 256 * 1024**2
"""Largest dense table."""
_FLOOR_ENTRIES = 2**22
"""Most entries of ``floors``."""
_NEAR_GROUPS = 8192
"""Most groups for ``near``, which takes a byte per pair."""
_CHANGES_PER_VISIT = 0.3
"""Share of heat-bath visits that change the choice, averaged over a cooling run; only compares the forms' costs."""


@dataclass(frozen=True, eq=False)
class Tables(KernelArguments):
    """A choice problem for the kernels; arrays that a form does not use have size zero.

    Attributes:
        form: DENSE (``dense`` holds Q), SPARSE (``indptr``, ``indices``, ``data`` hold Q) or FACTOR.
        linear: (V,) energy of each choice on its own.
        offsets: (G + 1,) first choice of each group.
        costs: (V, B), transposed so that the costs of one choice are contiguous; without pair costs.
        room: (B,) limits less fixed costs.
        dense: (V, V) float32.
        indptr: (V + 1,) of the CSR rows, columns sorted.
        indices: columns of the CSR rows.
        data: values of the CSR rows.
        factor: (V, r) float32.
        order: (V,) the choices of each group by rising cost under the first budget.
        floors: (G, V) least pair energy of a choice with any choice of a group; empty for FACTOR and if too large.
        near: (G, G) whether two groups are coupled at all, for SPARSE; else empty.
        cost_starts: (V + 1,) first pair cost of each choice; this and the next two as in ``CostRows``.
        cost_partners: (n,) the other choices of the pair costs; empty if there are none.
        cost_values: (n, B) the pair costs.
    """

    form: int
    linear: FloatArray
    offsets: IntArray
    costs: IntArray
    room: IntArray
    dense: npt.NDArray[np.float32]
    indptr: IntArray
    indices: npt.NDArray[np.int32]
    data: FloatArray
    factor: npt.NDArray[np.float32]
    order: IntArray
    floors: npt.NDArray[np.float32]
    near: npt.NDArray[np.bool_]
    cost_starts: IntArray
    cost_partners: npt.NDArray[np.int32]
    cost_values: IntArray

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return self.offsets.size - 1

    @property
    def largest_group(self) -> int:
        """Most choices in any group."""
        return int(np.diff(self.offsets).max())

    @property
    def row_cost(self) -> int:
        """Multiplications per choice in a heat-bath visit."""
        return max(1, self.factor.shape[1]) if self.form == FACTOR else 1


def make_tables(problem: ChoiceProblem) -> Tables:
    """Lay a problem out in the form in which a sweep is cheapest.

    A factor is multiplied out if the result is small and a field update (V additions per change) beats
    inner products (K r multiplications per visit).
    """
    total = problem.num_choices
    arrays: dict[str, Any] = {
        "dense": np.zeros((0, 0), dtype=np.float32),
        "indptr": np.zeros(total + 1, dtype=np.int64),
        "indices": np.zeros(0, dtype=np.int32),
        "data": np.zeros(0),
        "factor": np.zeros((0, 0), dtype=np.float32),
        "floors": np.zeros((0, 0), dtype=np.float32),
        "near": np.zeros((0, 0), dtype=np.bool_),
    }
    form = SPARSE
    fits = 4 * total**2 <= _DENSE_BYTES
    if problem.factor is not None:
        visit = problem.num_choices / problem.num_groups * problem.factor.shape[1]
        if fits and _CHANGES_PER_VISIT * total < visit:
            form, arrays["dense"] = DENSE, _gram(problem.factor, problem.group_offsets)
        else:
            form, arrays["factor"] = FACTOR, problem.factor
    elif problem.pairs is not None:
        if fits and problem.pairs.nnz > 0.2 * total**2:
            form, arrays["dense"] = DENSE, problem.pairs.toarray().astype(np.float32)
        else:
            rows = problem.pairs.sorted_indices() if not problem.pairs.has_sorted_indices else problem.pairs
            arrays["indptr"] = rows.indptr.astype(np.int64)
            arrays["indices"] = rows.indices.astype(np.int32)
            arrays["data"] = rows.data
    if form == DENSE and problem.num_groups * total <= _FLOOR_ENTRIES:
        arrays["floors"] = np.minimum.reduceat(arrays["dense"], problem.group_offsets[:-1], axis=0)
    if form == SPARSE and problem.num_groups <= _NEAR_GROUPS:
        arrays["near"] = _coupled_groups(problem)
    rows = make_cost_rows(problem)
    return Tables(
        form=form,
        linear=problem.linear,
        offsets=problem.group_offsets,
        costs=np.ascontiguousarray(problem.costs.T),
        room=problem.limits - problem.fixed_costs,
        order=_by_cost(problem),
        cost_starts=rows.cost_starts,
        cost_partners=rows.cost_partners,
        cost_values=rows.cost_values,
        **arrays,
    )


def _by_cost(problem: ChoiceProblem) -> IntArray:
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    if problem.num_budgets == 0:
        return np.arange(problem.num_choices)
    return np.lexsort((problem.costs[0], group)).astype(np.int64)


def _coupled_groups(problem: ChoiceProblem) -> npt.NDArray[np.bool_]:
    near = np.zeros((problem.num_groups, problem.num_groups), dtype=np.bool_)
    if problem.pairs is not None:
        group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
        near[
            group[np.repeat(np.arange(problem.num_choices), np.diff(problem.pairs.indptr))],
            group[problem.pairs.indices],
        ] = True
    return near


def _gram(factor: FactorArray, offsets: IntArray) -> npt.NDArray[np.float32]:
    """All inner products, with those inside a group set to zero."""
    gram = factor @ factor.T
    for start, stop in itertools.pairwise(offsets):
        gram[start:stop, start:stop] = 0.0
    return np.asarray(gram, dtype=np.float32)

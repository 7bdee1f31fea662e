"""Choice problems recovered from the models that clients send, and answered by our own annealer."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import dimod
import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound
from qubo_compress.solvers.annealer.annealer import Annealer, warm_up
from qubo_compress.testing.loopback_leap.tasks import Clock, Task

_SLICE = 1.0
"""Seconds per call of the annealer, which cannot be cancelled in between."""
_LEAST_SLICE = 0.05
_MOST_SAMPLES = 20
_FRACTION_DIGITS = 10**6
"""Costs that are not integers are rounded up to this fraction of the largest one."""


@dataclass(frozen=True)
class Recovered:
    """A choice problem, and the variable of each of its choices."""

    problem: ChoiceProblem
    variables: list[Hashable]

    def rows(self, assignments: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int8]:
        """(N, V) samples of the model, zeros and ones, from assignments."""
        rows = np.zeros((len(assignments), len(self.variables)), dtype=np.int8)
        for row, assignment in zip(rows, assignments, strict=True):
            row[self.problem.selected(assignment)] = 1
        return rows


def anneal(problem: ChoiceProblem, clock: Clock, task: Task) -> list[npt.NDArray[np.int64]]:
    """Good distinct feasible assignments, best first; empty if none was found."""
    found: dict[bytes, tuple[float, npt.NDArray[np.int64]]] = {}
    tried = False
    # At least once: reading a large model may have taken all of the time.
    while not (tried and clock.left() < _LEAST_SLICE) and not task.stopped.is_set():
        tried, seconds = True, min(max(clock.left(), _LEAST_SLICE), _SLICE)
        try:
            solution = solve(problem, Annealer(threads=1), time_limit=seconds, seed=task.seed)
        except InfeasibleBudget:
            break
        except NoFeasibleFound:
            continue
        for one in (solution, *solution.pool):
            found[one.assignment.tobytes()] = (one.energy, one.assignment)
        if solution.status == "optimal":
            break
    best = sorted(found.values(), key=lambda pair: pair[0])
    return [assignment for _, assignment in best[:_MOST_SAMPLES]]


def prepare() -> None:
    """Compile the annealer, or load it from the cache, so that no problem's time is spent on it."""
    warm_up()


def from_constrained(cqm: dimod.ConstrainedQuadraticModel) -> Recovered | None:
    """The choice problem behind a constrained model, or None if it has another form.

    The form: binary variables, each in exactly one discrete constraint, and inequalities, linear or quadratic.
    """
    if cqm.num_soft_constraints() or any(cqm.vartype(v) is not dimod.BINARY for v in cqm.variables):
        return None
    groups = [list(cqm.constraints[label].lhs.variables) for label in cqm.discrete]
    variables = [v for group in groups for v in group]
    if not groups or len(variables) != len(cqm.variables):
        return None
    number = {v: i for i, v in enumerate(variables)}
    offsets = np.cumsum([0, *map(len, groups)])
    budgets = []
    for label, constraint in cqm.constraints.items():
        if label in cqm.discrete:
            continue
        if constraint.sense is dimod.sym.Sense.Eq:
            return None
        budget = _budget(constraint, number, offsets)
        if budget is None:
            return None
        budgets.append(budget)
    objective = cqm.objective
    linear = np.zeros(len(variables))
    for v, bias in objective.iter_linear():
        linear[number[v]] = bias
    triples = np.fromiter(
        ((number[u], number[v], bias) for u, v, bias in objective.iter_quadratic()),
        dtype=[("row", np.int64), ("column", np.int64), ("bias", np.float64)],
    )
    problem = ChoiceProblem(
        linear=linear,
        group_offsets=offsets,
        costs=np.array([costs for costs, _, _ in budgets], dtype=np.int64).reshape(len(budgets), len(variables)),
        limits=np.array([limit for _, limit, _ in budgets], dtype=np.int64),
        pair_costs=tuple(pair_costs for _, _, pair_costs in budgets),
        pairs=symmetric_pairs(triples["row"], triples["column"], triples["bias"], offsets),
        constant=float(objective.offset),
    )
    return Recovered(problem, variables)


def from_discrete(dqm: dimod.DiscreteQuadraticModel) -> ChoiceProblem:
    """The choice problem of a discrete model: a group per variable, and no budget."""
    vectors = dqm.to_numpy_vectors(return_offset=True)
    total = len(vectors.linear_biases)
    offsets = np.append(np.asarray(vectors.case_starts, dtype=np.int64), total)
    quadratic = vectors.quadratic
    return ChoiceProblem(
        linear=np.asarray(vectors.linear_biases, dtype=np.float64),
        group_offsets=offsets,
        costs=np.zeros((0, total), dtype=np.int64),
        limits=np.zeros(0, dtype=np.int64),
        pairs=symmetric_pairs(quadratic.row_indices, quadratic.col_indices, quadratic.biases, offsets),
        constant=float(dqm.offset),
    )


def symmetric_pairs(
    rows: npt.ArrayLike, columns: npt.ArrayLike, biases: npt.ArrayLike, offsets: npt.NDArray[np.int64]
) -> sparse.csr_array | None:
    """(V, V) both triangles of pair energies given once each; pairs within a group never occur."""
    rows, columns = np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64)
    biases = np.asarray(biases, dtype=np.float64)
    group = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    keep = (group[rows] != group[columns]) & (biases != 0)
    if not keep.any():
        return None
    rows, columns, biases = rows[keep], columns[keep], biases[keep]
    total = int(offsets[-1])
    both = (np.concatenate([rows, columns]), np.concatenate([columns, rows]))
    matrix = sparse.csr_array((np.concatenate([biases, biases]), both), shape=(total, total))
    matrix.sum_duplicates()
    return matrix


def _budget(
    constraint: Any, number: dict[Hashable, int], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], int, sparse.csr_array | None] | None:
    """Costs, limit and pair costs, as integers: a group's least cost is paid in any case.

    None for pair costs that are not integers, which could not be rounded to the safe side.
    """
    costs = np.zeros(int(offsets[-1]))
    for v, bias in constraint.lhs.iter_linear():
        costs[number[v]] = bias
    sign = -1.0 if constraint.sense is dimod.sym.Sense.Ge else 1.0
    limit = sign * (constraint.rhs - constraint.lhs.offset)
    costs *= sign
    terms = [(number[u], number[v], sign * bias) for u, v, bias in constraint.lhs.iter_quadratic()]
    first, second, biases = zip(*terms, strict=True) if terms else ((), (), ())
    pairs = symmetric_pairs(first, second, biases, offsets)
    if pairs is not None and not ((pairs.data == np.round(pairs.data)).all() and (costs == np.round(costs)).all()):
        return None
    least = np.minimum.reduceat(costs, offsets[:-1])
    costs, limit = costs - np.repeat(least, np.diff(offsets)), limit - least.sum()
    if not (costs == np.round(costs)).all():
        scale = _FRACTION_DIGITS / costs.max()
        costs, limit = np.ceil(costs * scale), limit * scale
    whole = int(np.floor(limit + 1e-9))
    return costs.astype(np.int64), whole, None if pairs is None else pairs.astype(np.int64)

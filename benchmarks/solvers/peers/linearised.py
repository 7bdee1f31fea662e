"""A choice problem as a linear programme over zeros and ones: what CP-SAT and HiGHS are given.

The costs are the whole numbers of the library's cost network: energies rounded down to multiples of a unit, so that no
cost, times the unit, is above the energy, and a lower bound on costs is one on energies.

Pairs of groups are written in one of two ways, whichever suits their table:

* few distinct costs (conflicts, interference, two choices each): for each cost c one variable v, which carries the
  difference to the next lower cost, and for each choice i of the first group a row x_i + sum of y_j over the choices j
  that cost at least c beside i <= 1 + v. As one y_j is chosen, v is 1 where it must be; the same as a clause says: not
  x_i, or v, or one of the y_j that cost less;
* many (assignment): the local marginal polytope, one variable for each pair of choices, whose sums over rows and
  columns are the choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.energy_scale import StandardProblem, standardise
from qubo_compress.solvers.exact.cost_network import CostNetwork, cost_network

CHOICES_PER_COST = 4
"""A table is written by its costs if both groups have this many choices for each, or if there is just one cost."""


@dataclass(frozen=True, eq=False)
class Linearised:
    """Minimise costs . x with low <= matrix x <= high, all x zero or one.

    Attributes:
        network: the costs before they were linearised.
        standard: the scale of its energies.
        costs: (N,) whole and not negative; the first V are the choices'.
        matrix: (M, N) whole numbers.
        low: (M,) ``-2**62`` for no limit.
        high: (M,) ``2**62`` for no limit.
        clauses: row -> x_i, and the variables of which one must be 1 if it is: the same, for solvers of clauses.
        groups: number of groups; their equations are the first rows.
        tables: number of coupled pairs of groups.
    """

    network: CostNetwork
    standard: StandardProblem
    costs: IntArray
    matrix: sparse.csr_array
    low: IntArray
    high: IntArray
    clauses: dict[int, tuple[int, IntArray]]
    groups: int
    tables: int

    def energy(self, cost: int) -> float:
        """A lower bound on the energies of all assignments of at least this cost."""
        return self.standard.energy(self.network.energy(cost))

    @property
    def resolution(self) -> float:
        """Energy of a cost of one."""
        return self.standard.unit * self.network.unit


NO_LIMIT = 2**62


@dataclass
class _Rows:
    """Rows of a matrix while they are made."""

    rows: list[IntArray]
    columns: list[IntArray]
    values: list[IntArray]
    low: list[IntArray]
    high: list[IntArray]
    clauses: dict[int, tuple[int, IntArray]]
    count: int = 0

    def add(self, rows: IntArray, columns: IntArray, values: IntArray | int, low: IntArray, high: IntArray) -> None:
        """Add ``low.size`` rows; ``rows`` counts from the first of them."""
        self.rows.append(np.asarray(rows).ravel() + self.count)
        self.columns.append(np.asarray(columns).ravel())
        self.values.append(np.broadcast_to(values, np.shape(rows)).ravel().astype(np.int64))
        self.low.append(low)
        self.high.append(high)
        self.count += low.size


def linearised(problem: ChoiceProblem, deadline: float) -> Linearised | None:
    """The programme of a problem; None if the deadline passed before it was complete.

    Args:
        problem: without pair costs.
        deadline: value of ``time.perf_counter``.
    """
    standard = standardise(problem)
    network = cost_network(standard.problem, None, deadline)
    if network is None:
        return None
    sizes, offsets = network.sizes, np.concatenate([[0], np.cumsum(network.sizes)])
    total, groups = int(offsets[-1]), sizes.size
    made = _Rows([], [], [], [], [], {})
    ones = np.ones(groups, dtype=np.int64)
    made.add(np.repeat(np.arange(groups), sizes), np.arange(total), 1, ones, ones)
    costs, column, start = [network.alone], total, 0
    for g, h in network.coupled.tolist():
        shape = int(sizes[g]), int(sizes[h])
        table = network.tables[start : start + shape[0] * shape[1]].reshape(shape)
        start += table.size
        added = _pair(made, table, int(offsets[g]), int(offsets[h]), column)
        costs.append(added)
        column += added.size
    for weights, room in zip(network.weights, network.room, strict=True):
        used = np.flatnonzero(weights)
        made.add(np.zeros(used.size, dtype=np.int64), used, weights[used], np.array([-NO_LIMIT]), np.array([int(room)]))
    matrix = sparse.csr_array(
        (np.concatenate(made.values), (np.concatenate(made.rows), np.concatenate(made.columns))),
        shape=(made.count, column),
    )
    return Linearised(
        network, standard, np.concatenate(costs), matrix, np.concatenate(made.low), np.concatenate(made.high),
        made.clauses, groups, len(network.coupled),
    )  # fmt: skip


def _pair(made: _Rows, table: IntArray, first: int, second: int, column: int) -> IntArray:
    """Add the rows of one table; the costs of its new variables, which begin at ``column``."""
    distinct = np.unique(table[table > 0])
    if distinct.size <= max(1, min(table.shape) // CHOICES_PER_COST):
        for number, cost in enumerate(distinct.tolist()):
            _violations(made, table >= cost, (first, second, column + number))
        return np.diff(distinct, prepend=0)
    rows, columns = table.shape
    places = column + np.arange(table.size).reshape(table.shape)
    for axis, (size, start) in enumerate(((rows, first), (columns, second))):
        lines = np.broadcast_to(np.arange(size)[:, None] if axis == 0 else np.arange(size), table.shape)
        zeros = np.zeros(size, dtype=np.int64)
        made.add(
            np.concatenate([lines.ravel(), np.arange(size)]),
            np.concatenate([places.ravel(), start + np.arange(size)]),
            np.concatenate([np.ones(table.size, dtype=np.int64), -np.ones(size, dtype=np.int64)]), zeros, zeros,
        )  # fmt: skip
    return table.ravel()


def _violations(made: _Rows, costly: np.ndarray, places: tuple[int, int, int]) -> None:
    """x_i + sum of y_j over what is costly beside i - v <= 1, for every i that has such a j."""
    first, second, variable = places
    used = np.flatnonzero(costly.any(axis=1))
    for line, i in enumerate(used.tolist()):
        others = second + np.flatnonzero(~costly[i])
        made.clauses[made.count + line] = first + i, np.append(others, variable)
    line, beside = np.nonzero(costly[used])
    own = np.arange(used.size)
    made.add(
        np.concatenate([own, line, own]),
        np.concatenate([first + used, second + beside, np.full(used.size, variable)]),
        np.concatenate([np.ones(used.size + line.size, dtype=np.int64), -np.ones(used.size, dtype=np.int64)]),
        np.full(used.size, -NO_LIMIT), np.ones(used.size, dtype=np.int64),
    )  # fmt: skip


def assignment_of(x: np.ndarray, sizes: IntArray) -> IntArray:
    """(G,) the choices with the largest values."""
    ends = np.cumsum(sizes)
    return np.array([int(np.argmax(x[end - size : end])) for end, size in zip(ends, sizes, strict=True)])

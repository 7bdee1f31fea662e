"""A choice problem as a cost function network: whole costs on groups and pairs of groups, whole weights in budgets.

Energies become multiples of a stated unit, each rounded down: no assignment's cost, times the unit, is above its
energy, so a lower bound on costs is one on energies. An energy is at most one unit per table above its cost. The unit
is a power of two and so fine that this difference does not spoil a proof. Weights of the budgets are exact.

A table's entries above the largest difference that any better assignment could have are replaced by it: no cost rises,
and no better assignment changes its cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.energy_scale import OPTIMAL_GAP, energy_scale
from qubo_compress.solvers.exact.integer_programming import CoupledTable, coupled_tables

MOST_NETWORK_ENTRIES = 4_000_000
"""Most entries of all tables of pairs of groups."""

_LARGEST_TOTAL = 2**52
"""Largest possible cost: doubles, in which toulbar2 reports its bound, are then exact."""

_LARGEST_SUM = 2**57
"""Largest possible sum of all tables' largest costs: a quarter of toulbar2's infinity."""

_FINEST, _COARSEST = 44, 20
"""Binary digits of a unit, as a share of the typical difference between choices."""

_ROUNDING_SHARE = 0.1
"""Share of an optimal gap that the rounding of costs may take."""


@dataclass(frozen=True, eq=False)
class CostNetwork:
    """Whole costs and weights; every table has a least cost of zero.

    Attributes:
        unit: energy of a cost of one.
        base: energy of a cost of zero, as a number of units.
        sizes: (G,) choices of each group.
        alone: (V,) costs of the choices.
        coupled: (P, 2) groups of each table, the lower first.
        tables: costs of the pairs of choices, table after table, each row by row.
        weights: (B, V) reduced costs of the choices under the budgets.
        room: (B,) what they may add up to.
        rounding: deducted from bounds: energies are sums in floating point.
    """

    unit: float
    base: int
    sizes: IntArray
    alone: IntArray
    coupled: IntArray
    tables: IntArray
    weights: IntArray
    room: IntArray
    rounding: float

    def cost(self, assignment: IntArray) -> int:
        """The cost of an assignment, without the base."""
        offsets = np.cumsum(self.sizes) - self.sizes
        total = int(self.alone[offsets + assignment].sum())
        if self.coupled.size:
            lower, upper = self.coupled.T
            ends = np.cumsum(self.sizes[lower] * self.sizes[upper])
            starts = ends - self.sizes[lower] * self.sizes[upper]
            total += int(self.tables[starts + assignment[lower] * self.sizes[upper] + assignment[upper]].sum())
        return total

    def fits(self, assignment: IntArray) -> bool:
        """Whether an assignment meets every budget."""
        offsets = np.cumsum(self.sizes) - self.sizes
        return bool((self.weights[:, offsets + assignment].sum(axis=1) <= self.room).all())

    def energy(self, cost: int) -> float:
        """A lower bound on the energies of all assignments of at least this cost."""
        return (self.base + cost) * self.unit - self.rounding


def network_entries(problem: ChoiceProblem) -> int:
    """Entries of the tables that the network of a problem needs; for stored pairs, at most this many."""
    sizes = problem.group_sizes.astype(np.float64)
    if problem.factor is not None:
        return int((sizes.sum() ** 2 - (sizes**2).sum()) / 2)
    if problem.pairs is None or problem.pairs.nnz == 0:
        return 0
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    entries = problem.pairs.tocoo()
    keys = np.unique(group[entries.row] * problem.num_groups + group[entries.col])
    return int((sizes[keys // problem.num_groups] * sizes[keys % problem.num_groups]).sum()) // 2


def cost_network(problem: ChoiceProblem, first: IntArray | None, deadline: float) -> CostNetwork | None:
    """The network of a standardised problem; None if the deadline passed before it was complete.

    Args:
        problem: the problem, at most :data:`MOST_NETWORK_ENTRIES` entries.
        first: a feasible assignment, or None; only better ones need to keep their costs.
        deadline: value of ``time.perf_counter``.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=4, choices=3, seed=0)
        >>> network = cost_network(problem, None, np.inf)
        >>> picks = np.array([2, 0, 1, 2])
        >>> bool(0 <= problem.energy(picks) - network.energy(network.cost(picks)) < 1e-6)
        True
    """
    blocks: list[CoupledTable] = []
    for block in _gram_tables(problem) if problem.factor is not None else coupled_tables(problem):
        if time.perf_counter() >= deadline:
            return None
        blocks.append(block)
    spans = zip(problem.group_offsets[:-1], problem.group_offsets[1:], strict=True)
    parts = [problem.linear[a:b] for a, b in spans] + [block.values.ravel() for block in blocks]
    bits = _bits(problem, first, parts)
    whole = [np.floor(np.ldexp(part, bits)).astype(np.int64) for part in parts]
    costs = [part - part.min() for part in whole]
    weights, room = _weights(problem)
    network = CostNetwork(
        unit=math.ldexp(1.0, -bits),
        base=sum(int(part.min()) for part in whole),
        sizes=problem.group_sizes,
        alone=np.concatenate(costs[: problem.num_groups]),
        coupled=_groups_of(problem, blocks),
        tables=np.concatenate([np.zeros(0, dtype=np.int64), *costs[problem.num_groups :]]),
        weights=weights,
        room=room,
        rounding=energy_scale(problem).rounding,
    )
    if first is None:
        return network
    cap = network.cost(first) + 1
    return replace(network, alone=np.minimum(network.alone, cap), tables=np.minimum(network.tables, cap))


def _groups_of(problem: ChoiceProblem, blocks: list[CoupledTable]) -> IntArray:
    """(P, 2) the groups of each table."""
    firsts = np.array([[block.first, block.second] for block in blocks], dtype=np.int64).reshape(-1, 2)
    return np.searchsorted(problem.group_offsets, firsts).astype(np.int64)


def _gram_tables(problem: ChoiceProblem) -> Iterator[CoupledTable]:
    """The pair energies of a factor, for all pairs of groups."""
    assert problem.factor is not None  # noqa: S101 - the caller checked
    rows, offsets = problem.factor.astype(np.float64), problem.group_offsets
    for g in range(problem.num_groups - 1):
        start, stop = offsets[g], offsets[g + 1]
        gram = rows[start:stop] @ rows[stop:].T
        for h in range(g + 1, problem.num_groups):
            a, b = offsets[h] - stop, offsets[h + 1] - stop
            yield CoupledTable(int(start), int(offsets[h]), gram[:, a:b])


def _bits(problem: ChoiceProblem, first: IntArray | None, parts: list[FloatArray]) -> int:
    """Binary digits of the unit: enough for a proof, and so few that no cost is too large."""
    scale = energy_scale(problem)
    reach = scale.reach(problem.energy(first)) if first is not None else 0.1 * scale.typical
    wanted = len(parts) / max(_ROUNDING_SHARE * OPTIMAL_GAP * reach, 2.0**-_FINEST)
    bits = min(_FINEST, max(_COARSEST, math.ceil(math.log2(max(wanted, 1.0)))))
    largest = max(float(np.abs(part).max()) for part in parts)
    spread = sum(float(part.max() - part.min()) for part in parts)
    if first is not None:  # larger differences are replaced
        spread = min(spread, max(0.0, problem.energy(first) - sum(float(part.min()) for part in parts)))
    limit = max(spread, largest * 2.0**-8)
    most = min(_LARGEST_TOTAL / 4, _LARGEST_SUM / len(parts))
    return bits if limit == 0.0 else min(bits, math.floor(math.log2(most / limit)))


def _weights(problem: ChoiceProblem) -> tuple[IntArray, IntArray]:
    """(B, V) costs less each group's least, divided by their common divisor, and the room for them; exact."""
    starts = problem.group_offsets[:-1]
    least = np.minimum.reduceat(problem.costs, starts, axis=1) if problem.num_budgets else problem.costs[:, :0]
    weights = problem.costs - np.repeat(least, problem.group_sizes, axis=1) if problem.num_budgets else problem.costs
    room = problem.limits - problem.fixed_costs - least.sum(axis=1)
    divisors = np.maximum(1, np.gcd.reduce(weights, axis=1)) if problem.num_budgets else np.ones(0, dtype=np.int64)
    weights, room = weights // divisors[:, None], room // divisors
    # A choice that exceeds the room by one fits no better than one that exceeds it by more.
    return np.minimum(weights, np.maximum(0, room + 1)[:, None]), room

"""Pair costs for kernels: one row per choice, the pair costs of all budgets side by side.

A walker holds the cost of every choice beside the present choices of all other groups, as it holds energies in fields.
So a single change costs the difference of two entries, with pair costs or without, and only a change that is made has
to visit the partners of two choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled_inline
from qubo_compress._internal.kernel_arguments import KernelArguments
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray


class WithCostRows(Protocol):
    """Kernel arguments that hold pair costs: the fields of :class:`CostRows`."""

    @property
    def cost_starts(self) -> IntArray:
        """(V + 1,) first entry of each choice."""

    @property
    def cost_partners(self) -> npt.NDArray[np.int32]:
        """(n,) the other choice of each entry."""

    @property
    def cost_values(self) -> IntArray:
        """(n, B) pair costs."""


@dataclass(frozen=True, eq=False)
class CostRows(KernelArguments):
    """The pair costs of a problem; without any, ``cost_partners`` is empty.

    Attributes:
        cost_starts: (V + 1,) first entry of each choice.
        cost_partners: (n,) the other choice of each entry, rising within a row.
        cost_values: (n, B) pair costs of the two choices under every budget.
    """

    cost_starts: IntArray
    cost_partners: npt.NDArray[np.int32]
    cost_values: IntArray


def make_cost_rows(problem: ChoiceProblem) -> CostRows:
    """Lay the pair costs of all budgets out side by side, over the entries that any of them has."""
    total, budgets = problem.num_choices, problem.num_budgets
    if problem.pair_costs is None:
        nothing = np.zeros((0, budgets), dtype=np.int64)
        return CostRows(np.zeros(total + 1, dtype=np.int64), np.zeros(0, dtype=np.int32), nothing)
    entries = [None if matrix is None else matrix.tocoo() for matrix in problem.pair_costs]
    places = [None if entry is None else entry.row * np.int64(total) + entry.col for entry in entries]
    keys = np.unique(np.concatenate([place for place in places if place is not None]))
    values = np.zeros((keys.size, budgets), dtype=np.int64)
    for budget, (entry, place) in enumerate(zip(entries, places, strict=True)):
        if entry is not None and place is not None:
            values[np.searchsorted(keys, place), budget] = entry.data
    starts = np.searchsorted(keys, np.arange(total + 1) * np.int64(total))
    return CostRows(starts.astype(np.int64), (keys % total).astype(np.int32), values)


@compiled_inline
def add_costs(rows: WithCostRows, costs: IntArray, v: int) -> None:
    """Add the pair costs with choice ``v`` to the costs (V, B) of its partners."""
    partners, values = rows.cost_partners, rows.cost_values
    for i in range(rows.cost_starts[v], rows.cost_starts[v + 1]):
        w = partners[i]
        for b in range(values.shape[1]):
            costs[w, b] += values[i, b]


@compiled_inline
def exchange_costs(rows: WithCostRows, costs: IntArray, old: int, new: int) -> None:
    """Account in the costs (V, B) of all partners for a change from one choice to another of its group."""
    partners, values = rows.cost_partners, rows.cost_values
    for i in range(rows.cost_starts[old], rows.cost_starts[old + 1]):
        w = partners[i]
        for b in range(values.shape[1]):
            costs[w, b] -= values[i, b]
    add_costs(rows, costs, new)


@compiled_inline
def pair_cost(rows: WithCostRows, v: int, w: int, b: int) -> int:
    """The pair cost of two choices under budget ``b``."""
    partners = rows.cost_partners
    low, end = rows.cost_starts[v], rows.cost_starts[v + 1]
    high = end
    while low < high:
        middle = (low + high) // 2
        if partners[middle] < w:
            low = middle + 1
        else:
            high = middle
    return rows.cost_values[low, b] if low < end and partners[low] == w else 0


@compiled_inline
def joint_cost(rows: WithCostRows, first: int, old_first: int, second: int, old_second: int, b: int) -> int:
    """What changing two groups at once costs beyond the sum of both changes alone, under budget ``b``."""
    with_new = pair_cost(rows, first, second, b) - pair_cost(rows, first, old_second, b)
    return with_new - pair_cost(rows, old_first, second, b) + pair_cost(rows, old_first, old_second, b)

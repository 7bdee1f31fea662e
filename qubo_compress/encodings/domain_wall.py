"""A wall among K - 1 bits marks one of K choices, which are ordered by cost.

Bits of a group read 1...10...0 and the number of ones is the choice (Chancellor 2019). Neighbouring
choices are one flip apart, and pair energies stay quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.encodings.encoding import BitMap, Couplings, Decoded, Encoding, encodings
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray


@encodings.register
@dataclass(frozen=True)
class DomainWall(Encoding):
    """K - 1 bits for K choices, kept valid by a penalty on every 0 before a 1."""

    name: ClassVar[str] = "domain-wall"
    single_flips: ClassVar[bool] = True

    def num_bits(self, problem: ChoiceProblem) -> int:
        """V - G: one bit fewer than the choices of each group."""
        return problem.num_choices - problem.num_groups

    def bit_map(self, problem: ChoiceProblem) -> BitMap:
        """Choice k of a group is selected by (bit k is set) - (bit k + 1 is set)."""
        order, sizes, starts = by_cost(problem), problem.group_sizes, problem.group_offsets[:-1]
        bit = np.arange(problem.num_choices - problem.num_groups)
        # Bit i of group g stands between the sorted choices i and i + 1 of the group.
        lower = bit + np.repeat(np.arange(problem.num_groups), sizes - 1)
        start = np.zeros(problem.num_choices)
        start[order[starts]] = 1.0
        return BitMap(order[lower + 1], order[lower], start)

    def worst_case(self, problem: ChoiceProblem, coupling_sums: FloatArray, linear: FloatArray) -> FloatArray:
        """More than replacing one choice of the group with another can gain, whatever the other groups select."""
        starts = problem.group_offsets[:-1]
        spread = np.maximum.reduceat(linear, starts) - np.minimum.reduceat(linear, starts)
        return np.asarray(spread + 2.0 * np.maximum.reduceat(coupling_sums, starts), dtype=np.float64)

    def penalty_terms(self, problem: ChoiceProblem, penalties: FloatArray) -> tuple[FloatArray, Couplings, float]:
        """(1 - bit i) * bit (i + 1) for neighbouring bits of a group."""
        groups = np.repeat(np.arange(problem.num_groups), problem.group_sizes - 1)
        first = np.flatnonzero(groups[:-1] == groups[1:]) if groups.size else np.zeros(0, dtype=np.int64)
        weights = penalties[groups[first]]
        linear = np.zeros(groups.size)
        linear[first + 1] = weights
        return linear, Couplings(first, first + 1, -weights), 0.0

    def decode(self, problem: ChoiceProblem, bits: npt.NDArray[np.int8]) -> Decoded:
        """The number of ones, which is also that of the nearest valid pattern if there are several walls."""
        order, starts, groups = by_cost(problem), problem.group_offsets[:-1], problem.num_groups
        owner = np.repeat(np.arange(groups), problem.group_sizes - 1)
        on = (bits > 0).astype(np.int64)
        member = sparse.csr_array(
            (np.ones(owner.size, dtype=np.int64), (np.arange(owner.size), owner)), (owner.size, groups)
        )
        position = on @ member
        same = owner[:-1] == owner[1:]
        broken = ((on[:, 1:] > on[:, :-1]) & same).astype(np.int64) @ member[1:] if owner.size > 1 else 0 * position
        return Decoded(order[starts + position] - starts, (broken > 0).sum(axis=1))


def by_cost(problem: ChoiceProblem) -> IntArray:
    """(V,) global choice numbers, group by group, from the cheapest to the most expensive.

    Several budgets are weighted by their limits; linear energy breaks ties and orders problems without a budget.
    """
    room = np.maximum(1.0, (problem.limits - problem.fixed_costs).astype(np.float64))
    weight = (problem.costs / room[:, None]).sum(axis=0)
    groups = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    return np.lexsort((-problem.linear, weight, groups)).astype(np.int64)

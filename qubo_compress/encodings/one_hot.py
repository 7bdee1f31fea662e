"""One bit per choice; exactly one of a group's bits must be set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from qubo_compress.encodings.encoding import BitMap, Couplings, Decoded, Encoding, encodings
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray


@encodings.register
@dataclass(frozen=True)
class OneHot(Encoding):
    """K bits for K choices, kept valid by penalty * (sum of the group's bits - 1)^2."""

    name: ClassVar[str] = "one-hot"

    def num_bits(self, problem: ChoiceProblem) -> int:
        """V: one bit per choice of every group."""
        return problem.num_choices

    def bit_map(self, problem: ChoiceProblem) -> BitMap:
        """Each bit selects its own choice, so the map is the identity."""
        return BitMap(np.arange(problem.num_choices), None, np.zeros(problem.num_choices))

    def worst_case(self, problem: ChoiceProblem, coupling_sums: FloatArray, linear: FloatArray) -> FloatArray:
        """More than a group can gain from setting a second bit, or from setting none."""
        return np.maximum.reduceat(np.abs(linear) + coupling_sums, problem.group_offsets[:-1])

    def penalty_terms(self, problem: ChoiceProblem, penalties: FloatArray) -> tuple[FloatArray, Couplings, float]:
        """(sum - 1)^2 = 1 - sum + 2 * pairs, for bits."""
        sizes = problem.group_sizes
        starts = problem.group_offsets[:-1]
        rows, columns, values = [], [], []
        for size in np.unique(sizes):  # groups of one size at a time
            first, second = np.triu_indices(size, k=1)
            groups = np.flatnonzero(sizes == size)
            rows.append((starts[groups][:, None] + first).ravel())
            columns.append((starts[groups][:, None] + second).ravel())
            values.append(np.repeat(2.0 * penalties[groups], first.size))
        couplings = Couplings(np.concatenate(rows), np.concatenate(columns), np.concatenate(values))
        return -np.repeat(penalties, sizes), couplings, float(penalties.sum())

    def decode(self, problem: ChoiceProblem, bits: npt.NDArray[np.int8]) -> Decoded:
        """The set bit; if none or several are set, the one of least linear energy among all or the set ones."""
        starts = problem.group_offsets[:-1]
        on = bits > 0
        counts = np.add.reduceat(on, starts, axis=1, dtype=np.int64)
        candidates = on | np.repeat(counts == 0, problem.group_sizes, axis=1)
        ranks = np.empty(problem.num_choices, dtype=np.int64)
        groups = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
        order = np.lexsort((problem.linear, groups))
        ranks[order] = np.arange(problem.num_choices)
        best = np.minimum.reduceat(np.where(candidates, ranks, problem.num_choices), starts, axis=1)
        return Decoded(order[best] - starts, (counts != 1).sum(axis=1))

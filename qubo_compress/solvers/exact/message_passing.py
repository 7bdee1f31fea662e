"""Lower bounds for pair energies by message passing, which moves weight between pairs and single choices.

The bound is the sum over groups of the least single term plus the sum over coupled pairs of groups of
the least pair term; moving weight between them changes no energy but can raise the bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from qubo_compress._internal.compiling import compiled_in_place
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.exact import price_kernels
from qubo_compress.solvers.exact.convex_relaxation import scaled_costs

_LARGEST_BLOCKS = 32_000_000
"""Most entries of coupled blocks (8 bytes each) that are held in memory."""

_PATIENCE = 10


@dataclass(frozen=True, eq=False)
class _BlockMessages:
    """The coupled pairs of groups, each as a dense (choices, choices) block in one flat array."""

    values: FloatArray
    starts: IntArray
    lower: IntArray
    upper: IntArray


def message_bound(problem: ChoiceProblem, seconds: float) -> float:
    """A valid lower bound for a problem with pairs (or none), as tight as the time allows.

    Example:
        >>> problem = ChoiceProblem(
        ...     linear=[0.0, 1.0], group_offsets=[0, 2], costs=[[8, 2]], limits=[4])
        >>> round(message_bound(problem, seconds=1.0), 3)
        0.667
    """
    deadline = time.perf_counter() + seconds
    costs, room, _ = scaled_costs(problem)
    offsets, choices = problem.group_offsets.copy(), np.arange(problem.num_choices)
    singles = problem.linear.copy()
    blocks = _blocks(problem)
    price = np.zeros(room.size)
    charged = price.copy()
    largest = float(np.abs(problem.linear).sum())
    if problem.pairs is not None:
        largest += float(abs(problem.pairs).sum())
    best, stale = -np.inf, 0
    while True:
        # Multipliers can rise or fall: they are recomputed on terms without the present charge.
        free = singles - costs @ charged
        price = charged.copy()
        value = price_kernels.polish_prices(free, offsets, choices, costs, room, price, 4)
        if value == np.inf:
            return np.inf
        singles, charged = free + costs @ price, price
        value += _least_pairs(blocks.values, blocks.starts)
        terms = 2 * blocks.lower.size + problem.num_groups
        with np.errstate(over="ignore"):  # prices grow without limit if hardly anything fits
            magnitude = largest + float(price @ (costs.max(axis=0, initial=0.0) * problem.num_groups + np.abs(room)))
        coupled = blocks.lower.size > 0 or bool(price.any())
        certified = problem.constant + value - (1.2e-16 * (terms + 60) * magnitude if coupled else 0.0)
        stale = 0 if certified > best + 1e-7 * max(abs(best), 1e-9) else stale + 1
        best = max(best, certified)
        if stale >= _PATIENCE or blocks.lower.size == 0 or time.perf_counter() >= deadline:
            return best
        for forward in (True, False):
            _shake_hands(singles, blocks.values, blocks.starts, blocks.lower, blocks.upper, offsets, forward)


def _blocks(problem: ChoiceProblem) -> _BlockMessages:
    empty = np.zeros(0, dtype=np.int64)
    if problem.pairs is None or problem.pairs.nnz == 0:
        return _BlockMessages(np.zeros(0), np.zeros(1, dtype=np.int64), empty, empty)
    offsets, sizes = problem.group_offsets, problem.group_sizes
    group = np.repeat(np.arange(problem.num_groups), sizes)
    rows = np.repeat(np.arange(problem.num_choices), np.diff(problem.pairs.indptr))
    columns, data = problem.pairs.indices, problem.pairs.data
    above = group[rows] < group[columns]
    rows, columns, data = rows[above], columns[above], data[above]
    keys, which = np.unique(group[rows] * problem.num_groups + group[columns], return_inverse=True)
    lower, upper = keys // problem.num_groups, keys % problem.num_groups
    starts = np.concatenate([[0], np.cumsum(sizes[lower] * sizes[upper])]).astype(np.int64)
    values = np.zeros(int(starts[-1]))
    inside = (rows - offsets[lower[which]]) * sizes[upper[which]] + columns - offsets[upper[which]]
    np.add.at(values, starts[which] + inside, data)
    return _BlockMessages(values, starts, lower.astype(np.int64), upper.astype(np.int64))


def fits_in_blocks(problem: ChoiceProblem) -> bool:
    """Whether the coupled blocks of a problem are small enough to be held densely."""
    if problem.pairs is None:
        return True
    return int(_blocks_size(problem)) <= _LARGEST_BLOCKS


def _blocks_size(problem: ChoiceProblem) -> int:
    """Entries of all coupled blocks, counted once for each pair of groups."""
    if problem.pairs is None:
        return 0
    sizes = problem.group_sizes
    group = np.repeat(np.arange(problem.num_groups), sizes)
    rows = np.repeat(group, np.diff(problem.pairs.indptr))
    keys = np.unique(rows * problem.num_groups + group[problem.pairs.indices])
    return int((sizes[keys // problem.num_groups] * sizes[keys % problem.num_groups]).sum()) // 2


@compiled_in_place
def _least_pairs(values: FloatArray, starts: IntArray) -> float:
    total = 0.0
    for e in range(starts.size - 1):
        least = np.inf
        for i in range(starts[e], starts[e + 1]):
            least = values[i] if values[i] < least else least
        total += least
    return total


@compiled_in_place
def _shake_hands(
    singles: FloatArray,
    values: FloatArray,
    starts: IntArray,
    lower: IntArray,
    upper: IntArray,
    offsets: IntArray,
    forward: bool,
) -> None:
    """One pass of the handshake update (MPLP++) over all coupled blocks, in either order."""
    for turn in range(lower.size):
        e = turn if forward else lower.size - 1 - turn
        g, h = lower[e], upper[e]
        rows, columns = offsets[g + 1] - offsets[g], offsets[h + 1] - offsets[h]
        at, one, two = starts[e], offsets[g], offsets[h]
        for i in range(rows):
            low = np.inf
            for j in range(columns):
                place = at + i * columns + j
                values[place] += singles[one + i] + singles[two + j]
                low = values[place] if values[place] < low else low
            singles[one + i] = 0.5 * low
        for j in range(columns):
            low = np.inf
            for i in range(rows):
                left = values[at + i * columns + j] - singles[one + i]
                low = left if left < low else low
            singles[two + j] = low
        for i in range(rows):
            low = np.inf
            for j in range(columns):
                left = values[at + i * columns + j] - singles[two + j]
                low = left if left < low else low
            # The excess of the second group goes to the first, and the block keeps the rest.
            singles[one + i] = low
            for j in range(columns):
                values[at + i * columns + j] -= low + singles[two + j]

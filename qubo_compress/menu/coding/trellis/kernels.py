"""Viterbi searches down the columns of a tensor, compiled.

Arrays are (columns, rows): a search goes down one column, which is contiguous. Rows in one span share their moments;
spans follow each other, and depthwise convolutions have as many as rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled, compiled_part
from qubo_compress._internal.kernel_arguments import KernelArguments

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
States = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TrellisArguments(KernelArguments):
    """A trellis, its step and the price of its codes, for kernels.

    Attributes:
        following: (states, 2) next state by the parity of the code.
        odd: (states,) 1 where codes are of the second quantizer.
        half: half the distance between two values of one quantizer.
        reach: largest magnitude of a code.
        bits: (classes, quantizers, reach + 1) bits of every magnitude, times their price.
        classes: (columns, rows) which of these tables holds the bits of a code.
        spans: (spans + 1,) first row of the rows that share their moments, and the number of rows.
    """

    following: States
    odd: States
    half: float
    reach: int
    bits: Floats
    classes: States
    spans: Integers


@dataclass(frozen=True, eq=False)
class Memory(KernelArguments):
    """Memory of a search.

    Of each quantizer and parity, only the best code matters, whatever the state: it is found once.

    Attributes:
        came: (rows, states) the state before, on the best path to a state after each row.
        code: (rows, states) the code on that path.
        near: (4, 3) magnitudes of the nearest codes of each quantizer and parity.
        apart: (4, 3) their squared distances.
        least: (4,) error plus price of the best of them.
        best: (4,) its magnitude.
        cost: (2, states) of the best path to each state, before and after a row.
    """

    came: States
    code: npt.NDArray[np.int16]
    near: Integers
    apart: Floats
    least: Floats
    best: Integers
    cost: Floats


@compiled_part
def near_codes(size: float, reach: int, quantizers: int, memory: Memory) -> None:
    """The magnitudes worth trying for a target, of each quantizer and parity: those around it, and the least.

    Args:
        size: the target's magnitude, in halves of the distance between two values of one quantizer.
        reach: largest magnitude of a code.
        quantizers: 1 or 2.
        memory: of the search, where they are written.
    """
    for quantizer in range(quantizers):
        place = min((size + quantizer) * 0.5, reach + 1.0)
        for parity in range(2):
            kind = 2 * quantizer + parity
            low = parity + 2 * int((place - parity) * 0.5) if place >= parity else parity
            for rank in range(3):
                tried = low if rank == 0 else (low + 2 if rank == 1 else parity)
                while tried > reach and tried >= 2:
                    tried -= 2
                value = 2.0 * tried - (quantizer if tried > 0 else 0)
                memory.near[kind, rank] = min(tried, reach)
                memory.apart[kind, rank] = (size - value) ** 2 if tried <= reach else np.inf


@compiled_part
def best_codes(weight: float, bits: Floats, memory: Memory) -> None:
    """The best of the near codes, of each quantizer and parity.

    Args:
        weight: of the squared distance.
        bits: (quantizers, reach + 1) of every magnitude, times their price.
        memory: of the search, where they are written.
    """
    for quantizer in range(len(bits)):
        for kind in range(2 * quantizer, 2 * quantizer + 2):
            memory.least[kind], memory.best[kind] = np.inf, 0
            for rank in range(3):
                size = memory.near[kind, rank]
                tried = weight * memory.apart[kind, rank] + bits[quantizer, size]
                if tried < memory.least[kind]:
                    memory.least[kind], memory.best[kind] = tried, size


@compiled_part
def search_column(
    targets: Floats, weights: Floats, column: int, trellis: TrellisArguments, memory: Memory, codes: Integers
) -> None:
    """The codes of one column with the least weighted squared error plus price of bits, exactly.

    Args:
        targets: (rows,) values.
        weights: (spans,) of the squared error.
        column: its number.
        trellis: states, step and prices.
        memory: of the search.
        codes: (rows,) where they are written.
    """
    rows, states, spans, quantizers = targets.size, trellis.odd.size, trellis.spans, trellis.bits.shape[1]
    cost = memory.cost
    before, after = 0, 1
    for state in range(states):
        cost[before, state] = 0.0 if state == 0 else np.inf
    for span in range(spans.size - 1):
        weight = weights[span] * trellis.half * trellis.half
        for row in range(spans[span], spans[span + 1]):
            near_codes(abs(targets[row]) / trellis.half, trellis.reach, quantizers, memory)
            best_codes(weight, trellis.bits[trellis.classes[column, row]], memory)
            for state in range(states):
                cost[after, state] = np.inf
            for state in range(states):
                start = cost[before, state]
                if start == np.inf:
                    continue
                for parity in range(2):
                    kind, there = 2 * trellis.odd[state] + parity, trellis.following[state, parity]
                    if start + memory.least[kind] < cost[after, there]:
                        cost[after, there] = start + memory.least[kind]
                        memory.came[row, there] = state
                        memory.code[row, there] = memory.best[kind]
            before, after = after, before
    state = 0
    for other in range(states):
        if cost[before, other] < cost[before, state]:
            state = other
    for row in range(rows - 1, -1, -1):
        size = memory.code[row, state]
        codes[row] = -size if targets[row] < 0.0 else size
        state = memory.came[row, state]


@compiled_part
def decode_column(codes: Integers, trellis: TrellisArguments, values: Floats) -> None:
    """Write the values of one column's codes."""
    state = 0
    for row in range(codes.size):
        code = codes[row]
        odd = trellis.odd[state] * ((code > 0) - (code < 0))
        values[row] = (2.0 * code - odd) * trellis.half
        state = trellis.following[state, code & 1]


@compiled_part
def cost_of_column(
    codes: Integers, values: Floats, targets: Floats, weights: Floats, column: int, trellis: TrellisArguments
) -> float:
    """Weighted squared error of one column plus the price of its bits."""
    total, state, spans = 0.0, 0, trellis.spans
    for span in range(weights.size):
        for row in range(spans[span], spans[span + 1]):
            size = min(abs(codes[row]), trellis.reach)
            total += weights[span] * (values[row] - targets[row]) ** 2
            total += trellis.bits[trellis.classes[column, row], trellis.odd[state], size]
            state = trellis.following[state, codes[row] & 1]
    return total


@compiled
def propagate_block(
    left: Floats, errors: Floats, codes: Integers, first: int, upper: Floats, trellis: TrellisArguments, memory: Memory
) -> None:
    """Codes of consecutive columns, whose errors are spread over the later ones of them.

    Args:
        left: (n, rows) values of these columns, changed.
        errors: (n, rows) where each column's error over its U_jj is written.
        codes: (n, rows) where codes are written.
        first: number of the first column.
        upper: (spans, n, n) block of U with U^T U the inverse moments.
        trellis: states, step and prices.
        memory: of the search.
    """
    columns, rows = left.shape
    spans = trellis.spans
    weights, values = np.empty(spans.size - 1), np.empty(rows)
    for column in range(columns):
        for span in range(weights.size):
            weights[span] = 1.0 / upper[span, column, column] ** 2
        search_column(left[column], weights, first + column, trellis, memory, codes[column])
        decode_column(codes[column], trellis, values)
        for span in range(weights.size):
            for row in range(spans[span], spans[span + 1]):
                errors[column, row] = (left[column, row] - values[row]) / upper[span, column, column]
            for later in range(column + 1, columns):
                share = upper[span, column, later]
                for row in range(spans[span], spans[span + 1]):
                    left[later, row] -= share * errors[column, row]


@compiled
def descend_block(
    values: Floats, gradient: Floats, moved: Floats, codes: Integers, first: int, moments: Floats,
    trellis: TrellisArguments, memory: Memory,
) -> float:  # fmt: skip
    """Move consecutive columns, one after the other, to their best codes given all others.

    Args:
        values: (n, rows) stored values of these columns, changed.
        gradient: (n, rows) half the derivative of the output error with respect to them, changed.
        moved: (n, rows) where the change of the values is written.
        codes: (n, rows), changed.
        first: number of the first column.
        moments: (spans, n, n) block of the moments.
        trellis: states, step and prices.
        memory: of the search.

    Returns:
        How much error plus price of bits fell.
    """
    columns, rows = values.shape
    spans, fallen = trellis.spans, 0.0
    weights, targets = np.empty(spans.size - 1), np.empty(rows)
    found, there = np.empty(rows, dtype=np.int64), np.empty(rows)
    for column in range(columns):
        for span in range(weights.size):
            weights[span] = moments[span, column, column]
            for row in range(spans[span], spans[span + 1]):
                targets[row] = values[column, row] - gradient[column, row] / weights[span]
        search_column(targets, weights, first + column, trellis, memory, found)
        decode_column(found, trellis, there)
        gain = cost_of_column(codes[column], values[column], targets, weights, first + column, trellis)
        gain -= cost_of_column(found, there, targets, weights, first + column, trellis)
        if not gain > 0.0:
            for row in range(rows):
                moved[column, row] = 0.0
            continue
        fallen += gain
        for row in range(rows):
            moved[column, row] = there[row] - values[column, row]
            values[column, row] = there[row]
            codes[column, row] = found[row]
        for span in range(weights.size):
            for other in range(columns):
                share = moments[span, column, other]
                for row in range(spans[span], spans[span + 1]):
                    gradient[other, row] += share * moved[column, row]
    return fallen


@compiled
def nearest_columns(targets: Floats, codes: Integers, trellis: TrellisArguments, memory: Memory) -> None:
    """The codes of every column with the least squared error plus price of bits.

    Args:
        targets: (columns, rows) values.
        codes: (columns, rows) where they are written.
        trellis: states, step and prices.
        memory: of the search.
    """
    weights = np.ones(trellis.spans.size - 1)
    for column in range(len(targets)):
        search_column(targets[column], weights, column, trellis, memory, codes[column])

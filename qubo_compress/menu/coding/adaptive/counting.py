"""What the adaptive coder would count in a tensor, without coding it: a fifth of the time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled
from qubo_compress.menu.coding.adaptive.arithmetic import wide
from qubo_compress.menu.coding.adaptive.sizes import LARGEST, Sums, end_column, expected, observed, start_column
from qubo_compress.menu.coding.adaptive.tensor import DECISIONS, Geometry, in_steps, most_before

Integers = npt.NDArray[np.int64]


@compiled
def count_tensor(codes: Integers, shape: Geometry, sums: Sums, counts: Integers, levels: npt.NDArray[np.uint8]) -> None:
    """Count the decisions of a tensor at every expected size, as ``code_tensor`` does.

    Args:
        codes: (columns, rows).
        shape: of the tensor.
        sums: what is known of sizes, changed.
        counts: (2, LEVELS, DECISIONS, 2) quantizer, expected size and decision -> how often it was 0 and 1; added to.
        levels: (columns, rows) filled with the level of every code.
    """
    columns, rows = codes.shape
    top, kernel = max(-shape.low, shape.high), np.zeros(2, np.int64)
    for column in range(columns):
        mean, state, total = start_column(column, shape.positions, kernel, sums), wide(0), wide(0)
        for row in range(rows):
            value, quantizer = codes[column, row], wide(shape.second[state])
            level, usual, _, _, _, _ = expected(row, shape.positions, sums)
            size, step = abs(value), 0
            while step < DECISIONS - 1 and most_before(step) < top:
                passed = 1 if size > most_before(step) else 0
                counts[quantizer, level, step, passed] += 1
                if not passed:
                    break
                step += 1
            levels[column, row] = level
            multiple = in_steps(size, quantizer, shape.trellis)
            observed(multiple, row, column, shape.positions, usual, sums)
            total += min(multiple, LARGEST)
            state = wide(shape.following[state, value & 1])
        end_column(column, shape.positions, ((total << 16) + mean) // (rows + 1), kernel, sums)

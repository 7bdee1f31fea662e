"""How many cells each block of weights gets to minimise the damage by noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qubo_compress.errors import InvalidChannel
from qubo_compress.problem.choice_problem import FloatArray

BISECTIONS = 100


def water_filling(damages: FloatArray, sizes: npt.NDArray[np.integer], budget: int, most: int) -> npt.NDArray[np.int64]:
    """Whole numbers of cells r that minimise sum damages / r with sum sizes r <= budget and 1 <= r <= most.

    Without rounding, r is proportional to sqrt(damage / size), which for single weights is sqrt(h) sigma (Isik et al.).
    One more cell for a block gains damage / (r (r + 1)) and costs its size; since the gain falls with r, taking cells
    by gain per cost above a common threshold is optimal up to the last block that does not fit.

    Args:
        damages: (B,) expected loss with one cell per weight: 1/2 sum of h sigma^2 over the block.
        sizes: (B,) weights per block.
        budget: cells.
        most: cells per weight that a block can have.

    Raises:
        InvalidChannel: when the budget is below one cell per weight.

    Example:
        >>> water_filling(np.array([9.0, 1.0, 0.0]), np.array([1, 1, 1]), budget=6, most=8).tolist()
        [4, 1, 1]
    """
    if budget < int(sizes.sum()):
        raise InvalidChannel(f"{budget} cells are fewer than one for each of {int(sizes.sum())} weights")
    # Blocks without any damage still share the rest of the budget.
    worth = np.maximum(damages, 1e-12 * max(float(damages.max(initial=0.0)), 1e-100)) / sizes

    def cells_at(threshold: float) -> npt.NDArray[np.int64]:
        # The smallest r with worth / (r (r + 1)) <= threshold.
        wanted = np.ceil(-0.5 + np.sqrt(0.25 + np.minimum(worth / threshold, 1e12)))
        found: npt.NDArray[np.int64] = np.clip(wanted, 1, most).astype(np.int64)
        return found

    low, high = float(worth.min()) / (most * (most + 1)) / 2, float(worth.max())
    if int((cells_at(low) * sizes).sum()) <= budget:
        return cells_at(low)
    for _ in range(BISECTIONS):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if int((cells_at(middle) * sizes).sum()) <= budget else (middle, high)
    cells = cells_at(high)
    left = budget - int((cells * sizes).sum())
    gains = np.where(cells < most, worth / (cells * (cells + 1)), -np.inf)
    for block in np.argsort(-gains, kind="stable"):
        if not np.isfinite(gains[block]) or left < sizes.min():
            break
        if sizes[block] <= left:
            cells[block] += 1
            left -= int(sizes[block])
    return cells

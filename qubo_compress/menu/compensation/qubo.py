"""Rounding as a quadratic problem in two choices per weight, one problem per output neuron.

The output error of a layer is a sum over its rows (see :mod:`qubo_compress.menu.compensation.moments`), so rounding the
weights of each row up or down is a separate and exact problem: equation (13) of AdaRound (Nagel et al., ICML 2020),
without its relaxation. From codes c that no single change improves, weight j may stay at c_j or go
to the code on the other side of its best real value given all others,

    t_j = c_j - g_j / (s S_jj),   g = (c s - w) S,   d_j = s sign(t_j - c_j),

so c_j and its alternative are the floor and the ceiling of t_j. With x_j = 1 if it moves, the error changes by

    sum_j x_j (2 d_j g_j + d_j^2 S_jj) + sum_{j != k} d_j d_k S_jk x_j x_k.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from qubo_compress.menu.compensation.moments import Codebook, descended, output_error
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.solvers.verification import solve

MOST_WEIGHTS = 96
"""Weights of a row in one problem, those nearest to a tie. At the same work, problems over all weights of a row of 288
or 576 gain next to nothing over the descent, these gain 6 to 11 % (ResNet-20, three bits)."""

ROUNDS = 2
"""Problems per row; the second has the weights nearest to a tie after the first."""

WORK = 400
"""Sweeps of the annealer per problem."""

SECONDS = 4.9
"""Far more than the work takes: the work limit ends every search, so that the codes repeat."""


def annealed(
    values: Tensor, codes: Tensor, scale: Tensor, mask: Tensor | None, moments: Tensor, book: Codebook
) -> Tensor:
    """(R, D) codes from solved rounding problems, row by row; their output error is never above the start's.

    Args:
        values: (R, D) float64.
        codes: (R, D) to start from, the result of the descent.
        scale: (R, 1) float64.
        mask: survivors, or None.
        moments: (D, D).
        book: the available codes; their bits do not count here.
    """
    found = codes.clone()
    least = output_error(values, codes * scale, moments)
    active = torch.ones(len(values), dtype=torch.bool)
    for number in range(ROUNDS):
        moved = found.clone()
        for row in active.nonzero()[:, 0].tolist():
            kept = None if mask is None else mask[row]
            moved[row] += _best_moves(values[row], found[row], float(scale[row]), kept, moments, book, number)
        moved = descended(values, moved, scale, mask, moments, book)
        error = output_error(values, moved * scale, moments)
        active = error < least * (1 - 1e-9)
        found[active], least[active] = moved[active], error[active]
        if not bool(active.any()):
            break
    return found


def _best_moves(
    values: Tensor, codes: Tensor, scale: float, kept: Tensor | None, moments: Tensor, book: Codebook, seed: int
) -> Tensor:
    """(D,) changes of the codes of one row."""
    free, moves, problem = rounding_problem(values, codes, scale, kept, moments, book)
    changes = torch.zeros_like(codes)
    if problem is None:
        return changes
    solution = solve(problem, "annealer", time_limit=SECONDS, work_limit=WORK, seed=seed, threads=1, pool_size=1)
    if solution.energy < 0.0:
        changes[free] = moves * torch.from_numpy(solution.assignment.astype(np.float64))
    return changes


def rounding_problem(
    values: Tensor, codes: Tensor, scale: float, kept: Tensor | None, moments: Tensor, book: Codebook
) -> tuple[Tensor, Tensor, ChoiceProblem | None]:
    """Which weights of a row may move, by how much, and the problem whose choice 1 moves them.

    The energy is the change of the output error, in units of the mean quadratic cost of a single move.

    Args:
        values: (D,) float64.
        codes: (D,) present codes.
        scale: of the row.
        kept: (D,) survivors, or None.
        moments: (D, D).
        book: the available codes.

    Returns:
        (D,) which weights may move, changes of their codes, and the problem, or None if no weight may move.
    """
    gradient = (codes * scale - values) @ moments
    curvature = moments.diagonal()
    apart = -gradient / (scale * curvature)
    moves = torch.where(apart < 0, -1.0, 1.0).to(codes.dtype)
    if book.signs_only:
        moves = -2.0 * codes
    there = codes + moves
    free = (there >= book.low) & (there <= book.high) & (curvature > 0)
    if kept is not None:
        free &= kept
    if int(free.sum()) > MOST_WEIGHTS:
        gain = torch.where(free, 2 * moves * apart - moves**2, -torch.inf)
        free = torch.zeros_like(free).index_fill_(
            0, gain.argsort(dim=0, descending=True, stable=True)[:MOST_WEIGHTS], 1
        )
    if not bool(free.any()):
        return free, moves[free], None
    steps = scale * moves[free]
    inner = moments[free][:, free]
    unit = float((steps * steps * inner.diagonal()).mean())
    linear = (2 * steps * gradient[free] + steps**2 * inner.diagonal()) / unit
    couplings = (2 * steps[:, None] * inner * steps / unit).numpy()
    np.fill_diagonal(couplings, 0.0)
    count = len(steps)
    # Only "moved" choices interact: choice 0 of every weight has no row in the table.
    pairs = sparse.csr_array(np.kron(couplings, np.array([[0.0, 0.0], [0.0, 1.0]])))
    both = np.zeros(2 * count)
    both[1::2] = linear.numpy()
    problem = ChoiceProblem(
        linear=both, group_offsets=2 * np.arange(count + 1), costs=np.zeros((0, 2 * count), dtype=np.int64),
        limits=np.zeros(0, dtype=np.int64), pairs=pairs,
    )  # fmt: skip
    return free, moves[free], problem

"""Rounding and pruning in the norm of a layer's input moments, where errors of one weight are made up by others.

For weights W (R, D), stored values Q and input moments S (D, D) the layer's mean squared output error is

    E(Q) = sum_r (q_r - w_r) S (q_r - w_r)^T.

- :func:`propagated` rounds column by column and spreads each column's error over those still to come
  (optimal brain quantization in a fixed order: GPTQ, Frantar et al., ICLR 2023):
  with U^T U = S^-1, W[:, j+1:] -= (w_j - q_j) / U_jj * U[j, j+1:].
- :func:`descended` then moves one code at a time to its best value until none helps: E is quadratic in each.
- pruned weights are those of least w^2 / [S^-1]_jj (optimal brain surgeon), rounded to zero in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rounding = Callable[[Tensor, int, Tensor], Tensor]
"""(column (R,), its number, weight of its error (R,)) -> codes (R,)."""

SWEEPS = 8


def output_error(values: Tensor, stored: Tensor, moments: Tensor) -> Tensor:
    """(R,) squared output error of every row.

    Example:
        >>> output_error(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), torch.eye(2, dtype=torch.float64)).tolist()
        [1.0]
    """
    apart = values.double() - stored.double()
    return ((apart @ moments) * apart).sum(1)


def pruned_mask(values: Tensor, factors: list[tuple[slice, Tensor]], survivors: int) -> Tensor:
    """(R, D) which weights survive: the largest w^2 / [S^-1]_jj over the whole tensor; ties to the earlier.

    Args:
        values: (R, D).
        factors: rows and the upper triangular U of their inverse moments.
        survivors: how many.
    """
    saliency = torch.empty(values.shape, dtype=torch.float64)
    for rows, upper in factors:
        inverse_diagonal = (upper * upper).sum(0)
        saliency[rows] = values[rows].double() ** 2 / inverse_diagonal
    order = torch.argsort(saliency.reshape(-1), descending=True, stable=True)
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order[:survivors]] = True
    return mask.reshape(values.shape)


def propagated(values: Tensor, scale: Tensor, mask: Tensor | None, upper: Tensor, rounding: Rounding) -> Tensor:
    """(R, D) codes, rounded in rising column order with the error made up by later columns.

    Args:
        values: (R, D) float64.
        scale: (R, 1) float64.
        mask: survivors, or None.
        upper: (D, D) with U^T U the inverse moments.
        rounding: how one column of values in units of the scale becomes codes.
    """
    left = values.clone()
    codes = torch.zeros_like(left)
    flat = scale[:, 0]
    for column in range(left.shape[1]):
        diagonal = upper[column, column]
        found = rounding(left[:, column] / flat, column, (flat / diagonal) ** 2)
        if mask is not None:
            found = found * mask[:, column]
        codes[:, column] = found
        error = (left[:, column] - found * flat) / diagonal
        if column + 1 < left.shape[1]:
            left[:, column + 1 :].addr_(error, upper[column, column + 1 :], alpha=-1.0)
    return codes


def descended(
    values: Tensor, codes: Tensor, scale: Tensor, mask: Tensor | None, moments: Tensor, nearest: Rounding
) -> Tensor:
    """(R, D) codes from which no single change lowers the output error; never above that of the start.

    Args:
        values: (R, D) float64.
        codes: (R, D) to start from.
        scale: (R, 1) float64.
        mask: survivors, or None.
        moments: (D, D).
        nearest: (target in units of the scale, column, weight of its squared error) -> best allowed code.
    """
    codes = codes.clone()
    flat = scale[:, 0]
    gradient = (codes * scale - values) @ moments
    diagonal = moments.diagonal()
    for _ in range(SWEEPS):
        moved = False
        for column in range(values.shape[1]):
            curvature = float(diagonal[column])
            if curvature <= 0:
                continue
            weight = flat**2 * curvature
            target = codes[:, column] - gradient[:, column] / (flat * curvature)
            found = nearest(target, column, weight)
            if mask is not None:
                found = torch.where(mask[:, column], found, codes[:, column])
            change = found - codes[:, column]
            if bool((change != 0).any()):
                moved = True
                codes[:, column] = found
                gradient.addr_(change * flat, moments[column])
        if not moved:
            break
    return codes


def refitted(values: Tensor, codes: Tensor, moments: Tensor, fallback: Tensor) -> Tensor:
    """(R, 1) scales of least output error for given codes: (q S w) / (q S q), where that is positive."""
    image = codes @ moments
    square = (image * codes).sum(1, keepdim=True)
    fitted = (image * values).sum(1, keepdim=True) / square.clamp(min=1e-300)
    return torch.where((square > 0) & (fitted > 0), fitted, fallback)

"""Rounding and pruning in the norm of a layer's input moments, in which other weights compensate a weight's error.

For weights W (R, D), stored values Q and input moments S (D, D) the layer's mean squared output error is

    E(Q) = sum_r (q_r - w_r) S (q_r - w_r)^T.

- :func:`propagated` rounds column by column and spreads each column's error over the later ones
  (optimal brain quantization in a fixed order: GPTQ, Frantar et al., ICLR 2023):
  with U^T U = S^-1, W[:, j+1:] -= (w_j - q_j) / U_jj * U[j, j+1:].
- :func:`descended` then moves one code at a time to its best value until no move helps: E is quadratic in each.
- the weights with the least w^2 / [S^-1]_jj are pruned (optimal brain surgeon): rounded to zero in the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qubo_compress.menu.compensation.kernels import BookArguments, descend_blocks, descend_rows

MOST_DAMPING = 10.0
"""Largest share of the mean moment that ``compensate`` and ``lattice`` add to every input's."""

SWEEPS = 12
"""Most passes of the descent over a row's columns."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """The available codes, and the price of their bits.

    Attributes:
        low: smallest code.
        high: largest code.
        signs_only: codes are only -1 and 1.
        price: of a bit, in units of the output error; 0: bits do not count.
        bits: (2 * reach + 1,) bits of the codes from -reach to reach, if they count.
    """

    low: float
    high: float
    signs_only: bool = False
    price: float = 0.0
    bits: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def for_kernels(self) -> BookArguments:
        """The same codes for the compiled descent."""
        reach = (self.bits.numel() - 1) // 2
        return BookArguments(self.low, self.high, int(self.signs_only), self.bits.numpy(), reach, self.price)

    def nearest(self, target: Tensor) -> Tensor:
        """The nearest codes, regardless of their bits."""
        if self.signs_only:
            return torch.where(target < 0, -1.0, 1.0).to(target.dtype)
        return torch.round(target).clamp_(self.low, self.high)

    def priced(self, codes: Tensor, price: float) -> Codebook:
        """The same codes at a price per bit, with bits from their present frequencies."""
        reach = int(codes.abs().max()) + 2
        counts = torch.bincount((codes + reach).reshape(-1).long(), minlength=2 * reach + 1).double() + 0.5
        return replace(self, price=price, bits=-torch.log2(counts / counts.sum()))


def output_error(values: Tensor, stored: Tensor, moments: Tensor) -> Tensor:
    """(..., R) squared output error of every row of (..., R, D) values under (..., D, D) moments.

    Example:
        >>> output_error(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), torch.eye(2, dtype=torch.float64)).tolist()
        [1.0]
    """
    apart = values.double() - stored.double()
    return ((apart @ moments) * apart).sum(-1)


def pruned_mask(values: Tensor, factors: list[tuple[slice, Tensor]], survivors: int) -> Tensor:
    """(R, D) which weights survive: the largest w^2 / [S^-1]_jj over the whole tensor; in a tie the earlier one.

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


def propagated(values: Tensor, scale: Tensor, mask: Tensor | None, upper: Tensor, book: Codebook) -> Tensor:
    """(..., R, D) codes, rounded in rising column order, with later columns compensating the error.

    Args:
        values: (..., R, D) float64; leading axes are blocks of rows with separate moments.
        scale: (..., R, 1) float64.
        mask: survivors, or None.
        upper: (..., D, D) with U^T U the inverse moments.
        book: the available codes.
    """
    left = values.clone()
    codes = torch.zeros_like(left)
    flat = scale[..., 0]
    for column in range(left.shape[-1]):
        diagonal = upper[..., column, column, None]
        found = book.nearest(left[..., column] / flat)
        if mask is not None:
            found = found * mask[..., column]
        codes[..., column] = found
        error = (left[..., column] - found * flat) / diagonal
        if column + 1 < left.shape[-1]:
            later = upper[..., column, column + 1 :]
            if left.ndim == 2:
                left[:, column + 1 :].addr_(error, later, alpha=-1.0)
            else:
                left[..., column + 1 :] -= error[..., None] * later[..., None, :]
    return codes


def descended(
    values: Tensor, codes: Tensor, scale: Tensor, mask: Tensor | None, moments: Tensor, book: Codebook
) -> Tensor:
    """(..., R, D) codes that no single change improves, in output error plus price of bits; never worse than before.

    Args:
        values: (..., R, D) float64, with at most one leading axis, along which the moments differ.
        codes: (..., R, D) to start from.
        scale: (..., R, 1) float64.
        mask: survivors, or None.
        moments: (..., D, D).
        book: the available codes.

    Example:
        >>> values, moments = torch.tensor([[0.4, 0.4]]).double(), torch.ones(2, 2).double() + torch.eye(2).double()
        >>> start, book = torch.zeros(1, 2).double(), Codebook(-3, 3)
        >>> descended(values, start, torch.ones(1, 1).double(), None, moments, book).tolist()
        [[1.0, 0.0]]
    """
    found = codes.clone().contiguous()
    gradient = ((codes * scale - values) @ moments).contiguous()
    kept = torch.ones(codes.shape, dtype=torch.bool) if mask is None else mask
    descend = descend_rows if codes.ndim == 2 else descend_blocks
    descend(
        found.numpy(), gradient.numpy(), scale[..., 0].contiguous().numpy(), kept.contiguous().numpy(),
        moments.contiguous().numpy(), book.for_kernels(), SWEEPS,
    )  # fmt: skip
    return found


def refitted(values: Tensor, codes: Tensor, moments: Tensor, fallback: Tensor) -> Tensor:
    """(..., R, 1) scales with the least output error for given codes: (q S w) / (q S q), if positive."""
    image = codes @ moments
    square = (image * codes).sum(-1, keepdim=True)
    fitted = (image * values).sum(-1, keepdim=True) / square.clamp(min=1e-300)
    return torch.where((square > 0) & (fitted > 0), fitted, fallback)

"""Forms of stored tensors that other programs can read: whole numbers times steps, and products of two such tensors.

An entropy coder, a mask or five ternary digits in a byte are read by this library alone. The forms here hold exactly
the same values, in more bytes, with nothing but integers of 2, 4, 8 or 16 bits, floating-point steps and products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

WIDTHS = (2, 4, 8, 16)
"""Bits of the integers that other programs know; a code of 3, 5, 6 or 7 bits takes the next wider one."""


ROUNDINGS = 64
"""A product may differ by this many roundings of the largest value."""


class Portable(ABC):
    """One tensor of a stored group, outputs first, in a form that other programs can read."""

    @abstractmethod
    def decoded(self) -> Tensor:
        """The float32 values."""


@dataclass(frozen=True, eq=False)
class ScaledCodes(Portable):
    """Whole numbers times steps.

    Attributes:
        codes: whole numbers, int8 or int16, in the tensor's shape.
        steps: float32, one for each entry of an axis, or one for all.
        axis: which axis that is.

    Example:
        >>> found = ScaledCodes(torch.tensor([[1, -1], [0, 3]], dtype=torch.int8), torch.tensor([0.5, 2.0]))
        >>> found.decoded().tolist(), found.bits
        ([[0.5, -0.5], [0.0, 6.0]], 4)
    """

    codes: Tensor
    steps: Tensor
    axis: int = 0

    def decoded(self) -> Tensor:
        return self.codes.float() * self.spread()

    def spread(self) -> Tensor:
        """The steps in a shape that broadcasts over the codes."""
        shape = [1] * self.codes.ndim
        if shape:
            shape[self.axis] = -1
        return self.steps.reshape(shape)

    @property
    def bits(self) -> int:
        """Bits of the narrowest integers in :data:`WIDTHS` that hold all codes."""
        low, high = (0, 0) if not self.codes.numel() else (int(self.codes.min()), int(self.codes.max()))
        return next(bits for bits in WIDTHS if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1))

    def by_row(self) -> ScaledCodes | None:
        """The same values with one step per entry of the first axis; None if they differ along another axis."""
        rows = self.codes.shape[0]
        if self.steps.numel() == 1 or bool((self.steps == self.steps[0]).all()):
            return ScaledCodes(self.codes, self.steps.reshape(-1)[:1].expand(rows).clone())
        return self if self.axis == 0 else None

    def scaled(self, factors: Tensor) -> ScaledCodes | None:
        """The values with every row times a factor, positive steps, and codes in as many bits if that is possible.

        Args:
            factors: (rows,) float32.
        """
        rows = self.by_row()
        if rows is None:
            return None
        steps = rows.steps * factors
        signs = torch.where(steps < 0, -1, 1).to(rows.codes.dtype)
        codes = rows.codes * signs.reshape(-1, *[1] * (rows.codes.ndim - 1))
        return ScaledCodes(codes, steps.abs())

    def transposed(self) -> ScaledCodes:
        """A matrix with its axes exchanged."""
        return ScaledCodes(self.codes.T.contiguous(), self.steps, 1 - self.axis)


@dataclass(frozen=True, eq=False)
class Halves(Portable):
    """Numbers in float16.

    Attributes:
        values: float16, in the tensor's shape.
    """

    values: Tensor

    def decoded(self) -> Tensor:
        return self.values.float()


@dataclass(frozen=True, eq=False)
class Product(Portable):
    """A matrix product, reshaped.

    Attributes:
        left: (m, r), or another shape of as many codes, row by row.
        right: (r, n) codes or float32 numbers.
        shape: of the tensor.
        gains: float32 factor of each entry of the tensor's first axis, or None.
    """

    left: ScaledCodes
    right: ScaledCodes | Tensor
    shape: tuple[int, ...]
    gains: Tensor | None = None

    def decoded(self) -> Tensor:
        right = self.right if isinstance(self.right, Tensor) else self.right.decoded()
        found = (self.left.decoded().reshape(-1, right.shape[0]) @ right).reshape(self.shape)
        return found if self.gains is None else found * self.spread_gains()

    def spread_gains(self) -> Tensor:
        """The gains in a shape that broadcasts over the tensor."""
        assert self.gains is not None  # noqa: S101 - asked for where there are some
        return self.gains.reshape(-1, *[1] * (len(self.shape) - 1))

    def scaled(self, factors: Tensor) -> Product:
        """The same product with every row times a factor."""
        return replace(self, gains=factors if self.gains is None else self.gains * factors)


def joined(parts: Sequence[ScaledCodes]) -> ScaledCodes | None:
    """Several tensors one below the other; None if one of them has other steps along another axis.

    Example:
        >>> one = ScaledCodes(torch.ones(1, 2, dtype=torch.int8), torch.tensor([0.5]))
        >>> two = ScaledCodes(torch.ones(2, 2, dtype=torch.int16), torch.tensor([1.0, 2.0]))
        >>> found = joined([one, two])
        >>> found.steps.tolist(), found.codes.shape
        ([0.5, 1.0, 2.0], torch.Size([3, 2]))
    """
    if len(parts) == 1:
        return parts[0]
    rows = [part.by_row() for part in parts]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        return None
    widest = torch.int8 if all(row.codes.dtype == torch.int8 for row in known) else torch.int16
    return ScaledCodes(torch.cat([row.codes.to(widest) for row in known]), torch.cat([row.steps for row in known]))


def holds(form: Portable, value: Tensor) -> bool:
    """Whether a form holds exactly some floating-point values, in their dtype; products may differ by rounding.

    Example:
        >>> form = Halves(torch.tensor([1.5], dtype=torch.float16))
        >>> holds(form, torch.tensor([1.5])), holds(form, torch.tensor([1.25]))
        (True, False)
    """
    kind = torch.finfo(value.dtype)
    largest = min(kind.max, torch.finfo(torch.float32).max)
    found = form.decoded().clamp(-largest, largest).to(value.dtype)
    if found.shape != value.shape:
        return False
    if not isinstance(form, Product):
        return torch.equal(found, value)
    if not value.numel():
        return True
    allowed = ROUNDINGS * max(kind.eps, torch.finfo(torch.float32).eps) * float(value.double().abs().max())
    return float((found.double() - value.double()).abs().max()) <= allowed + kind.tiny

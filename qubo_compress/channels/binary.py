"""One-bit memory cells with random flips."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_compress.channels.coding import cells_per_protected_bit, majority_flip_rate
from qubo_compress.errors import InvalidChannel

__all__ = ["BinaryChannel", "majority_flip_rate"]


@dataclass(frozen=True)
class BinaryChannel:
    """Binary symmetric channel: every stored bit is read flipped with the same probability.

    Args:
        flip_rate: 0 to 0.5.

    Raises:
        InvalidChannel: for another rate.

    Example:
        >>> BinaryChannel(0.1).residual_rates((1, 0))
        (0.1, 0.0)
    """

    flip_rate: float

    def __post_init__(self) -> None:
        if not (isinstance(self.flip_rate, (int, float)) and 0 <= self.flip_rate <= 0.5):
            raise InvalidChannel(f"a flip rate is from 0 to 0.5; got {self.flip_rate!r}")

    @property
    def cells_per_reliable_bit(self) -> float:
        """Cells per bit under an error-correcting code that fails once in 1e9 blocks."""
        return cells_per_protected_bit(float(self.flip_rate))

    def residual_rates(self, copies: tuple[int, ...]) -> tuple[float, ...]:
        """Flip rate of every bit position after its majority vote; 0 copies: protected by a code, never flips."""
        return tuple(majority_flip_rate(self.flip_rate, number) if number else 0.0 for number in copies)

    def read(self, bits: Tensor, generator: torch.Generator) -> Tensor:
        """One read of Boolean cells, with random flips."""
        return bits ^ (torch.rand(bits.shape, generator=generator) < self.flip_rate)

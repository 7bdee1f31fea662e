"""The interface of stored groups whose mask may move while they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from qubo_compress.menu.operator import Packed


@runtime_checkable
class Masked(Protocol):
    """A stored group that keeps some of its numbers, the members' values or their parameters, and zeroes the rest."""

    def masks(self) -> tuple[Tensor, ...] | None:
        """Which numbers survive, in the shapes that training has them in; None when nothing is pruned."""
        ...

    def numbers(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The float32 numbers that stand for the members' values, those of pruned ones too."""
        ...

    def remasked(self, masks: Sequence[Tensor], numbers: Sequence[Tensor]) -> Packed:
        """The nearest storable numbers under other masks with as many survivors; scales move too."""
        ...

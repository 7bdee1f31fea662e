"""The interface of losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Loss(ABC):
    """The interface of a loss for sensitivity. ``reference`` are the uncompressed network's output rows."""

    needs_targets: bool = False
    """Whether the batches must bring targets."""

    of_classes: ClassVar[bool] = False
    """Whether it compares distributions over the classes: softmaxes of the outputs."""

    of_numbers: ClassVar[bool] = False
    """Whether targets are numbers to be met, so that no answer is right or wrong."""

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """(M,) loss per output row."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """(M, C) gradient of each row's loss with respect to its outputs."""

    @abstractmethod
    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """(..., M, C) rows whose squared norm is change^T H change, H taken at ``outputs``."""

    @abstractmethod
    def probe(self, outputs: Tensor, targets: Tensor | None, signs: Tensor) -> Tensor:
        """(M, C) vectors B e for (M, C) random signs e with B B^T = H at ``outputs``; zero for ignored rows."""

    @abstractmethod
    def divergence(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """(M,) distance of the outputs from the reference in this loss's geometry, never negative."""

    def has_features(self, outputs: Tensor) -> bool:
        """Whether there is enough memory for :meth:`features` of these output rows."""
        return True

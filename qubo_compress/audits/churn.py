"""The baseline: how much do equally good networks differ from each other?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from qubo_compress.audits.mismatches import population
from qubo_compress.calibration.examples import Examples
from qubo_compress.errors import InvalidBatches


@dataclass(frozen=True, eq=False)
class Churn:
    """Mismatches between the networks of one population.

    Attributes:
        shares: (K, K) share of examples answered differently by two networks.
        harmful: (K, K) share that the row's network gets right and the column's gets wrong; None without labels.
    """

    shares: npt.NDArray[np.float64]
    harmful: npt.NDArray[np.float64] | None

    @property
    def mean(self) -> float:
        """Mean share over all pairs."""
        return float(self.shares[np.triu_indices(len(self.shares), 1)].mean())

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest share of a pair."""
        pairs = self.shares[np.triu_indices(len(self.shares), 1)]
        return float(pairs.min()), float(pairs.max())

    @property
    def mean_harmful(self) -> float | None:
        """Mean harmful share over ordered pairs."""
        if self.harmful is None:
            return None
        return float(self.harmful[~np.eye(len(self.harmful), dtype=bool)].mean())

    def to_dict(self) -> dict[str, Any]:
        """The fields and means as plain numbers and lists, ready for JSON."""
        return {
            "networks": len(self.shares), "mean": self.mean, "range": list(self.range),
            "mean_harmful": self.mean_harmful, "shares": self.shares.tolist(),
        }  # fmt: skip


def churn(models: Sequence[nn.Module], batches: Iterable[Any] | Examples) -> Churn:
    """How often networks differ that should be interchangeable: plans of several seeds, or independent trainings.

    Mismatches between an original and its compressed network mean little unless they exceed this.

    Raises:
        InvalidBatches: with fewer than two networks.

    Example:
        >>> import torch
        >>> nets = [nn.Linear(2, 2) for _ in range(2)]
        >>> churn([nets[0], nets[0]], [torch.randn(8, 2)]).mean
        0.0
    """
    if len(models) < 2:
        raise InvalidBatches(f"churn is between networks: give at least two; got {len(models)}")
    predicted, labels = population(models, batches)
    return churn_of(predicted, labels)


def churn_of(predicted: Tensor, labels: Tensor | None) -> Churn:
    """Churn from (K, M) predictions of K networks."""
    shares = np.array([[float((a != b).double().mean()) for b in predicted] for a in predicted])
    if labels is None or not bool((labels >= 0).any()):
        return Churn(shares, None)
    counted = labels >= 0
    right = [(row == labels) & counted for row in predicted]
    total = int(counted.sum())
    harmful = np.array([[int((a & ~b).sum()) / total for b in right] for a in right])
    return Churn(shares, harmful)

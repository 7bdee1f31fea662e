"""The metric for small networks: measured output changes, whose Gram matrix gives all pairs for free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qubo_compress.sensitivity.forward_sweep import forward_sweep
from qubo_compress.sensitivity.task import MeasureTask, MetricResult, metrics


@metrics.register
@dataclass(frozen=True)
class GaussNewton:
    """Linear terms: measured loss changes. Features: H^(1/2) (z(w + d(v)) - z(w)) / sqrt(N).

    The pair energy of two choices is the inner product of their features: V runs of the network give
    all V^2 / 2 pairs.
    """

    metric_name: ClassVar[str] = "gauss-newton"
    counts_flips: ClassVar[bool] = True

    def evaluations(self, task: MeasureTask) -> float:
        """One run over all examples per choice."""
        return float(task.offsets[-1])

    def measure(self, task: MeasureTask) -> MetricResult:
        """Run every choice once and keep its loss and output changes."""
        found = forward_sweep(task, "forward" if task.interactions else "linear", task.interactions)
        return MetricResult(
            found.linear, found.features, None, int(task.offsets[-1]) + 1, found.divergence, found.halves, found.flips,
            found.second_half,
        )  # fmt: skip

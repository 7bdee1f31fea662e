"""The metric for small networks: measured output changes, whose Gram matrix gives all pairs for free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qubo_compress.sensitivity.forward_sweep import forward_sweep
from qubo_compress.sensitivity.metric import Metric, MetricResult, metrics
from qubo_compress.sensitivity.subject import Subject


@metrics.register
@dataclass(frozen=True)
class GaussNewton(Metric):
    """Linear terms: measured loss changes. Features: H^(1/2) (z(w + d(v)) - z(w)) / sqrt(N).

    The pair energy of two choices is the inner product of their features: V runs of the network give
    all V^2 / 2 pairs.
    """

    metric_name: ClassVar[str] = "gauss-newton"
    counts_flips: ClassVar[bool] = True
    sees_inputs: ClassVar[bool] = True

    def evaluations(self, subject: Subject) -> float:
        """One run over all examples per choice."""
        return float(subject.offsets[-1])

    def measure(self, subject: Subject) -> MetricResult:
        """Run every choice once and keep its loss and output changes."""
        found = forward_sweep(subject, "forward" if subject.interactions else "linear", subject.interactions)
        runs = int(subject.offsets[-1]) + 1
        return MetricResult(
            found.linear, found.features, None, runs, found.divergence, found.halves, found.flips, found.second_half
        )

"""``jacobian``: dz_n(v) = J_n d(v), the outputs' first-order change; features H_n^(1/2) J_n d(v) / sqrt(N)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qubo_compress.sensitivity.example_gradients import GradientMetric, measured_by_gradients
from qubo_compress.sensitivity.metric import MetricResult, metrics
from qubo_compress.sensitivity.subject import Subject


@metrics.register
@dataclass(frozen=True)
class Jacobian(GradientMetric):
    """Linear terms mean (p - y)^T J d + 1/2 |A[v]|^2."""

    metric_name: ClassVar[str] = "jacobian"

    def evaluations(self, subject: Subject) -> float:
        """About two runs per output, and one per choice if linear terms are measured."""
        backward = 2.0 * subject.outputs[0].shape[1]
        return backward + (float(subject.offsets[-1]) if self.measured_linear else 0.0)

    def measure(self, subject: Subject) -> MetricResult:
        """Backward passes over every example and output."""
        return measured_by_gradients(subject, "jacobian", self.measured_linear, self.evaluations(subject))

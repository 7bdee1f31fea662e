"""``fisher``: g_n . d(v) / sqrt(N) with g_n the gradient of the example's loss (Singh & Alistarh 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qubo_compress.sensitivity.example_gradients import GradientMetric, measured_by_gradients
from qubo_compress.sensitivity.metric import MetricResult, metrics
from qubo_compress.sensitivity.subject import Subject


@metrics.register
@dataclass(frozen=True)
class Fisher(GradientMetric):
    """Linear terms mean g_n^T d + 1/2 |A[v]|^2, with labels drawn from the softmax under ``loss="kl"``."""

    metric_name: ClassVar[str] = "fisher"

    def evaluations(self, subject: Subject) -> float:
        """About two runs, and one per choice if linear terms are measured."""
        return 2.0 + (float(subject.offsets[-1]) if self.measured_linear else 0.0)

    def measure(self, subject: Subject) -> MetricResult:
        """Gradients of every example's loss from one backward pass, times the displacements."""
        return measured_by_gradients(subject, "fisher", self.measured_linear, self.evaluations(subject))

"""The data-free control: the squared norm of the displacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.sensitivity.metric import Metric, MetricResult, metrics
from qubo_compress.sensitivity.subject import Subject


@metrics.register
@dataclass(frozen=True)
class Magnitude(Metric):
    """Linear terms |d(v)|^2, no pairs. Not a loss: only the order of the values is meaningful."""

    metric_name: ClassVar[str] = "magnitude"
    knows_divergence: ClassVar[bool] = False

    def measure(self, subject: Subject) -> MetricResult:
        """The squared displacement of every choice, from the weights alone."""
        linear = [
            sum(float(d.double().square().sum()) for d in row)
            for group in range(len(subject.layout.groups))
            for row in subject.displacements(group, from_original=True)
        ]
        return MetricResult(np.array(linear, dtype=np.float64))

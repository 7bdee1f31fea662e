"""The data-free control: the squared norm of the displacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.sensitivity.task import MeasureTask, MetricResult, metrics


@metrics.register
@dataclass(frozen=True)
class Magnitude:
    """Linear terms |d(v)|^2, no pairs. Not a loss: only the order of the values is meaningful."""

    metric_name: ClassVar[str] = "magnitude"
    knows_divergence: ClassVar[bool] = False

    def evaluations(self, task: MeasureTask) -> float:
        """Zero: the network never runs."""
        return 0.0

    def measure(self, task: MeasureTask) -> MetricResult:
        """The squared displacement of every choice, from the weights alone."""
        linear = [
            sum(float(d.double().square().sum()) for d in row)
            for group in range(len(task.layout.groups))
            for row in task.displacements(group, from_original=True)
        ]
        return MetricResult(np.array(linear, dtype=np.float64))

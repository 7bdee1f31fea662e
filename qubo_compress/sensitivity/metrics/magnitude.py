"""The data-free control: squared norm of the displacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.sensitivity.task import MeasureTask, MetricResult, metrics


@metrics.register
@dataclass(frozen=True)
class Magnitude:
    """Linear terms |d(v)|^2, no pairs. Not a loss: only its order means anything."""

    metric_name: ClassVar[str] = "magnitude"
    knows_divergence: ClassVar[bool] = False

    def evaluations(self, task: MeasureTask) -> float:
        """None."""
        return 0.0

    def measure(self, task: MeasureTask) -> MetricResult:
        """Square and add."""
        linear = [
            sum(float(d.double().square().sum()) for d in row)
            for group in range(len(task.layout.groups))
            for row in task.displacements(group, from_original=True)
        ]
        return MetricResult(np.array(linear, dtype=np.float64))

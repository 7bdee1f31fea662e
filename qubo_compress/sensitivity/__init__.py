"""Sensitivity: what each choice and each pair of choices costs the network."""

from __future__ import annotations

import importlib
import pkgutil

from qubo_compress.sensitivity.forecast import Forecast, estimate
from qubo_compress.sensitivity.measure import measure
from qubo_compress.sensitivity.table import Provenance, SensitivityTable
from qubo_compress.sensitivity.task import MeasureTask, Metric, MetricResult
from qubo_compress.sensitivity.task import metrics as _registry

__all__ = [
    "Forecast",
    "MeasureTask",
    "Metric",
    "MetricResult",
    "Provenance",
    "SensitivityTable",
    "estimate",
    "measure",
    "names",
    "register",
]

register = _registry.add


def names() -> tuple[str, ...]:
    """Names of all registered metrics, sorted."""
    return _registry.names()


# A new metric is one new file in this folder or in metrics/, and no edit elsewhere.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

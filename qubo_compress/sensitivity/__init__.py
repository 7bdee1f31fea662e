"""Sensitivity: measures what each choice and each pair of choices costs the network."""

from __future__ import annotations

from qubo_compress._internal.registry import import_plug_ins
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

register = _registry.register


def names() -> tuple[str, ...]:
    """Names of all registered metrics, sorted."""
    return _registry.names()


import_plug_ins(__name__, __path__)

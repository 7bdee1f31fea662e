"""Sensitivity: measures what each choice and each pair of choices costs the network."""

from __future__ import annotations

from typing import Any

from qubo_compress._internal import older_plug_ins
from qubo_compress._internal.registry import import_plug_ins
from qubo_compress.sensitivity.forecast import Forecast, estimate
from qubo_compress.sensitivity.measure import measure
from qubo_compress.sensitivity.metric import Metric, MetricResult
from qubo_compress.sensitivity.metric import metrics as _registry
from qubo_compress.sensitivity.provenance import Provenance
from qubo_compress.sensitivity.subject import Subject
from qubo_compress.sensitivity.table import SensitivityTable

__all__ = [
    "Forecast",
    "Metric",
    "MetricResult",
    "Provenance",
    "SensitivityTable",
    "Subject",
    "estimate",
    "measure",
    "names",
    "register",
]

register = _registry.register


def __getattr__(name: str) -> Any:
    return older_plug_ins.renamed(__name__, {"MeasureTask": Subject})(name)


def names() -> tuple[str, ...]:
    """Names of all registered metrics, sorted."""
    return _registry.names()


import_plug_ins(__name__, __path__)

"""From a metric's result to a table's numbers: shrunk to what can be trusted, with rows reduced to a factor."""

from __future__ import annotations

import math

import numpy as np

from qubo_compress.problem.choice_problem import FactorArray
from qubo_compress.sensitivity.factor import reduce_features
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.metric import MetricResult
from qubo_compress.sensitivity.ranks import Arrays
from qubo_compress.sensitivity.shrinkage import agreement, floored, limited_rows, shrunk_linear
from qubo_compress.sensitivity.subject import Subject


def regularised(
    subject: Subject,
    result: MetricResult,
    metric: str,
    settings: Measurement,
    baseline: float,
    around: bool,
) -> Arrays:
    """A table's numbers from a metric's result.

    Args:
        subject: the measurement.
        result: what the metric found.
        metric: its name.
        settings: what was asked for.
        baseline: loss of the uncompressed network.
        around: whether it was measured around a plan, not at the uncompressed network.

    Returns:
        ``linear`` and, where there are such, ``factor`` and ``divergence``; ``numbers``: share of the divergence,
        share of the feature norm dropped, trust.

    Raises:
        InvalidMenu: when the metric cannot be shrunk as asked.
    """
    share, linear = shrunk_linear(result.linear, result.divergence, result.halves, settings.shrinkage)
    rows, trust, dropped = result.features, 1.0, 0.0
    # A share given as a number is the caller's own judgement of the measurement.
    if not around and isinstance(settings.interactions, bool):
        if rows is not None and result.divergence is not None:
            rows = limited_rows(rows, result.divergence)
        if metric != "magnitude":
            linear = floored(linear, rows, subject.offsets, baseline)
    arrays: Arrays = {"linear": linear}
    if rows is not None:
        trust = _trust(rows, result, subject, settings.interactions)
        factor, dropped = reduce_features(rows, settings.max_rank, subject.seed)
        arrays["factor"] = np.asarray(factor * np.float32(math.sqrt(trust)), dtype=np.float32)
    if result.divergence is not None:
        arrays["divergence"] = result.divergence
    arrays["numbers"] = np.array([share, dropped, trust])
    return arrays


def _trust(rows: FactorArray, result: MetricResult, subject: Subject, interactions: bool | float) -> float:
    """The share of the pair energies that is kept."""
    if not isinstance(interactions, bool):
        return float(interactions)
    if result.second_half is None:
        return 1.0
    return agreement(rows, result.second_half, subject.offsets, np.random.default_rng(subject.seed))

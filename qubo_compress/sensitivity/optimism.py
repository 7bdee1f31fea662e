"""Measurements of choices on the examples that they were made from, corrected to what other examples would say.

A choice that looks at data has its least error on just these examples. With few of them the difference is large: on
EfficientNet-Lite0 with 32 images, choices of the classifier cost 25 times as much on other images. The factor is
estimated from halves of the examples; see :mod:`qubo_compress.calibration.statistics.damping`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.sensitivity.metric import MetricResult


def on_other_examples(result: MetricResult, optimism: FloatArray) -> MetricResult:
    """What a metric would find on other examples: harm grows by the optimism, and gains do not.

    Args:
        result: of a metric.
        optimism: (V,) at least 1.

    Example:
        >>> found = on_other_examples(MetricResult(np.array([0.0, 1.0, -1.0])), np.array([1.0, 3.0, 3.0]))
        >>> found.linear.tolist()
        [0.0, 3.0, -1.0]
    """
    if not (optimism > 1.0).any():
        return result
    roots = np.sqrt(optimism)
    pairs = result.pairs
    if pairs is not None:
        pairs = pairs.multiply(roots[:, None]).multiply(roots[None, :]).tocsr()
    rows = result.features
    return replace(
        result,
        linear=corrected_harm(result.linear, optimism),
        divergence=None if result.divergence is None else corrected_harm(result.divergence, optimism),
        halves=None if result.halves is None else corrected_harm(result.halves, optimism),
        features=None if rows is None else rows * roots[:, None].astype(rows.dtype),
        pairs=pairs,
    )


def corrected_harm(values: FloatArray, optimism: FloatArray) -> FloatArray:
    """(..., V) values, with positive ones multiplied by the optimism."""
    return np.where(values > 0, values * optimism, values)

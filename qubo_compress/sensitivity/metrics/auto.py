"""Auto: exact runs for small networks, products for all others."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from qubo_compress.errors import InvalidMenu, InvalidModel
from qubo_compress.sensitivity.metric import Metric, MetricResult, make_metric, metrics
from qubo_compress.sensitivity.metrics.gauss_newton import GaussNewton
from qubo_compress.sensitivity.metrics.products import CLOSE, Products
from qubo_compress.sensitivity.metrics.products.inspection import inspect
from qubo_compress.sensitivity.subject import Subject

logger = logging.getLogger(__name__)

SMALL = 5e11
"""Every choice is run up to this many multiplications: about a minute on one core."""

REPLAY_OVERHEAD = 1.15
"""Overhead of caching and checking replayed runs, relative to the layers after a group."""

GRADIENT_RUNS = 6.5
"""Cost of a backward pass with per-example gradients and all products, in forward runs: the example network 5, a vision
transformer 6, ResNet-20 10."""


ROUNDED_RUNS = 5.0
"""Cost of the gradients for one more range of the inputs, in forward runs: a vision transformer 2, ResNet-20 11."""

BACKWARD_RUNS = 2.0
"""Cost of a backward pass with torch's own summed gradients of few parameters, in forward runs."""


@metrics.register
@dataclass(frozen=True)
class AutoMetric(Metric):
    """``gauss-newton`` up to ``small`` multiplications, otherwise ``products``.

    The comparison uses counts, not times, so that a network is measured by the same metric on every machine. Networks
    that products cannot follow, because their examples depend on each other or forward switches gradients off, and
    losses without curvature, are measured by ``gauss-newton`` at any size. A caller's loss of so many outputs that
    ``gauss-newton`` would refuse it is measured by ``products``.

    Args:
        small: most multiplications for running every choice.
    """

    metric_name: ClassVar[str] = "auto"
    sees_inputs: ClassVar[bool] = True
    small: float = SMALL

    def resolve(self, subject: Subject) -> tuple[Metric, str]:
        """The metric to use for these examples, and the reason."""
        products: Metric = Products(measured_linear=CLOSE)
        count = subject.examples.count * multiplications(subject) * network_runs(subject, GaussNewton())
        small = count <= self.small
        if small and has_features(subject):
            return GaussNewton(), "a small network"
        if not has_curvature(subject):
            return GaussNewton(), "the loss has no curvature"
        try:
            unknown = inspect(subject).single & rounded_weights(subject)
        except InvalidModel as cause:
            logger.info("products cannot follow this network: %s", cause)
            return GaussNewton(), "its examples have no gradients of their own"
        if unknown:
            return GaussNewton(), "some rounded inputs cannot be followed"
        return products, "this loss has too many outputs" if small else "running every choice would take too long"

    def evaluations(self, subject: Subject) -> float:
        """Evaluations of the metric that it chooses."""
        return self.resolve(subject)[0].evaluations(subject)

    def measure(self, subject: Subject) -> MetricResult:
        """Measure by the metric that it chooses."""
        return self.resolve(subject)[0].measure(subject)


def resolved(metric: Metric, subject: Subject) -> tuple[Metric, str]:
    """The metric that ``auto`` stands for, and why; any other metric is returned unchanged.

    Raises:
        InvalidMenu: for products under a loss without curvature.
    """
    if isinstance(metric, AutoMetric):
        return metric.resolve(subject)
    if isinstance(metric, Products) and metric.measured_linear is not True and not has_curvature(subject):
        raise InvalidMenu(
            "this loss has no curvature at the network's outputs, so products would call every choice free; use "
            "metric='gauss-newton', which measures it"
        )
    return metric, "as asked"


def wants_close(asked: str | Metric, used: str) -> bool:
    """Whether to measure the linear terms of the choices that the first plans use.

    Args:
        asked: the metric as the caller gave it.
        used: name of the metric that measured.
    """
    metric = make_metric(asked)
    if isinstance(metric, AutoMetric):
        return used == Products.metric_name
    return isinstance(metric, Products) and metric.measured_linear == CLOSE


def rounded_weights(subject: Subject) -> frozenset[str]:
    """Names of the weights whose layers' inputs some choice rounds."""
    return frozenset(
        member.name
        for group, offered in zip(subject.layout.groups, subject.choices, strict=True)
        if any(operator.activation_bits for operator in offered.values())
        for member in group.members
    )


def has_features(subject: Subject) -> bool:
    """Whether output changes can be turned into features, which takes much memory for a caller's loss."""
    return not subject.interactions or all(subject.loss.has_features(rows) for rows in subject.outputs)


def has_curvature(subject: Subject) -> bool:
    """Whether the loss has curvature, at the outputs of the first examples or at zero outputs.

    A network that is sure of its answers has almost no curvature at its own outputs, which says nothing about the loss.
    """
    part = subject.examples.slices[0]
    drawn = torch.ones_like(subject.outputs[0])
    drawn[:, 1::2] = -1.0
    places = (subject.outputs[0], torch.zeros_like(subject.outputs[0]))
    return any(bool(subject.loss.probe(outputs, part.targets, drawn).any()) for outputs in places)


def multiplications(subject: Subject) -> float:
    """Multiplications of one example in one forward run; a weight without a known call counts once."""
    return float(sum(_of_groups(subject)))


def network_runs(subject: Subject, metric: Metric) -> float:
    """The cost of a metric in forward runs over all examples, with replayed parts weighted by their multiplications."""
    if isinstance(metric, Products):
        swept = network_runs(subject, GaussNewton()) if metric.measured_linear is True else 0.0
        passes = metric.probes_of(subject) + int(metric.has_slope(subject))
        return 1.0 + (GRADIENT_RUNS + ROUNDED_RUNS * _ranges(subject)) * passes + swept
    if metric.metric_name != "gauss-newton":
        return metric.evaluations(subject)
    each = np.array(_of_groups(subject))
    total = max(float(each.sum()), 1e-12)
    # Groups are in the order of the state dict, which is nearly the order of execution.
    behind = 1.0 if subject.trace is None else np.cumsum(each[::-1])[::-1] / total
    offered = np.array([len(names) - 1 for names in subject.choices])
    return float(REPLAY_OVERHEAD * (offered * behind).sum()) + 1.0


def _ranges(subject: Subject) -> float:
    """To how many ranges the inputs of layers are rounded, the mean over all multiplications."""
    each = np.array(_of_groups(subject))
    kinds = [len({one.activation_bits for one in names.values() if one.activation_bits}) for names in subject.choices]
    return float(each @ np.array(kinds, dtype=np.float64)) / max(float(each.sum()), 1e-12)


def runs_alone(subject: Subject, metric: Metric) -> float:
    """The cost of single-example runs, in forward runs over all examples, in addition to :func:`network_runs`.

    Products need them if a parameter is used outside known layers: one run with all its backward passes per example.

    Raises:
        InvalidModel: when products cannot follow the network.
    """
    if not isinstance(metric, Products) or not inspect(subject).single:
        return 0.0
    return 1.0 + BACKWARD_RUNS * (metric.probes_of(subject) + int(metric.has_slope(subject)))


def _of_groups(subject: Subject) -> list[float]:
    found = []
    for group in subject.layout.groups:
        times = 1.0
        seen = () if subject.trace is None else subject.trace.weights.get(group.members[0].name, ())
        if subject.trace is not None and seen:
            times = sum(call.multiplies for _, call in seen) / subject.trace.examples
        found.append(times * group.numel if group.kind == "weight" else 0.0)
    return found

"""The interface of metrics: classes that measure the choices of a subject."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress._internal import older_plug_ins
from qubo_compress._internal.registry import Registry
from qubo_compress.errors import InvalidMenu
from qubo_compress.problem.choice_problem import FactorArray, FloatArray
from qubo_compress.sensitivity.subject import Subject


@dataclass(frozen=True)
class MetricResult:
    """The result of a metric.

    Attributes:
        linear: (V,) loss change of each choice alone.
        features: (V, columns) rows whose inner products are the pair energies, or None.
        pairs: sparse (V, V) pair energies, or None.
        evaluations: runs of the network over all examples.
        divergence: (V,) Kullback-Leibler divergence of each choice, if it came at no extra cost.
        halves: (2, 2, V) the linear terms and the divergences on each half of the examples, if measured.
        flips: (V,) change of the share of examples that the original gets right and the choice gets wrong, if
            it came at no extra cost.
        second_half: (columns,) which columns of the features belong to every second example, if known.
    """

    linear: FloatArray
    features: FactorArray | None = None
    pairs: sparse.csr_array | None = None
    evaluations: int = 0
    divergence: FloatArray | None = None
    halves: FloatArray | None = None
    flips: FloatArray | None = None
    second_half: npt.NDArray[np.bool_] | None = None


class Metric(ABC):
    """A way to measure the loss of each choice and each pair: a frozen dataclass of options."""

    metric_name: ClassVar[str]

    @property
    def counts_flips(self) -> bool:
        """Whether it runs every choice and returns ``MetricResult.flips``; not by default."""
        return False

    @property
    def knows_divergence(self) -> bool:
        """Whether it returns ``MetricResult.divergence``; if not, shrinkage towards it is refused before measuring."""
        return True

    @property
    def knows_halves(self) -> bool:
        """Whether it returns ``MetricResult.halves``, which ``shrinkage="auto"`` needs."""
        return True

    @property
    def sees_inputs(self) -> bool:
        """Whether it measures choices that round a layer's inputs; if not, menus with ``activations`` are refused."""
        return False

    def evaluations(self, subject: Subject) -> float:
        """Expected runs over all examples, for the progress bar; none by default."""
        return 0.0

    @abstractmethod
    def measure(self, subject: Subject) -> MetricResult:
        """Measure all choices of all groups.

        Units passed to ``subject.gather`` are resumed from a cache and shared by the ranks of ``torch.distributed``.
        """


def adopt(kind: type) -> None:
    """Adapt a metric that was written for 0.4, when metrics had no base class."""
    older_plug_ins.adopt(kind, Metric, older_plug_ins.names_in(kind), {})


def __getattr__(name: str) -> Any:
    return older_plug_ins.renamed(__name__, {"MeasureTask": Subject})(name)


metrics: Registry[type[Metric]] = Registry("metric", "metric_name", adopt)


def make_metric(metric: str | Metric) -> Metric:
    """The metric object of a registered name; an object is returned unchanged.

    Raises:
        UnknownName: when the name is not registered.
        InvalidMenu: for anything but a metric.
    """
    if isinstance(metric, str):
        return metrics.get(metric)()
    adopt(type(metric))
    if not isinstance(metric, Metric):
        hint = f"give {metric.__name__}()" if isinstance(metric, type) else "see qubo_compress.sensitivity.names()"
        raise InvalidMenu(f"a metric is a registered name or a Metric object; got {metric!r}; {hint}")
    return metric

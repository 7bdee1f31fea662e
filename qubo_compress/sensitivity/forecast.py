"""Predicts how long a measurement will take: by counting multiplications and timing a run.

Multiplications are those of the layer calls in a run of a few examples. Their present speed on this machine is measured
by timing that run; the metric's other work is added by factors that were measured once, on small and large networks,
and are documented with the constants.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from qubo_compress._internal.checks import refuse_unknown
from qubo_compress.calibration.examples import set_aside
from qubo_compress.menu.menu import Menu
from qubo_compress.network.discovery import GroupRule
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.losses.classification import AUTO, LossLike
from qubo_compress.network.replay import run_model
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.metric import Metric
from qubo_compress.sensitivity.metrics.auto import AutoMetric, multiplications, network_runs, resolved, runs_alone
from qubo_compress.sensitivity.metrics.products import Products
from qubo_compress.sensitivity.preparation import prepared
from qubo_compress.sensitivity.ranks import ALONE, Ranks
from qubo_compress.sensitivity.specimen import Specimen
from qubo_compress.sensitivity.subject import Subject

TIMED_EXAMPLES = 64
"""Timed at once: with fewer, small networks spend most of the time between their layers."""

TIMED_SECONDS = 0.3
"""Runs are repeated for about this long, and the median counts: a single one is off by ten times on a busy machine."""

MOST_TIMED = 15
"""Runs at most."""

PREPARATION_RUNS = 4.0
"""Cost of reading, checks and reference outputs, in forward runs: ResNet-20 2 to 4, a vision transformer 2 to 4."""

SWEEP = {"gauss-newton": 1.2}
"""Time beyond the multiplications of runs of choices: ResNet-20 1.4, a vision transformer 1.4, the example 0.9."""

FEWEST_EXAMPLES = 16
"""A time limit takes no more examples away than down to this many: fewer say nothing."""

ENCODING_SECONDS = 0.25
"""Seconds per million values and 15 choices that storing takes (``benchmarks.studies.pricing``, one core)."""

PASS_BYTES = 900_000_000
"""Held by one forward and backward pass and by displacements at most, see ``metrics.products``."""


@dataclass(frozen=True)
class Forecast:
    """The time and memory that a measurement will take.

    Attributes:
        metric: the metric that will be used.
        why: the reason for it.
        examples: number of examples to measure.
        held_out: number of further ones that :func:`qubo_compress.compress` holds out.
        choices: number of choices of all groups.
        evaluations: the cost in runs of the whole network over all examples.
        fixed_seconds: independent of the number of examples.
        seconds: total, on this machine under its present load.
        bytes: of memory beyond the network, the examples and the libraries.
        multiplications: of one forward run of one example, in the layer calls that were seen.
    """

    metric: str
    why: str
    examples: int
    choices: int
    evaluations: float
    fixed_seconds: float
    seconds: float
    bytes: int
    held_out: int = 0
    multiplications: float = 0.0

    def __str__(self) -> str:
        """The forecast in one readable line."""
        aside = f" ({self.held_out:,} more are held out)" if self.held_out else ""
        return (
            f"measuring {self.choices:,} choices on {self.examples:,} examples{aside} by {self.metric} ({self.why}): "
            f"about {_duration(self.seconds)}, {max(1, round(self.bytes / 1e6)):,} MB"
        )

    def examples_within(self, seconds: float) -> int:
        """The number of examples that fit into a time."""
        each = (self.seconds - self.fixed_seconds) / max(1, self.examples)
        fitting = math.floor((seconds - self.fixed_seconds) / max(each, 1e-12))
        return max(min(self.examples, FEWEST_EXAMPLES), min(self.examples, fitting))

    def within(self, seconds: float) -> Forecast:
        """The forecast for as many examples as fit."""
        count = self.examples_within(seconds)
        each = (self.seconds - self.fixed_seconds) / max(1, self.examples)
        said = f"{self.why}; {count:,} of {self.examples:,} examples, to stay within {_duration(seconds)}"
        return replace(self, examples=count, seconds=self.fixed_seconds + count * each, why=said)


@torch.inference_mode(False)  # inference mode allows no gradients, and hides writes
def estimate(
    model: nn.Module,
    batches: Iterable[Any],
    menu: Menu | None = None,
    metric: str | Metric = "auto",
    loss: LossLike = AUTO,
    groups: GroupRule = "layer",
    *,
    held_out: bool = True,
    **settings: Any,
) -> Forecast:
    """Predict the time and memory of measuring a table, from the arguments of ``measure``.

    The network runs once over all examples, as at the start of any measurement. A budget for harmful flips, which
    ``compress`` measures by ``"gauss-newton"``, is unknown here: name that metric.

    Args:
        model: unchanged.
        batches: re-iterable calibration batches.
        menu: the choices to offer; default: ``Menu()``.
        metric: a registered name or a metric object.
        loss: ``"auto"``, a name or a function.
        groups: see :func:`qubo_compress.menu.discover`.
        held_out: whether examples are held out, as by :func:`qubo_compress.compress` without validation batches.
            False: all are measured, as by ``measure``, and by ``compress`` with validation batches.
        settings: further keyword arguments of :func:`qubo_compress.measure`, such as ``max_examples``.

    Raises:
        InvalidBatches, InvalidModel, InvalidMenu, NonFiniteLoss, ForwardFailed, UnknownName:
            for what cannot be used; the message says what to do.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> found = estimate(model, [(torch.randn(16, 4), torch.randint(3, (16,)))], menu=Menu(bits=(2, 8)))
        >>> found.metric, found.examples
        ('gauss-newton', 8)
        >>> estimate(model, [(torch.randn(16, 4), torch.randint(3, (16,)))], held_out=False).examples
        16
    """
    refuse_unknown(estimate, settings, (field.name for field in fields(Measurement)))
    whole = Specimen.of(model, batches, Measurement(menu, metric, loss, groups, **settings)).private()
    measured = whole.on(set_aside(whole.examples)[0]) if held_out else whole
    with every_layer_runs(), torch.no_grad():
        _, forecast = forecast_within(prepared(measured), whole.settings)
    return replace(forecast, held_out=whole.examples.count - measured.examples.count)


def forecast_within(subject: Subject, settings: Measurement, ranks: Ranks = ALONE) -> tuple[Metric, Forecast]:
    """The metric to use, and the forecast for as many of the examples as the time allows."""
    asked, seconds = settings.asked, settings.seconds
    chosen, why = resolved(asked, subject)
    forecast = forecast_of(subject, chosen, why)
    if seconds is None:
        return chosen, forecast
    if isinstance(asked, AutoMetric):
        # Products of all examples are better than running every choice on a few. The ranks' clocks differ, so rank 0
        # decides.
        other, reason = resolved(replace(asked, small=0.0), subject)
        cheaper = forecast_of(subject, other, reason)
        late = forecast.seconds > seconds and cheaper.seconds < forecast.seconds
        if bool(ranks.first(lambda: {"late": np.array(late)})["late"]):
            chosen, forecast = other, cheaper
    if forecast.seconds > seconds:
        forecast = forecast.within(seconds)
    return chosen, replace(forecast, examples=int(ranks.first(lambda: {"count": np.array(forecast.examples)})["count"]))


def forecast_of(subject: Subject, chosen: Metric, why: str) -> Forecast:
    """The forecast of a subject under a metric."""
    runs, alone = network_runs(subject, chosen), runs_alone(subject, chosen)
    swept = runs * SWEEP.get(chosen.metric_name, 1.0)
    each = (PREPARATION_RUNS + swept) * _seconds_per_example(subject, TIMED_EXAMPLES)
    if alone:
        each += alone * _seconds_per_example(subject, 1)
    values = sum(group.numel * len(names) for group, names in zip(subject.layout.groups, subject.choices, strict=True))
    fixed = ENCODING_SECONDS * values / 15e6
    count, total = subject.examples.count, int(subject.offsets[-1])
    columns = sum(rows.numel() for rows in subject.outputs)
    if isinstance(chosen, Products):
        columns = count * chosen.probes_of(subject)
    features = 4 * total * min(columns, subject.max_columns)
    memory = 2 * features + min(PASS_BYTES, 4 * values + each_bytes(subject))
    seconds = fixed + count * each
    return Forecast(
        chosen.metric_name, why, count, total, runs + alone, fixed, seconds, int(memory),
        multiplications=multiplications(subject),
    )  # fmt: skip


def each_bytes(subject: Subject) -> int:
    """Bytes of the outputs of all modules over one slice of examples."""
    positions = 0 if subject.trace is None else sum(subject.trace.positions)
    return 4 * positions * max(len(part) for part in subject.examples.slices)


def _seconds_per_example(subject: Subject, together: int) -> float:
    """Seconds of one forward pass over the given number of examples, the median of some after the first."""
    part = subject.examples.first(together)
    probe, count = part.inputs, len(part)
    times: list[float] = []
    while len(times) < 2 or (len(times) < MOST_TIMED and sum(times) < TIMED_SECONDS):
        start = time.perf_counter()
        run_model(subject.base, probe)
        if subject.device.type == "cuda":
            torch.cuda.synchronize(subject.device)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) / count


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

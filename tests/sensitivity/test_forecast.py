"""What a measurement will take, said before it starts: as much of what compress measures as is known then."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.sensitivity import forecast
from qubo_compress.sensitivity.forecast import PREPARATION_RUNS
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.metrics.auto import GRADIENT_RUNS, ROUNDED_RUNS, AutoMetric
from qubo_compress.sensitivity.metrics.products import Products
from qubo_compress.sensitivity.preparation import prepared
from qubo_compress.sensitivity.specimen import Specimen

MENU = qc.Menu(bits=(2, 8), sparsity=(0.0,))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 6, generator=generator), torch.arange(count) % 3)]


class Scaled(nn.Module):
    """A network one of whose parameters is used in a way of its own: a matrix multiplied elementwise."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 3)
        self.scale = nn.Parameter(torch.ones(1, 32)) if own else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.last(hidden if self.scale is None else hidden * self.scale)


def label(name: str, module: nn.Module) -> str:
    """A rule that asks for every parameter, the scale included."""
    return name


@pytest.mark.parametrize("count", [40, 1, 200])
def test_the_defaults_are_those_of_compress(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Scaled(own=False).eval()
    found = qc.estimate(net, batches(count), menu=MENU)
    module = sys.modules["qubo_compress.pipeline.compress"]
    seen: list[int] = []
    real = module.measure_specimen

    def watched(specimen: Any, *rest: Any, **options: Any) -> Any:
        seen.append(specimen.examples.count)
        return real(specimen, *rest, **options)

    monkeypatch.setattr(module, "measure_specimen", watched)
    given: dict[str, Any] = {"menu": MENU, "progress": False, "time_limit": 0.3}
    result = qc.compress(net, batches(count), qc.Budget(ratio=2), **given)
    assert [found.examples] == seen and found.metric == result.table.provenance.metric
    assert found.examples + found.held_out == count
    assert ("more are held out" in str(found)) == (count > 1)
    qc.compress(net, batches(count), qc.Budget(ratio=2), batches(10), **given)
    everything = qc.estimate(net, batches(count), menu=MENU, held_out=False)
    assert everything.examples == seen[-1] == count and everything.held_out == 0


def test_auto_is_decided_for_the_examples_that_compress_measures() -> None:
    net = Scaled(own=False).eval()
    for small in torch.logspace(3, 7, 9).tolist():
        # Somewhere between, all of the examples are too many for gauss-newton and those that are measured are not.
        metric = AutoMetric(small=small)
        table = qc.measure(net, [(batches(100)[0][0][:50], batches(100)[0][1][:50])], MENU, metric, progress=False)
        assert qc.estimate(net, batches(100), MENU, metric).metric == table.provenance.metric
    metrics = [
        [qc.estimate(net, batches(100), MENU, AutoMetric(small=s), held_out=h).metric for s in torch.logspace(3, 7, 60)]
        for h in (True, False)
    ]
    assert metrics[0] != metrics[1]


def test_runs_of_single_examples_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        forecast, "_seconds_per_example", lambda _, together: {forecast.TIMED_EXAMPLES: 1.0, 1: 10.0}[together]
    )
    metric = Products(probes=3)
    given: dict[str, Any] = {"menu": MENU, "metric": metric, "groups": label, "held_out": False}
    known, own = (qc.estimate(Scaled(own=own).eval(), batches(20), **given) for own in (False, True))
    together, alone = 1 + 3 * GRADIENT_RUNS, 1 + 3 * 2.0
    assert known.evaluations == together and own.evaluations == together + alone
    timed = PREPARATION_RUNS + together
    assert known.seconds == pytest.approx(known.fixed_seconds + 20 * timed)
    assert own.seconds == pytest.approx(own.fixed_seconds + 20 * (timed + 10.0 * alone))
    assert own.examples_within(own.seconds) == 20 > own.examples_within(own.seconds * 0.9) >= 16


def test_choices_that_are_run_besides_are_counted() -> None:
    net = Scaled(own=False).eval()
    plain, run = (
        qc.estimate(net, batches(20), menu=MENU, metric=Products(probes=1, measured_linear=linear))
        for linear in (False, True)
    )
    swept = qc.estimate(net, batches(20), menu=MENU, metric="gauss-newton")
    assert run.evaluations == pytest.approx(plain.evaluations + swept.evaluations)


def test_a_network_that_products_cannot_follow_is_refused_as_by_measuring() -> None:
    class Mixing(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return self.last(hidden - hidden.mean(0))

    with pytest.raises(errors.InvalidModel, match="depends on the other"):
        qc.estimate(Mixing(own=False).eval(), 2 * batches(20), menu=MENU, metric="products")


def test_every_range_of_the_inputs_costs_one_more_gradient() -> None:
    net, rounded = Scaled(own=False).eval(), "quantize(bits=8,activations={})"
    menus = [["quantize(bits=8)"], [rounded.format(8)], [rounded.format(8), rounded.format(4)]]
    found = [
        qc.estimate(net, batches(40), menu=qc.Menu(menu), metric=Products(probes=2, first_order=False)).evaluations
        for menu in menus
    ]
    assert found == pytest.approx([found[0] + 2 * ranges * ROUNDED_RUNS for ranges in (0, 1, 2)])


def test_a_run_that_was_interrupted_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run and a single slow one, on a busy machine, leave the estimate as it is."""
    net, taken = Scaled(own=False).eval(), []
    now, steps = [0.0], iter([50.0, 0.02, 0.02, 90.0, *[0.02] * 1000])

    def run(*_: Any) -> None:
        taken.append(now[0])
        now[0] += next(steps)

    subject = prepared(Specimen.of(net, batches(20), Measurement(MENU)).private())
    monkeypatch.setattr(forecast, "TIMED_SECONDS", 1000.0)
    monkeypatch.setattr(forecast, "run_model", run)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: now[0])
    assert forecast._seconds_per_example(subject, 20) == pytest.approx(0.001)
    assert len(taken) == forecast.MOST_TIMED

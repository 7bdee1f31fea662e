"""Rounded inputs as both metrics see them: against the network run with them, around plans too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qubo_compress as qc
from qubo_compress.errors import InvalidModel
from qubo_compress.sensitivity.measure import measure_specimen
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.metrics.products import Products
from qubo_compress.sensitivity.specimen import Around, Specimen

MENU = qc.Menu(["quantize(bits=8,activations=8)", "quantize(bits=6,activations=4)", "quantize(bits=4)"])


def _table(given: Any, metric: Any, **options: Any) -> qc.SensitivityTable:
    return qc.measure(
        given.model, given.batches, menu=MENU, metric=metric, loss="kl", progress=False, interactions=1.0, **options
    )


@pytest.mark.parametrize("network", ["grouped-view-inplace", "encoder", "own-padding", "inputs-first"])
def test_single_choices_are_measured_as_the_applied_network_runs(sample: Callable[[str], Any], network: str) -> None:
    given = sample(network)
    table = _table(given, "gauss-newton")
    loss = table.stitched_loss(given.model, given.batches, loss="kl")
    tried = 0
    for group, choices in enumerate(table.choices):
        for number, choice in enumerate(choices):
            if "activations" in choice:
                local = np.zeros(len(table.choices), dtype=np.int64)
                local[group] = number
                assert loss(local) == pytest.approx(table.linear[table.offsets[group] + number], rel=2e-3, abs=1e-7)
                tried += 1
    assert tried


@pytest.mark.parametrize("network", ["grouped-view-inplace", "encoder", "own-padding", "inputs-first", "volume"])
def test_products_agree_with_runs_of_the_network(sample: Callable[[str], Any], network: str) -> None:
    given = sample(network)
    ran, multiplied = _table(given, "gauss-newton"), _table(given, Products(probes=60))
    assert ran.choices == multiplied.choices
    rounded = np.array(["activations" in choice for choices in ran.choices for choice in choices])
    a, b = (np.asarray(table.factor, dtype=np.float64)[rounded] for table in (ran, multiplied))
    grams = [rows @ rows.T for rows in (a, b)]
    assert np.corrcoef(grams[0].ravel(), grams[1].ravel())[0, 1] > 0.9
    assert 0.5 < np.trace(grams[1]) / np.trace(grams[0]) < 2.0


@pytest.mark.parametrize("metric", ["gauss-newton", Products(probes=40)])
def test_around_a_rounded_plan_its_own_choices_cost_nothing(sample: Callable[[str], Any], metric: Any) -> None:
    given = sample("own-padding")
    first = _table(given, "gauss-newton")
    plan = first.plan(dict.fromkeys(("stem.weight", "head.weight"), "quantize(bits=6,activations=4)"))
    settings = Measurement(MENU, metric, "kl", progress=False, interactions=1.0)
    specimen = Specimen.of(given.model, given.batches, settings)
    again = measure_specimen(specimen, Around(plan.apply(given.model), None, first.payloads))
    for name, choice in plan.choices.items():
        group = again.group_names.index(name)
        number = int(again.offsets[group]) + again.choices[group].index(choice)
        assert again.factor is not None
        assert abs(again.linear[number]) < 1e-6 and not again.factor[number].any()
    back = int(again.offsets[again.group_names.index("stem.weight")])
    assert again.factor is not None and again.factor[back].any()  # keeping the stem undoes its rounding


def test_a_finer_range_costs_less(sample: Callable[[str], Any]) -> None:
    given = sample("perceptron")
    menu = qc.Menu([f"quantize(bits=8,activations={bits})" for bits in (2, 4, 8)])
    table = qc.measure(given.model, given.batches, menu=menu, loss="kl", metric="gauss-newton", progress=False)
    coarse, middle, fine = table.linear[1:4]
    assert coarse > middle > fine > 0


def test_the_network_is_unchanged_by_measuring(sample: Callable[[str], Any]) -> None:
    given = sample("grouped-view-inplace")
    before = given.model(given.batches[0][0])
    _table(given, Products(probes=1))
    assert torch.equal(given.model(given.batches[0][0]), before)
    assert not any(module._forward_pre_hooks for module in given.model.modules())


def test_a_network_that_rounds_its_inputs_is_not_measured_again(sample: Callable[[str], Any]) -> None:
    given = sample("perceptron")
    menu = qc.Menu(["quantize(bits=8,activations=8)"])
    table = qc.measure(given.model, given.batches, menu=menu, loss="kl", metric="gauss-newton", progress=False)
    rounded = next(name for name, offered in zip(table.group_names, table.choices, strict=True) if len(offered) > 1)
    small = table.plan({rounded: "quantize(bits=8,activations=8)"}).apply(given.model)
    for groups in ("layer", "channel"):
        with pytest.raises(qc.errors.InvalidModel, match="rounds the inputs"):
            qc.measure(small, given.batches, groups=groups, progress=False)


class Overwritten(nn.Module):
    """A layer whose input, or an activation that no layer reads, is overwritten after its use."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.read = read
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        other = self.second(hidden if self.read else functional.gelu(hidden))
        hidden += 1
        return self.last(other + hidden)


@pytest.mark.parametrize("read", [True, False])
def test_networks_that_overwrite_what_gradients_need_are_refused_by_name(read: bool) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(12, 6), torch.arange(12) % 3)]
    with pytest.raises(InvalidModel, match="second.weight is overwritten" if read else "activation is overwritten"):
        qc.measure(Overwritten(read), data, menu=MENU, metric="products", progress=False)
    qc.measure(Overwritten(read), data, menu=MENU, metric="gauss-newton", progress=False)

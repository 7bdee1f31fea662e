"""Products against the same numbers from Jacobians, for every network of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.menu.coding.coded import Coded
from qubo_compress.pipeline.close import FEWEST_EXAMPLES, MOST_EXAMPLES, affordable
from qubo_compress.sensitivity.metrics.auto import AutoMetric
from qubo_compress.sensitivity.metrics.products import Products
from qubo_compress.testing import check_metric, same_snapshot, same_table, snapshot

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5))
NOT_ALONE = ("batch-dependent", "changeable")
"""Networks in which examples depend on each other."""


def measured(sample: Any, metric: Any, **options: Any) -> qc.SensitivityTable:
    options = {"menu": MENU, "progress": False, "max_rank": None, "interactions": 1.0, "shrinkage": 0.0, **options}
    return qc.measure(sample.model, sample.batches, metric=metric, **options)


def gram(table: qc.SensitivityTable) -> np.ndarray:
    assert table.factor is not None
    return table.factor.astype(np.float64) @ table.factor.astype(np.float64).T


def test_it_is_a_metric() -> None:
    check_metric("products")


def test_slopes_are_those_of_jacobians(any_sample: Any) -> None:
    if any_sample.name in NOT_ALONE:
        with pytest.raises(errors.InvalidModel, match="gauss-newton"):
            measured(any_sample, Products())
        return
    before = snapshot(any_sample.model)
    found = measured(any_sample, Products(first_order=True))
    assert same_snapshot(before, snapshot(any_sample.model))
    exact = measured(any_sample, "jacobian")
    slopes = [t.linear - 0.5 * np.diag(gram(t)) for t in (found, exact)]
    tolerance = 0.1 if any_sample.name == "bfloat16" else 2e-3
    assert np.abs(slopes[0] - slopes[1]).max() <= tolerance * np.abs(slopes[1]).max()


@pytest.mark.parametrize("name", ["grouped-view-inplace", "tied", "encoder", "perceptron", "twice", "functional"])
def test_pair_energies_are_those_of_jacobians_on_average(sample: Callable[[str], Any], name: str) -> None:
    exact = gram(measured(sample(name), "jacobian", loss="kl"))
    few, many = (gram(measured(sample(name), Products(probes), loss="kl")) for probes in (16, 128))
    errors_of = [np.linalg.norm(found - exact) / np.linalg.norm(exact) for found in (few, many)]
    assert errors_of[1] < 0.1 and errors_of[1] < errors_of[0]


class Strided(nn.Module):
    """Convolutions of every kind, some of whose inputs no output position reads."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(2, 4, (4, 3), padding="same", dilation=2)
        self.reflect = nn.Conv2d(4, 6, 3, stride=(2, 3), padding=1, padding_mode="reflect", groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.deep = nn.Conv2d(4, 8, 3, groups=4, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.up(torch.relu(self.reflect(torch.tanh(self.same(x))))))
        return self.head(torch.tanh(self.deep(hidden)).mean((2, 3)))


class OwnPadding(nn.Conv2d):
    """A convolution that pads in its own forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x, (1, 2, 0, 1))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Frames(nn.Module):
    """Time folded into the axis of examples, an elementwise gain, and positions without an axis of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = OwnPadding(1, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.place = nn.Embedding(3, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        folded = x.reshape(-1, 1, *x.shape[2:])
        hidden = self.norm(self.conv(folded)).relu().mean((2, 3)).reshape(*x.shape[:2], 4)
        hidden = hidden + self.place(torch.arange(3))
        return self.head(torch.tanh(hidden @ self.mix.weight.t() * self.mix.weight[0]).mean(1))


@pytest.mark.parametrize("model, shape", [(Strided, (2, 9, 8)), (Frames, (3, 5, 5))])
def test_layers_are_measured_by_what_they_call(model: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = model().eval()
    batches = [(torch.randn(7, *shape), torch.arange(7) % 3), (torch.randn(2, *shape), torch.arange(2))]
    options: dict[str, Any] = {"menu": MENU, "progress": False, "max_rank": None, "interactions": 1.0, "shrinkage": 0.0}
    found = qc.measure(net, batches, metric=Products(first_order=True), **options)
    exact = qc.measure(net, batches, metric="jacobian", **options)
    slopes = [t.linear - 0.5 * np.diag(gram(t)) for t in (found, exact)]
    assert np.abs(slopes[0] - slopes[1]).max() <= 1e-3 * np.abs(slopes[1]).max()


class Deep(nn.Module):
    """So many layers, every one of which adds to what the one before made."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


class Tanhs(TorchDispatchMode):
    """Counts the values that hyperbolic tangents take, and those whose gradients they pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.tanh.default:
            self.forward += found.numel()
        if func is torch.ops.aten.tanh_backward.default:
            self.backward += found.numel()
        return found


def layer_runs(depth: int, metric: Any) -> tuple[int, int]:
    """Values that the layers of a deep network made in a measurement, and gradients that they passed on."""
    torch.manual_seed(0)
    data = [(torch.randn(20, 6), torch.arange(20) % 3)]
    with Tanhs() as seen:
        table = qc.measure(Deep(depth).eval(), data, menu=MENU, metric=metric, progress=False)
    assert table.provenance.metric == "products" and len(table.choices) == 2 * (depth + 1)
    return seen.forward, seen.backward


@pytest.mark.parametrize("metric", ["products", AutoMetric(small=0.0)])
def test_a_layer_of_a_deep_network_runs_no_more_often_than_one_of_a_shallow_network(metric: Any) -> None:
    """Running every choice takes twice as many runs of every layer at twice the depth."""
    shallow, deep = layer_runs(3, metric), layer_runs(12, metric)
    assert shallow[0] > 0 and shallow[1] > 0
    assert deep == (4 * shallow[0], 4 * shallow[1])


def test_choices_are_run_on_as_many_examples_as_the_measurement_pays_for(sample: Callable[[str], Any]) -> None:
    table = measured(sample("perceptron"), "products")
    spent = replace(table.provenance, multiplications=1e9, evaluations=3, examples=2000)
    table = replace(table, provenance=spent)
    assert affordable(60, 2000, table) == 100, "6,000 runs, as products took"
    assert affordable(6, 2000, table) == MOST_EXAMPLES and affordable(6, 5, table) == 5
    assert affordable(6000, 2000, table) == FEWEST_EXAMPLES


def test_filters_are_rows_of_their_layers(sample: Callable[[str], Any]) -> None:
    net = sample("grouped-view-inplace")
    menu = qc.Menu(bits=(3,), sparsity=(0.0,))
    filters = measured(net, Products(), groups="filter", menu=menu, loss="kl")
    layers = measured(net, Products(), menu=menu, loss="kl")
    assert filters.factor is not None and layers.factor is not None
    for name in layers.group_names:
        of_layer = layers.offsets[layers.group_names.index(name)] + 1
        of_filters = [filters.offsets[n] + 1 for n, g in enumerate(filters.group_names) if g.split("[")[0] == name]
        together = gram(filters)[np.ix_(of_filters, of_filters)].sum()
        assert together == pytest.approx(gram(layers)[of_layer, of_layer], rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("groups", ["layer", "filter"])
def test_a_coded_choice_has_the_rows_of_the_plain_one_and_is_not_decoded_for_them(
    groups: str, sample: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sample("perceptron")
    names = ["quantize(bits=2)", "quantize(bits=4,sparsity=0.5)", "compensate(bits=2)"][: 3 if groups == "layer" else 2]
    coded = [f"coded(of='{name}')" for name in names]
    both = qc.Menu([qc.menu.operator.parse(name) for name in (*names, *coded)])
    plain = qc.Menu([qc.menu.operator.parse(name) for name in names])
    monkeypatch.setattr(Coded, "decode", lambda *_: pytest.fail("a coded choice was decoded"))
    table = qc.measure(found.model, found.batches, menu=both, metric="products", groups=groups, progress=False)
    alone = qc.measure(found.model, found.batches, menu=plain, metric="products", groups=groups, progress=False)
    seen = 0
    for group, choices in enumerate(table.choices):
        first, position = int(table.offsets[group]), {name: number for number, name in enumerate(choices)}
        for name, other in zip(names, coded, strict=True):
            if name in position and other in position:
                rows = [first + position[name], first + position[other]]
                assert table.linear[rows[0]] == table.linear[rows[1]]
                assert np.allclose(*table.factor[rows], rtol=1e-5, atol=1e-6)  # reduced to their rank since
                before = int(alone.offsets[group]) + alone.choices[group].index(name)
                assert table.linear[rows[0]] == pytest.approx(alone.linear[before], rel=1e-5)
                seen += 1
    assert seen >= 4


def test_rows_do_not_depend_on_how_examples_are_batched(sample: Callable[[str], Any]) -> None:
    net = sample("perceptron")
    inputs, targets = (torch.cat(parts) for parts in zip(*net.batches, strict=True))
    whole = measured(net, Products())
    net.batches[:] = [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]
    assert same_table(whole, measured(net, Products()))


def test_a_cache_without_slopes_does_not_answer_for_them(sample: Callable[[str], Any], tmp_path: Path) -> None:
    found = sample("perceptron")
    measured(found, "products", shrinkage=None, cache=tmp_path)
    cached = measured(found, "products", shrinkage=0.0, cache=tmp_path)
    assert same_table(cached, measured(found, "products", shrinkage=0.0)) and cached.linear.min() < 0


def test_a_network_without_gradients_is_refused(sample: Callable[[str], Any]) -> None:
    net = sample("perceptron")
    kind = type(net.model)
    net.model.__class__ = type("Quiet", (kind,), {"forward": torch.no_grad()(kind.forward)})
    with pytest.raises(errors.InvalidModel, match="gauss-newton"):
        measured(net, Products())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(errors.InvalidMenu, match="probes"):
        Products(0)
    with pytest.raises(errors.InvalidMenu, match="measured_linear"):
        Products(measured_linear="near")


def test_attention_is_measured_in_batches(sample: Callable[[str], Any], caplog: pytest.LogCaptureFixture) -> None:
    net = sample("encoder-time-first")
    with caplog.at_level("INFO"):
        measured(net, Products())
    # Its output projection counts the examples fastest; positions have no axis of examples at all.
    alone = [record.getMessage() for record in caplog.records if "not used by known layers only" in record.getMessage()]
    assert len(alone) == 1 and alone[0].startswith("place.weight:")


def test_a_time_limit_prefers_all_examples(sample: Callable[[str], Any]) -> None:
    net = sample("perceptron")
    assert measured(net, "auto", seconds=1e-9).provenance.metric in ("products", "gauss-newton")
    assert measured(net, "auto").provenance.metric == "gauss-newton"
    with pytest.raises(errors.InvalidMenu, match="seconds"):
        measured(net, "auto", seconds=0.0)


@pytest.mark.parametrize("normalisation", [nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(6, 6)])
def test_a_bias_whose_gradient_is_rounding_says_nothing_about_examples(normalisation: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), normalisation, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    data = [(torch.randn(6, 2, 6, 6), torch.arange(6) % 3)]
    table = qc.measure(net, data, menu=qc.Menu(["quantize(bits=4)"]), metric="products", progress=False)
    assert table.provenance.metric == "products" and table.linear.any()

"""Input moments: errors of weights priced by them are errors of outputs, whatever the layer and wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qubo_compress.errors import InvalidMenu
from qubo_compress.examples import read_examples
from qubo_compress.menu.groups import Group, discover
from qubo_compress.statistics import Calibration
from qubo_compress.statistics.input_moments import InputMoments

EXAMPLES = 10


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _calibration(model: nn.Module, inputs: Tensor, weights: Tensor | None = None, slice_size: int = 4) -> Calibration:
    batch = inputs if weights is None else (inputs, torch.zeros(len(inputs), dtype=torch.long), weights)
    examples = read_examples([batch], slice_size=slice_size)
    return Calibration(model.eval(), examples, None, lambda given: model(given), 0)  # type: ignore[arg-type]


def _groups(model: nn.Module, rule: str = "layer") -> list[Group]:
    return [group for group in discover(model, rule).groups if group.kind == "weight"]


def _priced(moments: Any, error: Tensor) -> float:
    rows = error.double().reshape(len(error), -1)
    return sum(
        float(((rows[a:b] @ moments.blocks[block]) * rows[a:b]).sum()) for block, a, b in moments.spans(len(rows))
    )


def _output_change(layer: nn.Module, inputs: Tensor, error: Tensor, weights: Tensor) -> float:
    """Weighted sum of the squared change of the layer's outputs, in float64."""
    with torch.no_grad():
        before = layer.double()(inputs.double())
        layer.weight += error.double()
        change = (layer(inputs.double()) - before) ** 2
    return float((change.reshape(len(inputs), -1).sum(1) * weights.double()).sum())


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "linear with leading axes": (lambda: nn.Linear(5, 3), (4, 2, 5)),
    "conv1d, stride, dilation": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (4, 11)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), groups=2), (4, 7, 6)),
    "conv2d, depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3), (3, 6, 6)),
    "conv2d, same": (lambda: nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2)), (2, 6, 7)),
    "conv2d, reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 6, 6)),
    "conv2d, replicate": (lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="replicate"), (2, 6, 6)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=1, groups=2), (2, 4, 6, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_priced_error_is_the_error_of_the_outputs(name: str) -> None:
    make, size = LAYERS[name]
    layer, inputs = make(), _random(EXAMPLES, *size)
    weights = torch.arange(1.0, EXAMPLES + 1)
    calibration = _calibration(nn.Sequential(layer, nn.Flatten(1)), inputs, weights)
    (group,) = _groups(calibration.model)
    (moments,) = InputMoments().collect(calibration, group)
    error = _random(*layer.weight.shape, seed=1)
    seen = torch.cat([part.weights for part in calibration.examples.slices])
    expected = _output_change(layer, inputs, error, seen)
    assert _priced(moments, error) == pytest.approx(expected, rel=1e-5)
    assert all(block.dtype == torch.float64 for block in moments.blocks)


def test_filters_share_the_moments_and_factors_of_their_layer() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(1))
    calibration = _calibration(model, _random(EXAMPLES, 4, 5, 5))
    (layer,) = InputMoments().collect(calibration, _groups(model)[0])
    filters = [InputMoments().collect(calibration, group)[0] for group in _groups(model, "filter")]
    error = _random(*model[0].weight.shape, seed=1)
    assert _priced(layer, error) == pytest.approx(sum(_priced(m, error[r : r + 1]) for r, m in enumerate(filters)))
    assert [moments.block_of(0) for moments in filters] == [0, 0, 0, 1, 1, 1]
    assert filters[0].inverse_factor(0, 0.01) is filters[1].inverse_factor(0, 0.01)


class _Twice(nn.Module):
    """One weight in two modules, one of which is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))


def test_owners_and_calls_add_up() -> None:
    model, inputs = _Twice().eval(), _random(EXAMPLES, 4)
    calibration = _calibration(model, inputs)
    (moments,) = InputMoments().collect(calibration, _groups(model)[0])
    with torch.no_grad():
        seen, total = inputs, torch.zeros(4, 4, dtype=torch.float64)
        for _ in range(3):
            total += seen.double().T @ seen.double() / EXAMPLES
            seen = torch.tanh(model.first(seen))
    torch.testing.assert_close(moments.blocks[0], total, rtol=1e-5, atol=1e-9)


class _Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_the_network_behind_the_layer_runs_once_only() -> None:
    model = nn.Sequential(nn.Linear(3, 3), _Counted())
    calibration = _calibration(model, _random(EXAMPLES, 3), slice_size=2)
    InputMoments().collect(calibration, _groups(model)[0])
    assert model[1].calls == 1 < len(calibration.examples.slices)
    assert not model[0]._forward_hooks


class _Frames(nn.Module):
    """Frames of every example are folded into the first axis, and the input is given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(input=x.flatten(0, 1)).reshape(len(x), -1)


def test_frames_take_the_weight_of_their_example() -> None:
    model, inputs = _Frames().eval(), _random(EXAMPLES, 3, 2, 5, 5)
    calibration = _calibration(model, inputs, torch.arange(1.0, EXAMPLES + 1))
    (moments,) = InputMoments().collect(calibration, _groups(model)[0])
    error = _random(*model.convolution.weight.shape, seed=1)
    seen = torch.cat([part.weights for part in calibration.examples.slices])
    expected = _output_change(model.convolution, inputs.flatten(0, 1), error, seen.repeat_interleave(3))
    assert _priced(moments, error) == pytest.approx(expected, rel=1e-5)


class _TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).mean(0)


def test_an_axis_that_is_not_of_examples_is_refused_where_weights_differ() -> None:
    model, inputs = _TimeFirst().eval(), _random(EXAMPLES, 7, 4)
    (group,) = _groups(model)
    (moments,) = InputMoments().collect(_calibration(model, inputs), group)
    flat = inputs.double().reshape(-1, 4)
    torch.testing.assert_close(moments.blocks[0], flat.T @ flat / EXAMPLES, rtol=1e-5, atol=1e-9)
    with pytest.raises(InvalidMenu, match="7 entries along the first axis, for 4 examples"):
        InputMoments().collect(_calibration(model, inputs, torch.arange(1.0, EXAMPLES + 1)), group)


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.embedding = nn.Linear(4, 6, bias=False), nn.Embedding(6, 4)
        self.embedding.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1))


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        (_Shared(), torch.randint(0, 6, (EXAMPLES, 3)), "shared with a module of type Embedding"),
        (_Unused(), _random(EXAMPLES, 4), "never ran on the calibration data"),
    ],
)
def test_what_has_no_moments_is_refused(model: nn.Module, inputs: Tensor, reason: str) -> None:
    with pytest.raises(InvalidMenu, match=reason):
        InputMoments().collect(_calibration(model, inputs), _groups(model)[0])


def test_factor_is_that_of_the_damped_inverse_even_of_dead_inputs() -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    inputs = _random(EXAMPLES, 6) * torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    (moments,) = InputMoments().collect(_calibration(model, inputs), _groups(model)[0])
    upper = moments.inverse_factor(0, 0.01)
    torch.testing.assert_close(upper.T @ upper @ moments.damped(0, 0.01), torch.eye(6).double(), rtol=0, atol=1e-8)
    assert upper is moments.inverse_factor(0, 0.01)
    assert torch.equal(upper, upper.triu())

"""Codes of a trellis as a choice: stored, changed later, and in whole files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.errors import InvalidMenu, UnknownName
from qubo_compress.menu.coding.coded import Coded, CodedGroup
from qubo_compress.menu.coding.trellis.stored import TrellisTensors
from qubo_compress.menu.coding.trellis.trellis import Trellis
from qubo_compress.menu.coding.writer import coded_bytes
from qubo_compress.menu.operator import choice_name, parse
from qubo_compress.network.groups import Group, Member
from qubo_compress.testing import check_operator

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(48, 6, 3, 3, generator=GENERATOR)
INPUTS = torch.randn(200, 54, generator=GENERATOR, dtype=torch.float64)
MOMENTS = Moments((INPUTS.T @ INPUTS / 200,), 0, 48)


def group_of(weight: Tensor, module: str = "Conv2d") -> Group:
    return Group("w", "weight", (Member("w", tuple(weight.shape), weight.dtype),), module)


def stored(choice: Trellis | Coded, weight: Tensor = WEIGHT, moments: Moments = MOMENTS) -> TrellisTensors | CodedGroup:
    return choice.encode_with(group_of(weight), [weight], {InputMoments(): (moments,)})


def test_coded_it_conforms() -> None:
    check_operator(Coded("trellis(step=1.0)"))


@pytest.mark.parametrize("states", [0, 4, 8])
def test_other_programs_get_multiples_of_one_step(states: int) -> None:
    packed = stored(Trellis(0.4, states=states))
    form = packed.portable(0)
    assert form.steps.numel() == 1 and form.codes.dtype == torch.int8
    assert torch.equal(form.decoded(), packed.tensors()[0])
    # Between two values of one quantizer lies one of the other.
    root = float(WEIGHT.square().mean().sqrt())
    assert float(form.steps) == pytest.approx(0.4 * root / (2 if states else 1), rel=1e-3)


def test_a_higher_rate_and_a_wider_step_take_fewer_bytes() -> None:
    sizes = {
        (step, rate): len(coded_bytes(stored(Trellis(step, rate)))) for step in (0.5, 1.0, 2.0) for rate in (0.0, 1.0)
    }
    for step in (0.5, 1.0, 2.0):
        assert sizes[step, 1.0] < sizes[step, 0.0]
    assert sizes[0.5, 1.0] > 1.3 * sizes[1.0, 1.0] > 1.69 * sizes[2.0, 1.0]


def test_a_large_damping_compensates_nothing() -> None:
    free = stored(Trellis(0.7, damping=1e8)).tensors()[0]
    alike = Moments((torch.eye(54, dtype=torch.float64),), 0, 48)
    assert torch.equal(free, stored(Trellis(0.7), moments=alike).tensors()[0])
    apart = (stored(Trellis(0.7)).tensors()[0] - WEIGHT).square().sum()
    assert (free - WEIGHT).square().sum() < 0.9 * apart


@pytest.mark.parametrize("refit", [False, True])
def test_later_values_go_to_the_nearest_sequence(refit: bool) -> None:
    packed = stored(Trellis(0.6))
    reach, step = packed.parts[0].reach, float(packed.parts[0].step)
    far = packed.project([1e6 * torch.ones_like(WEIGHT)], refit)
    assert far.nbytes == packed.nbytes and int(far.parts[0].codes.abs().max()) == reach
    near = packed.project([WEIGHT.clamp(-2, 2)], refit)
    # A quarter of the width of plain codes, and a little for states that do not offer the nearest value.
    assert float((near.tensors()[0] - WEIGHT.clamp(-2, 2)).abs().mean()) < 0.45 * step
    assert torch.equal(near.project(near.tensors(), refit).tensors()[0], near.tensors()[0])


def test_a_price_of_bits_makes_later_values_smaller() -> None:
    packed = stored(Trellis(0.6))
    moved = [WEIGHT + 0.2 * torch.randn(WEIGHT.shape, generator=torch.Generator().manual_seed(1))]
    found = [packed.weighed(moved, price) for price in (0.0, 0.3, 3.0)]
    sizes = [len(coded_bytes(tried)) for tried in found]
    errors = [float((tried.tensors()[0] - moved[0]).square().sum()) for tried in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.95 * sizes[0]
    assert errors == sorted(errors) and errors[1] < 1.2 * errors[0]


def test_changed_values_keep_to_their_bytes_with_little_more_error() -> None:
    packed = stored(Coded("trellis(step=1.0)"))
    moved = packed.tensors()[0] + 0.2 * torch.randn(WEIGHT.shape, generator=torch.Generator().manual_seed(1))
    found, nearest = packed.project([moved], True), packed.inner.project([moved], True)
    assert len(found.to_bytes()) == packed.nbytes
    assert coded_bytes(nearest) != coded_bytes(found.inner)
    error, least, before = (float((form.tensors()[0] - moved).norm()) for form in (found, nearest, packed))
    assert least < error < min(1.5 * least, before)


def test_wrong_settings_and_altered_bytes_are_refused() -> None:
    for wrong in ({"step": 0.0}, {"step": "1"}, {"step": 1.0, "rate": -1.0}, {"step": 1.0, "states": 2}):
        with pytest.raises(InvalidMenu, match=r"must be"):
            Trellis(**wrong)  # type: ignore[arg-type]
    packed = stored(Trellis(1.0))
    data = bytearray(packed.to_bytes())
    data[2:4] = np.array([-5], dtype="<i2").tobytes()
    with pytest.raises(ValueError, match="cannot have been stored"):
        Trellis(1.0).decode(group_of(WEIGHT), memoryview(bytes(data)))
    for step in (np.nan, np.inf, 0.0, -0.5):
        data = np.array([step], dtype=np.float16).tobytes() + packed.to_bytes()[2:]
        with pytest.raises(ValueError, match="step of .* cannot have been stored"):
            Trellis(1.0).decode(group_of(WEIGHT), memoryview(data))
    with pytest.raises(UnknownName, match="smallest"):
        qc.Menu.preset("tiny")
    assert parse(choice_name(Trellis(1.0, states=4))) == Trellis(1.0, states=4)


class Net(nn.Module):
    """An embedding, a depthwise and a grouped convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.depthwise = nn.Conv1d(12, 12, 3, groups=12)
        self.grouped = nn.Conv1d(12, 24, 3, groups=2)
        self.norm = nn.BatchNorm1d(24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.depthwise(self.words(x).transpose(1, 2)))
        return self.head(torch.relu(self.norm(self.grouped(hidden))).mean(2))


def test_recovered_networks_keep_their_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    batches = [(torch.randint(0, 20, (80, 9)), torch.randint(0, 4, (80,)))]
    menu = qc.Menu([f"coded(of='trellis(step={step})')" for step in (0.5, 1.5)])
    found = qc.compress(net, batches, qc.Budget(ratio=1.5), menu=menu, solver="greedy", progress=False)
    assert any(isinstance(form, CodedGroup) for form in qc.plan.compression_of(found.compressed_model).stored.values())
    weights = [
        len(names)
        for name, names in zip(found.table.group_names, found.table.choices, strict=True)
        if "norm" not in name and "bias" not in name
    ]
    assert weights == [3, 3, 3, 3]  # all take both steps, the embedding too
    for epochs in (0, 2):
        better = qc.recover(
            found.compressed_model, batches, net, epochs=epochs, learning_rate=3e-3, progress=False
        )  # fmt: skip
        path = tmp_path / f"after_{epochs}"
        assert qc.save(better, path) == found.plan.bytes
        for key, value in qc.load(path, net).state_dict().items():
            assert torch.equal(value, better.state_dict()[key])
    moved = [
        a
        for a, b in zip(better.parameters(), found.compressed_model.parameters(), strict=True)
        if a.ndim > 1 and not torch.equal(a, b)
    ]
    assert moved

"""Fine-tuning of networks with codes of a trellis."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.examples import read_examples
from qubo_compress.menu.coding.coded import CodedGroup
from qubo_compress.plan import compression_of
from qubo_compress.recovery.training import Training, objective_of
from qubo_compress.recovery.trellis_steps import TrellisSteps

CODED = "coded(of='trellis(step=1.5)')"


class Mixed(nn.Module):
    """A convolution, a depthwise one with a normalisation, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 12, 3)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.norm = nn.BatchNorm2d(12)
        self.wide = nn.Linear(12, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.depthwise(torch.relu(self.first(x)))))
        return self.head(torch.relu(self.wide(x.mean((2, 3)))))


def batches(count: int = 80) -> list[tuple[Tensor, Tensor]]:
    inputs = torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1)).cumsum(2)
    return [(part, torch.zeros(len(part), dtype=torch.long)) for part in inputs.split(40)]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    found = Mixed()
    with torch.no_grad():
        found.head.weight.mul_(6.0)
        for inputs, _ in batches():
            found(inputs)
    return found.eval()


def compressed(net: nn.Module) -> nn.Module:
    table = qc.measure(net, batches(), menu=qc.Menu([CODED, "keep"]), metric="magnitude", progress=False)
    pairs = zip(table.group_names, table.choices, strict=True)
    return table.plan({name: CODED if CODED in names else "keep" for name, names in pairs}).apply(net)


def coded(model: nn.Module) -> dict[str, CodedGroup]:
    stored = compression_of(model).stored
    return {name: group for name, group in stored.items() if isinstance(group, CodedGroup)}


@pytest.mark.parametrize("count", [80, 3])
def test_steps_move_codes_and_bytes_do_not(net: nn.Module, count: int, tmp_path: Path) -> None:
    small, given = compressed(net), batches(count)
    start = qc.recover(small, given, net, progress=False)
    first, second = (qc.recover(small, given, net, epochs=4, seed=4, progress=False) for _ in range(2))
    sizes = [qc.save(model, tmp_path / str(number)) for number, model in enumerate((small, first, second))]
    assert len(set(sizes)) == 1
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    loaded = qc.load(tmp_path / "1", net)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in first.state_dict().items())
    before, after = coded(start), coded(first)
    assert len(before) == 4
    assert all(torch.equal(before[n].inner.parts[0].codes, after[n].inner.parts[0].codes) for n in before)
    examples, training = read_examples(given), Training(epochs=1)
    objectives = [objective_of(model, net, examples, training, progress=False) for model in (first, start)]
    assert objectives[0] <= objectives[1]
    if count == 80:
        assert any(before[n].inner.parts[0].step != after[n].inner.parts[0].step for n in before)
        assert objectives[0] < objectives[1]


def test_the_gradient_of_a_step_is_that_of_its_values(net: nn.Module) -> None:
    group = coded(compressed(net))["wide.weight"]
    steps = TrellisSteps(group, torch.device("cpu"))
    value = steps.passed()[0]
    assert torch.equal(value, group.tensors()[0])
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    (value * upstream).sum().backward()
    assert steps.factors[0].grad is not None
    assert float(steps.factors[0].grad) == pytest.approx(float((upstream * value.detach()).sum()), rel=1e-4)
    with torch.no_grad():
        steps.factors[0].fill_(1.1)
    packed = steps.packed()
    assert packed.nbytes == len(packed.to_bytes()) == group.nbytes
    ratio = float(packed.inner.parts[0].step) / float(group.inner.parts[0].step)
    assert ratio == pytest.approx(1.1, rel=1e-3) or packed is group
    assert packed is group or torch.equal(steps.passed()[0], packed.tensors()[0])


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e9])
def test_steps_stay_storable(net: nn.Module, factor: float) -> None:
    steps = TrellisSteps(coded(compressed(net))["head.weight"], torch.device("cpu"))
    with torch.no_grad():
        steps.factors[0].fill_(factor)
    assert bool(torch.isfinite(steps.packed().tensors()[0]).all())


def test_fine_tuning_is_undone_if_it_harms_others(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last fifth of the examples judges; an objective that falls on the others alone is not enough."""
    seen: list[int] = []

    def rising(model: nn.Module, teacher: nn.Module, examples: Any, training: Training, progress: bool) -> float:
        seen.append(examples.count)
        return float(len(seen)) if examples.count == 16 else 0.0

    monkeypatch.setattr(importlib.import_module("qubo_compress.recovery.recover"), "objective_of", rising)
    small = compressed(net)
    start = qc.recover(small, batches(), net, progress=False)
    tuned = qc.recover(small, batches(), net, epochs=1, progress=False)
    assert seen == [64, 16] * 4
    assert all(torch.equal(value, start.state_dict()[key]) for key, value in tuned.state_dict().items())


def test_a_single_example_judges_and_is_learned(net: nn.Module) -> None:
    small, given = compressed(net), batches(1)
    start, tuned = (qc.recover(small, given, net, epochs=epochs, progress=False) for epochs in (0, 2))
    examples, training = read_examples(given), Training(epochs=1)
    before, after = (objective_of(model, net, examples, training, progress=False) for model in (start, tuned))
    assert after <= before


def test_frozen_steps_stay(net: nn.Module) -> None:
    small = compressed(net)
    tuned = qc.recover(small, batches(), net, epochs=1, frozen=["first.weight"], progress=False)
    assert torch.equal(tuned.state_dict()["first.weight"], small.state_dict()["first.weight"])

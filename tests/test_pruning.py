"""Pruning whole networks: shares, scopes, steps, and plans that can be saved and applied again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import InvalidBudget, InvalidMenu
from qubo_compress.plan import compression_of
from qubo_compress.pruning import METHODS, Pruning, cubic_schedule, prune, prune_gradually


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    ).eval()  # fmt: skip


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(30, 1, 6, 6, generator=generator), torch.arange(30) % 3)]


def zeros(small: nn.Module, name: str) -> int:
    return int((small.state_dict()[name] == 0).sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_share_is_kept_and_the_file_is_as_planned(
    net: nn.Module, batches: Any, tmp_path: Path, method: str, scope: str
) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small = prune(net, batches, 0.6, Pruning(method, scope, gradients=20))
    weights = ["0.weight", "4.weight", "6.weight"]
    total = sum(before[name].numel() for name in weights)
    pruned = [zeros(small, name) for name in weights]
    if scope == "global":
        assert abs(sum(pruned) - 0.6 * total) <= len(weights)
    else:
        assert all(abs(n - 0.6 * before[name].numel()) <= 1 for n, name in zip(pruned, weights, strict=True))
    plan = compression_of(small).plan
    assert qc.save(small, tmp_path / "net.safetensors") == plan.bytes
    loaded = qc.load(tmp_path / "net.safetensors", net)
    again = plan.apply(net)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]) and torch.equal(tensor, again.state_dict()[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_only_the_layers_asked_for(net: nn.Module, batches: Any) -> None:
    small = prune(net, batches, 0.5, Pruning("magnitude"), layers=r"^4\.")
    assert zeros(small, "4.weight") == 480 and zeros(small, "0.weight") == 0
    with pytest.raises(InvalidMenu, match="picks no weight"):
        prune(net, batches, 0.5, layers="conv7")


def test_steps_nest_and_end_at_the_share(net: nn.Module, batches: Any, tmp_path: Path) -> None:
    small = prune_gradually(
        net,
        batches,
        0.75,
        Pruning("woodfisher", "layer", gradients=20),
        steps=2,
        epochs=1,
        layers="weight$",
        progress=False,
    )
    assert zeros(small, "4.weight") >= 720
    plan = compression_of(small).plan
    plan.save(tmp_path / "plan.json")
    again = qc.Plan.load(tmp_path / "plan.json").apply(net)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert qc.save(small, tmp_path / "net.safetensors") == plan.bytes


def test_schedules(net: nn.Module, batches: Any) -> None:
    shares = cubic_schedule(0.9, 5)
    assert shares[-1] == pytest.approx(0.9) and shares == sorted(shares)
    with pytest.raises(InvalidBudget):
        prune_gradually(net, batches, 0.9, steps=2, schedule=[0.5, 0.4], progress=False)
    with pytest.raises(InvalidMenu, match="magnitude"):
        Pruning("magnitudes")

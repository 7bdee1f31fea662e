"""Pruning whole networks: shares, scopes, steps, and plans that can be saved and applied again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.evaluation import score_examples
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.statistics.gradients import Gradients
from qubo_compress.errors import InvalidBudget, InvalidMenu, NonFiniteLoss, WrongModel
from qubo_compress.plan import compression_of
from qubo_compress.pruning.pruning import (
    METHODS,
    Pruning,
    cubic_schedule,
    gradients_of,
    prune,
    prune_gradually,
    pruned_layers,
)


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
    with pytest.raises(InvalidMenu, match="damping"):
        Pruning(damping=0.0)


@pytest.mark.parametrize("update", ["joint", "independent"])
@pytest.mark.parametrize("method", ["woodfisher", "woodtaylor"])
def test_what_an_earlier_step_pruned_stays_pruned(net: nn.Module, batches: Any, method: str, update: str) -> None:
    how = Pruning(method, "global", update=update, gradients=20)
    before = prune(net, batches, 0.4, how)
    after = prune(before, batches, 0.7, how)
    for name in ("0.weight", "4.weight", "6.weight"):
        gone = before.state_dict()[name] == 0
        assert not after.state_dict()[name][gone].any()


def test_dampings_are_reported(net: nn.Module, batches: Any) -> None:
    layers = pruned_layers(prune(net, batches, 0.5, Pruning(gradients=20)))
    assert [layer.name for layer in layers] == ["0.weight", "4.weight", "6.weight"]
    assert sum(layer.pruned for layer in layers) == pytest.approx(0.5 * sum(layer.weights for layer in layers), abs=1)
    assert len({layer.damping for layer in layers}) == 1 and (layers[0].damping or 0) > 0
    assert all(layer.held_out_error is not None and layer.held_out_error > 0 for layer in layers)
    given = pruned_layers(prune(net, batches, 0.5, Pruning(gradients=20, damping=1e-3)))
    assert {(layer.damping, layer.held_out_error) for layer in given} == {(1e-3, None)}
    plain = pruned_layers(prune(net, batches, 0.5, Pruning("magnitude")))
    assert {layer.damping for layer in plain} == {None}
    with pytest.raises(WrongModel, match="prune"):
        pruned_layers(net)


def test_few_gradients_and_no_labels_are_enough(net: nn.Module) -> None:
    unlabelled = [torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(3))]
    small = prune(net, unlabelled, 0.5, Pruning(gradients=4), loss="kl")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in small.state_dict().values())


def test_networks_of_many_layers_have_names_enough() -> None:
    torch.manual_seed(0)
    wide = nn.ModuleList([nn.Linear(29, 37, bias=False) for _ in range(300)])

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = wide, nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    small = prune(Many(), [(torch.randn(4, 7), torch.arange(4) % 3)], 0.5, Pruning("magnitude"))
    assert len(compression_of(small).plan.menu_names) <= 255


def test_gradients_gathered_before_serve_several_prunings(net: nn.Module, batches: Any) -> None:
    how = Pruning(gradients=20)
    gathered = gradients_of(net, batches, how)
    for share in (0.4, 0.7):
        fresh, shared = prune(net, batches, share, how), prune(net, batches, share, how, gradients=gathered)
        assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), shared.parameters(), strict=True))
    with pytest.raises(InvalidMenu, match="gradients_of"):
        prune(net, batches, 0.5, how, gradients={"0.weight": gathered["0.weight"]})


def test_the_loss_on_unseen_examples_decides_between_dampings(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    many = [(torch.randn(120, 1, 6, 6, generator=generator), torch.arange(120) % 3)]
    chosen = pruned_layers(prune(net, many, 0.6, Pruning(gradients=40)))[0]
    assert chosen.held_out_loss is not None and chosen.damping is not None
    examples = read_examples(many)
    used = Gradients(40).example_numbers(120, 0)
    unseen = examples.select(np.setdiff1d(np.arange(120), used))
    losses = {
        damping: score_examples(prune(net, many, 0.6, Pruning(gradients=40, damping=damping)), unseen).loss
        for damping in (chosen.damping, chosen.damping * 1e4)
    }
    assert losses[chosen.damping] == pytest.approx(chosen.held_out_loss, rel=1e-5)
    assert losses[chosen.damping] <= losses[chosen.damping * 1e4] + 1e-6
    few = pruned_layers(prune(net, [(many[0][0][:44], many[0][1][:44])], 0.6, Pruning(gradients=40)))[0]
    assert few.held_out_loss is None and few.held_out_error is not None


def test_shuffling_batches_are_read_once_so_that_unseen_examples_are_unseen(net: nn.Module) -> None:
    class Counted(torch.utils.data.Dataset[tuple[Tensor, int]]):
        reads = 0

        def __len__(self) -> int:
            return 600

        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            Counted.reads += 1
            return torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(number)), number % 3

    loader = torch.utils.data.DataLoader(Counted(), batch_size=100, shuffle=True)
    small = prune(net, loader, 0.5, Pruning(gradients=50))
    assert Counted.reads == 600
    assert all(layer.held_out_loss is not None for layer in pruned_layers(small))


@pytest.mark.parametrize("damping", [None, 1e-5])
def test_gradients_that_are_not_finite_are_refused(damping: float | None) -> None:
    class Root(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return (values * values * (values > 0)).sqrt()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), Root(), nn.Linear(8, 3))
    with pytest.raises(NonFiniteLoss, match=r"gradients of 0\.weight are NaN"):
        prune(net, [(torch.randn(20, 4), torch.arange(20) % 3)], 0.5, Pruning(damping=damping, scope="layer"))


def test_without_labels_the_damping_is_judged_by_the_original_outputs(net: nn.Module) -> None:
    inputs = [torch.randn(400, 1, 6, 6, generator=torch.Generator().manual_seed(2))]
    small = prune(net, inputs, 0.5, Pruning(gradients=40))
    assert all(layer.held_out_loss is not None for layer in pruned_layers(small))

"""Branches that leave whole: what is left is the constant that they add."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks.architectures import DigitsNet, ResNet20
from benchmarks.networks.attention import VisionTransformer
from qubo_compress.errors import InvalidModel, WrongModel
from qubo_compress.network.channels import Channels, find_channels
from qubo_compress.network.channels.cutting import apart_at_most, removal_of_sets, unread
from qubo_compress.network.channels.removal_file import removals_from, text_of
from qubo_compress.network.constant_output import ConstantOutput
from tests.network.channels.test_channels import lively


class Inverted(nn.Module):
    """Two depthwise blocks, the second with a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU())
        self.wide = nn.Sequential(
            nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU6(), nn.Conv2d(12, 6, 1),
        )  # fmt: skip
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.narrow(x)
        return self.head((hidden + self.wide(hidden)).mean((2, 3)))


class Perceptron(nn.Module):
    """A perceptron over the last axis, added to its inputs, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inside = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x + self.inside(self.norm(x))


def perceptrons() -> nn.Module:
    return nn.Sequential(Perceptron(), Perceptron(), nn.Linear(16, 4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "residual": (
        lambda: ResNet20(blocks=1), (3, 3, 16, 16), {f"layer{n}.0.conv1.weight" for n in (1, 2, 3)}
    ),
    "digits": (lambda: DigitsNet(6), (3, 1, 8, 8), {"block1.conv1.weight", "block2.conv1.weight"}),
    "depthwise": (Inverted, (3, 1, 8, 8), {"wide.0.weight"}),
    "perceptrons": (perceptrons, (3, 1, 4, 4), {"0.inside.0.weight", "1.inside.0.weight"}),
}  # fmt: skip


@pytest.fixture(params=sorted(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, set[str]]:
    make, shape, branches = NETWORKS[request.param]
    return lively(make()), torch.randn(shape), branches


def of_branches(channels: Channels) -> list[int]:
    return [number for number, item in enumerate(channels.sets) if item.family in channels.dispensable]


def test_branches_leave_whole(case: tuple[nn.Module, Tensor, set[str]]) -> None:
    net, inputs, wanted = case
    channels = find_channels(net, inputs, whole=True)
    gone = of_branches(channels)
    made = {channels.sets[number].name.rpartition("[")[0] for number in gone}
    assert made == wanted
    removal = removal_of_sets(channels, gone, net)
    assert removals_from(text_of([removal])) == (removal,)
    small = removal.applied(net)
    assert apart_at_most(unread(net, [channels.sets[number] for number in gone]), small, inputs) < 1e-4
    assert set(small.state_dict()) < set(net.state_dict())
    assert any(isinstance(module, ConstantOutput) for module in small.modules())
    # What is left is a network whose other channels can be found, and that trains.
    left = find_channels(small, inputs)
    assert not {item.name for item in left.sets} & {channels.sets[number].name for number in gone}
    small.train()(inputs).sum().backward()


def test_a_network_keeps_what_it_cannot_do_without(case: tuple[nn.Module, Tensor, set[str]]) -> None:
    net, inputs, _ = case
    channels = find_channels(net, inputs, whole=True)
    needed = channels.sets[0].family
    channels = replace(channels, dispensable=channels.dispensable - {needed})
    everything = [number for number, item in enumerate(channels.sets) if item.family == needed]
    with pytest.raises(InvalidModel, match="nothing of"):
        removal_of_sets(channels, everything, net)
    channels = find_channels(net, inputs, whole=True)
    removal = removal_of_sets(channels, of_branches(channels), net)
    with pytest.raises(WrongModel):
        removal.applied(nn.Linear(2, 2))


def test_kernels_that_read_the_weights_of_layers_keep_their_channels() -> None:
    net = VisionTransformer(24, 2, 4, 14).eval()
    assert not find_channels(net, torch.randn(3, 1, 28, 28), whole=True).dispensable


def test_layers_in_a_row_are_no_branch() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    assert not find_channels(net, torch.randn(4, 4), whole=True).dispensable
    with pytest.raises(InvalidModel, match="no branch of this network"):
        qc.measure(net, [(torch.randn(4, 4), torch.arange(4) % 2)], groups="branch", progress=False)


def test_one_example_does_not_show_what_is_added_to_a_batch() -> None:
    net, inputs = DigitsNet(6).eval(), torch.randn(1, 1, 8, 8)
    assert not find_channels(net, inputs, whole=True).dispensable


def test_a_plan_about_branches(case: tuple[nn.Module, Tensor, set[str]], tmp_path: Path) -> None:
    net, inputs, _ = case
    data = [(inputs.repeat(4, 1, 1, 1), torch.arange(4 * len(inputs)) % 3)]
    table = qc.measure(net, data, groups="branch", progress=False)
    assert all(choices == ("keep", "remove") for choices in table.choices)
    solution = qc.solve(
        table.problem(qc.Budget(ratio=1, macs=int(0.8 * table.provenance.multiplications))), time_limit=1
    )
    plan = table.plan(solution)
    assert "remove" in plan.choices.values()
    small = plan.apply(net)
    plan.save(tmp_path / "plan.json")
    for repaired in (small, qc.recover(small, data, teacher=net, epochs=1, progress=False)):
        written = qc.save(repaired, tmp_path / "small.safetensors")
        assert (tmp_path / "small.safetensors").stat().st_size <= plan.bytes
        again = qc.load(tmp_path / "small.safetensors", net)
        with torch.no_grad():
            assert torch.equal(again(inputs), repaired(inputs)), written
    with torch.no_grad():
        assert torch.equal(type(plan).load(tmp_path / "plan.json").apply(net)(inputs), small(inputs))


def test_the_constant_makes_up_for_the_branch() -> None:
    net, inputs = lively(DigitsNet(6)), torch.randn(64, 1, 8, 8)
    data = [(inputs, torch.arange(64) % 10)]
    table = qc.measure(net, data, groups="branch", progress=False)
    problem = table.problem(qc.Budget(ratio=1, macs=int(0.7 * table.provenance.multiplications)))
    plan = table.plan(qc.solve(problem, time_limit=1))
    assert plan.removal is not None
    (name,) = (item.module for item in plan.removal.bypassed if item.constant)
    seen: list[Tensor] = []
    net.get_submodule(name).register_forward_hook(lambda *given: seen.append(given[2].mean((0, 2, 3))))
    with torch.no_grad():
        net(inputs)
    made_up, bare = (
        (model.get_submodule(name).bias - seen[0]).square().sum()  # type: ignore[operator, union-attr]
        for model in (plan.apply(net), plan.removal.applied(net))
    )
    assert made_up < 0.5 * bare

"""Shrinking keeps every output: zeros and constants leave, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks.architectures import DigitsNet, ResNet20
from benchmarks.networks.attention import ByteGPT, VisionTransformer
from tests.conftest import Sample
from tests.network.channels.test_channels import Separable, lively


def outputs(net: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return net(inputs)


def check(net: nn.Module, inputs: Tensor, sets: int | None = None) -> qc.pruning.Shrunk:
    before = copy.deepcopy(net.state_dict())
    found = qc.shrink(net, [inputs])
    wanted = outputs(net, inputs)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(outputs(found.model, inputs), wanted, rtol=0.0, atol=1e-5 * scale)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    assert found.parameters == sum(p.numel() for p in found.model.parameters())
    assert (found.parameters < found.parameters_before) == bool(found.removed)
    assert sets is None or len(found.removed) == sets, str(found)
    return found


def test_a_network_without_constants_stays(any_sample: Sample) -> None:
    found = qc.shrink(any_sample.model, any_sample.batches)
    unread = {"dropped.weight[0]", "dropped.weight[1]"}  # of a head whose output goes nowhere
    assert {item.name for item in found.removed} <= unread


@pytest.mark.parametrize("seed", range(3))
def test_filters_that_are_zero_leave(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net = lively(ResNet20(blocks=1))
    zeroed = 0
    for block in (net.layer1[0], net.layer2[0], net.layer3[0]):
        dead = torch.rand(len(block.conv1.weight), generator=generator) < 0.4
        with torch.no_grad():
            block.conv1.weight[dead] = 0.0
            block.bn1.bias[dead] = block.bn1.bias[dead].abs().neg()  # below zero, so that relu makes zeros of it
            block.bn1.running_mean[dead] = 0.0
        zeroed += int(dead.sum())
    check(net, torch.randn(4, 3, 16, 16), sets=zeroed)


def test_a_constant_beside_padding_stays() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        net[0].weight[:3] = 0.0
        net[0].bias[:3] = torch.tensor([1.0, 0.0, -2.0])
    found = check(net, torch.randn(3, 2, 6, 6), sets=2)
    assert [item.name for item in found.removed] == ["0.weight[1]", "0.weight[2]"]
    net[2].padding = (0, 0)
    net[4] = nn.Linear(12, 2)
    check(net, torch.randn(3, 2, 6, 6), sets=3)


def test_constants_move_to_a_running_mean() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.Hardswish(), nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 2),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight[:2] = 0.0
        net[0].bias[:2] = torch.tensor([2.0, 3.0])
    lively(net)
    found = check(net, torch.randn(3, 2, 6, 6), sets=2)
    assert not torch.equal(found.model[3].running_mean, net[3].running_mean)


def test_without_a_bias_a_constant_stays() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[:2] = 0.0
        net[0].bias[:2] = torch.tensor([2.0, 0.0])
    check(net, torch.randn(3, 3), sets=1)


def test_scales_of_zero_and_inputs_that_nothing_reads() -> None:
    net = lively(DigitsNet(6))
    with torch.no_grad():
        net.block2.bn1.weight[:4] = 0.0
        net.block2.bn1.bias[:4] = -1.0
        net.block1.conv2.weight[:, 2] = 0.0  # nothing reads channel 2 in the block
    found = check(net, torch.randn(3, 1, 8, 8), sets=5)
    assert found.model.block2.conv1.out_channels == 8 and found.model.block1.conv2.in_channels == 5


def test_a_stream_leaves_only_if_all_its_parts_are_constant() -> None:
    net = lively(DigitsNet(6))
    with torch.no_grad():
        for norm in (net.bn1, net.block1.bn2):
            norm.weight[1] = 0.0
            norm.bias[1] = -0.5
        net.bn1.weight[3] = 0.0
    assert [item.name for item in check(net, torch.randn(3, 1, 8, 8)).removed] == ["conv1.weight[1]"]


def test_depthwise_convolutions_and_gates() -> None:
    net = lively(Separable())
    with torch.no_grad():
        net.stem.weight[2] = 0.0
        net.norm.bias[2] = net.norm.running_mean[2] = 0.0
        net.depthwise.bias[4:6] = 0.0
    check(net, torch.randn(3, 2, 6, 6), sets=1)


@pytest.mark.parametrize("make", [lambda: ByteGPT(24, 2, 4, 12), lambda: VisionTransformer(24, 2, 4, 14)])
def test_heads_and_widths_of_transformers(make: Callable[[], nn.Module]) -> None:
    net = make().eval()
    inputs = torch.randint(0, 256, (3, 12)) if isinstance(net, ByteGPT) else torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        if isinstance(net, ByteGPT):
            block = net.blocks[0]
            block.attention.value.weight[:6] = 0.0
            block.attention.value.bias[:6] = 0.0
            block.up.weight[:10] = 0.0
            block.up.bias[:10] = 1.0
        else:
            block = net.blocks[0]
            block.self_attn.in_proj_weight[48:54] = 0.0
            block.self_attn.in_proj_bias[48:54] = 0.0
            block.linear1.weight[:10] = 0.0
            block.linear1.bias[:10] = 1.0
    check(net, inputs, sets=11)


def test_one_channel_is_left() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1.0)
    assert check(net, torch.randn(3, 3), sets=4).model[0].out_features == 1


def test_what_a_filter_plan_removed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    data = [(torch.randn(32, 2, 6, 6), torch.arange(32) % 3)]
    table = qc.measure(net, data, menu=qc.Menu(["zero"]), groups="filter", progress=False)
    chosen = {name: "zero" for name in table.group_names if name in ("0.weight[1]", "0.weight[5]", "2.weight[3]")}
    small = table.plan(chosen).apply(net)
    found = check(small, data[0][0], sets=3)
    assert "2 of 0.weight, 1 of 2.weight" in str(found)
    with pytest.raises(qc.errors.WrongModel):
        qc.save(found.model, "never.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_constants_leave_networks_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 4)).to(dtype)
    with torch.no_grad():
        net[0].weight[:5] = 0.0
    found = qc.shrink(net, [torch.randn(6, 3, dtype=dtype)])
    assert len(found.removed) == 5 and found.difference < 1e-5 and found.model[0].weight.dtype == dtype

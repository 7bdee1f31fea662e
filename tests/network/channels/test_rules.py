"""Operations that channels pass: which sets there are, and that the network without some is the one that reads none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_compress.network.channels import Channels, find_channels
from qubo_compress.network.channels.cutting import removal_of_sets
from qubo_compress.network.channels.removal import removals_of
from tests.network.channels.llama import LENGTH, TOKENS, Llama
from tests.network.channels.test_channels import refuse_difference


class Made(nn.Module):
    """A network of some layers and a function of them."""

    def __init__(self, run: Callable[[Made, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def pictures(*layers: nn.Module, channels: int = 6, out: int = 6) -> tuple[nn.Module, Tensor]:
    """Layers between two convolutions."""
    first, last = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(out, 2, 3)
    return nn.Sequential(first, *layers, last, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(3, 3, 6, 6)


def rows(run: Callable[[Made, Tensor], Tensor], width: int, out: int) -> tuple[nn.Module, Tensor]:
    """A function between two linear layers."""
    return Made(run, a=nn.Linear(5, width), b=nn.Linear(out, 3)), torch.randn(4, 5)


def resized(mode: str) -> tuple[nn.Module, Tensor]:
    def run(net: Made, x: Tensor) -> Tensor:
        return net.b(functional.interpolate(net.a(x), scale_factor=2, mode=mode)).mean((2, 3))

    return Made(run, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 3, 3)), torch.randn(3, 3, 6, 6)


def gated(net: Made, x: Tensor) -> Tensor:
    left, right = net.a(x).chunk(2, -1)
    return net.b(functional.silu(left) * right)


Case = tuple[Callable[[], tuple[nn.Module, Tensor]], Mapping[str, int]]
CASES: dict[str, Case] = {
    "one slope": (lambda: pictures(nn.PReLU()), {"0": 6}),
    "a slope per channel": (lambda: pictures(nn.PReLU(6)), {"0": 6}),
    "gated linear unit": (lambda: rows(lambda net, x: net.b(functional.glu(net.a(x))), 16, 8), {"a": 8}),
    "gated pictures": (lambda: pictures(nn.GLU(1), channels=12), {"0": 6}),
    "one projection for gate and values": (lambda: rows(gated, 16, 8), {"a": 8}),
    "pixel shuffle": (lambda: pictures(nn.PixelShuffle(2), channels=24), {"0": 6}),
    "pixel unshuffle": (lambda: pictures(nn.PixelUnshuffle(2), out=24), {"0": 6}),
    "channel shuffle": (lambda: pictures(nn.ChannelShuffle(2)), {"0": 6}),
    "groups": (lambda: pictures(nn.GroupNorm(3, 6)), {"0": 3}),
    "instances": (lambda: pictures(nn.InstanceNorm2d(6, affine=True)), {"0": 6}),
    "transposed": (lambda: pictures(nn.ConvTranspose2d(6, 5, 2, 2), out=5), {"0": 6, "1": 5}),
    "transposed in groups": (lambda: pictures(nn.ConvTranspose2d(6, 9, 2, 2, groups=3), out=9), {"0": 3}),
    "padding": (lambda: pictures(nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ZeroPad2d(1)), {"0": 6}),
    "rounded": (
        lambda: rows(lambda net, x: net.b(torch.fake_quantize_per_tensor_affine(net.a(x), 0.02, 120, 0, 255)), 6, 6),
        {"a": 6},
    ),
    **{
        f"resized by {mode}": (lambda mode=mode: resized(mode), {"a": 6})
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
    },
}


def counted(channels: Channels) -> Counter[str]:
    """Layer -> how many sets it makes."""
    return Counter(item.name.rpartition(".weight[")[0] for item in channels.sets)


def lively(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.2, 1.0)
    return net.eval()


@pytest.mark.parametrize("name", CASES)
def test_operations_pass_channels_on(name: str) -> None:
    torch.manual_seed(1)
    build, wanted = CASES[name]
    net, inputs = build()
    channels = find_channels(lively(net), inputs)
    assert counted(channels) == Counter(wanted)
    for seed in range(2):
        small = refuse_difference(net, inputs, channels, seed)
    assert removals_of(small)


@pytest.mark.parametrize("pairs", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("counts", [False, True], ids=["derived", "counted"])
@pytest.mark.parametrize("how", ["kernel", "repeated", "products"])
def test_heads_leave_with_the_keys_that_they_share(how: str, counts: bool, pairs: bool) -> None:
    torch.manual_seed(1)
    net, tokens = lively(Llama(3, how, counts, pairs)), torch.randint(0, TOKENS, (3, LENGTH))
    channels = find_channels(net, tokens)
    assert counted(channels) == {"attention.query": 3, "gate": 20}
    by_layer = {part.tensor: len(part.indices) for part in channels.sets[0].slices}
    assert by_layer == {f"attention.{k}.weight": n for k, n in (("query", 8), ("key", 4), ("value", 4), ("out", 8))}
    assert {part.tensor for part in channels.sets[-1].slices} == {"gate.weight", "up.weight", "down.weight"}
    reasons = {pinned.name: pinned.reason for pinned in channels.pinned}
    assert "combines it with every channel" in reasons["tokens.weight"]
    for seed in range(2):
        refuse_difference(net, tokens, channels, seed)
    attention = removal_of_sets(channels, [0], net).applied(net).attention
    assert not counts or (attention.num_heads, attention.num_key_value_heads, attention.head_dim) == (4, 2, 4)


def test_heads_that_share_one_key_leave_alone() -> None:
    net, tokens = lively(Llama(1)), torch.randint(0, TOKENS, (3, LENGTH))
    channels = find_channels(net, tokens)
    assert counted(channels) == {"attention.query": 6, "gate": 20}
    assert "all heads of attention share it" in {pinned.reason for pinned in channels.pinned}
    refuse_difference(net, tokens, channels, 0)


def test_halves_that_bear_the_loss_of_one_channel_only_stay() -> None:
    """Of 8 - 1 channels ``chunk`` makes 4 and 3, which fits by chance; of 8 - 2 it makes 3 and 3."""

    def run(net: Made, x: Tensor) -> Tensor:
        left, right = torch.relu(net.stem(x)).chunk(2, 1)
        return net.last(torch.cat([left, net.inner(right)], 1)).mean((2, 3))

    layers = {"stem": nn.Conv2d(3, 8, 3), "inner": nn.Conv2d(4, 4, 1), "last": nn.Conv2d(8, 3, 3)}
    net, inputs = Made(run, **layers).eval(), torch.randn(3, 3, 8, 8)
    channels = find_channels(net, inputs)
    assert counted(channels) == {"inner": 4}
    for seed in range(3):
        refuse_difference(net, inputs, channels, seed)

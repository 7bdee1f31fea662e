"""The benchmark architectures: shapes, what they compute, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import networks
from benchmarks.networks.architectures import BasicBlock, PaddedShortcut, ResNet20
from benchmarks.networks.attention import ByteGPT, CausalAttention, VisionTransformer


def test_gpt_does_not_look_ahead() -> None:
    model = ByteGPT(width=16, depth=2, heads=2, context=8).eval()
    tokens = torch.arange(8).view(1, 8)
    changed = tokens.clone()
    changed[0, 5:] = 99
    first, second = model(tokens), model(changed)
    assert first.shape == (1, 8, 256)
    assert torch.allclose(first[:, :5], second[:, :5], atol=1e-6)
    assert not torch.allclose(first[:, 5:], second[:, 5:], atol=1e-4)


def test_attention_is_the_softmax_of_scaled_products() -> None:
    layer = CausalAttention(6, heads=2)
    inputs = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    query, key, value = (part(inputs).view(4, 2, 3) for part in (layer.query, layer.key, layer.value))
    scores = torch.einsum("ihd,jhd->hij", query, key) / 3**0.5
    weights = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(2)
    expected = layer.output(torch.einsum("hij,jhd->ihd", weights, value).reshape(1, 4, 6))
    assert torch.allclose(layer(inputs), expected, atol=1e-6)


def test_gpt_refuses_what_is_too_long_and_heads_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="a sequence of 9 bytes was given; this network reads at most 8"):
        ByteGPT(width=16, depth=1, heads=2, context=8)(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 heads were asked for with width 16"):
        ByteGPT(width=16, heads=3)


def test_vision_transformer_gives_ten_logits_from_torchs_packed_attention() -> None:
    model = VisionTransformer(width=16, depth=2, heads=2).eval()
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    assert len(attentions) == 2 and all(module.in_proj_weight.shape == (48, 16) for module in attentions)
    with pytest.raises(ValueError, match="patches of 5 pixels"):
        VisionTransformer(patch=5)


def test_padded_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    inputs = torch.arange(32.0).view(1, 2, 4, 4) + 1
    outputs = PaddedShortcut(padding=1, stride=2)(inputs)
    assert outputs.shape == (1, 4, 2, 2)
    assert torch.equal(outputs[:, 1:3], inputs[:, :, ::2, ::2])
    assert not outputs[:, 0].any() and not outputs[:, 3].any()


def test_block_that_shrinks_is_refused() -> None:
    with pytest.raises(ValueError, match="from 4 to 2 channels"):
        BasicBlock(4, 2)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_resnet20_gives_ten_logits_and_runs_every_leaf_once(channels: int, size: int) -> None:
    model = ResNet20(channels).eval()
    calls: dict[nn.Module, int] = {}
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda leaf, inputs, outputs: calls.update({leaf: calls.get(leaf, 0) + 1}))
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 10)
    assert set(calls.values()) == {1}
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 19


def test_width_is_the_largest_that_fits() -> None:
    for limit in (5_000, 21_000, 255_160):
        width = networks.digits_width_within(limit)
        assert networks.float32_bytes(networks.digits_of_width(width)) <= limit
        assert networks.float32_bytes(networks.digits_of_width(width + 1)) > limit
    with pytest.raises(ValueError, match="give a limit of at least"):
        networks.digits_width_within(100)

"""The benchmark architectures: ResNet-20 of He et al. (2016) and a small residual network for 8 x 8 digits.

Every activation is its own submodule that runs once per forward pass, and nothing but submodules and one addition per
block computes, so forward sweeps can remember the output of any leaf module.
"""

from __future__ import annotations

import bisect
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

DIGITS_WIDTH = 24
"""Channels of the first stage of the shipped digits network."""


class PaddedShortcut(nn.Module):
    """The shortcut without parameters: every second pixel, new channels of zeros on either side.

    Args:
        padding: channels of zeros to add before the first and after the last channel.
        stride: 2 takes every second row and column.

    Shapes: (N, C, H, W) -> (N, C + 2 * padding, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, padding: int, stride: int) -> None:
        super().__init__()
        self.padding = padding
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Subsample the picture and pad the channels."""
        picture = inputs[:, :, :: self.stride, :: self.stride]
        return functional.pad(picture, (0, 0, 0, 0, self.padding, self.padding))

    def extra_repr(self) -> str:
        """What ``repr`` shows between the brackets."""
        return f"padding={self.padding}, stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with normalisation and a shortcut around both; ReLU after the sum.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output; the same, or larger by an even number.
        stride: of the first convolution and of the shortcut.

    Raises:
        ValueError: when the channels shrink or grow by an odd number, which the padded shortcut cannot do.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        added = channels_out - channels_in
        if added < 0 or added % 2:
            raise ValueError(
                f"a block from {channels_in} to {channels_out} channels was asked for; the padded shortcut needs "
                "channels_out >= channels_in with an even difference"
            )
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        plain = stride == 1 and added == 0
        self.shortcut: nn.Module = nn.Identity() if plain else PaddedShortcut(added // 2, stride)
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, ceil(H / stride), ceil(W / stride))."""
        hidden: Tensor = self.relu1(self.bn1(self.conv1(inputs)))
        outputs: Tensor = self.relu2(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))
        return outputs


class ResNet20(nn.Module):
    """ResNet-20 for small pictures: a 3 x 3 stem, three stages of three blocks (16, 32, 64 channels), one Linear layer.

    Args:
        input_channels: 3 for colour pictures, 1 for grey ones.
        classes: number of logits.
        blocks: blocks in each stage; 9 make a ResNet-56.

    Shapes: (N, input_channels, H, W) -> (N, classes); CIFAR-10 has H = W = 32, Fashion-MNIST 28.
    """

    def __init__(self, input_channels: int = 3, classes: int = 10, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)
        _initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, input_channels, H, W) -> logits (N, classes)."""
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(self.flatten(self.pool(hidden)))
        return logits


class DigitsNet(nn.Module):
    """A small residual network for scikit-learn's 8 x 8 digits: stem, block, halving to twice the width, block, Linear.

    Args:
        width: channels of the first stage; the second has twice as many. 24 gives 63 thousand parameters.
        classes: number of logits.

    Shapes: (N, 1, 8, 8) -> (N, classes).

    Raises:
        ValueError: when the width is below 1.
    """

    def __init__(self, width: int = DIGITS_WIDTH, classes: int = 10) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width {width} was asked for; a digits network needs a width of at least 1")
        self.width = width
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.block1 = BasicBlock(width, width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU()
        self.block2 = BasicBlock(2 * width, 2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(2 * width, classes)
        _initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> logits (N, classes)."""
        hidden = self.block1(self.relu1(self.bn1(self.conv1(inputs))))
        hidden = self.block2(self.relu2(self.bn2(self.conv2(hidden))))
        logits: Tensor = self.linear(self.flatten(self.pool(hidden)))
        return logits


def digits_of_width(width: int = DIGITS_WIDTH) -> DigitsNet:
    """A digits network of that width with fresh weights, drawn from torch's global generator.

    Raises:
        ValueError: when the width is below 1.
    """
    return DigitsNet(width)


def float32_bytes(model: nn.Module) -> int:
    """Bytes of all unique parameters and all buffers as they lie in memory; file headers not counted."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def digits_width_within(byte_limit: int) -> int:
    """The largest width whose digits network, parameters and buffers in float32, takes at most `byte_limit` bytes.

    Raises:
        ValueError: when not even width 1 fits; the message names the bytes that width 1 takes.
    """
    smallest = _digits_bytes(1)
    if byte_limit < smallest:
        raise ValueError(
            f"a digits network within {byte_limit} bytes was asked for, but the narrowest (width 1) takes {smallest}; "
            f"give a limit of at least {smallest} bytes"
        )
    too_wide = math.isqrt(byte_limit // 4) + 1  # one matrix of width x width values alone would not fit
    return bisect.bisect_right(range(1, too_wide), byte_limit, key=_digits_bytes)


def _digits_bytes(width: int) -> int:
    """Bytes of a digits network of that width, counted without allocating it."""
    with torch.device("meta"):
        return float32_bytes(DigitsNet(width))


def _stage(channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.Sequential:
    """Basic blocks; the first one changes channels and resolution."""
    rest = [BasicBlock(channels_out, channels_out) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(channels_in, channels_out, stride), *rest)


def _initialise(model: nn.Module) -> None:
    """He initialisation of the convolutions, as in the paper; everything else keeps torch's own."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

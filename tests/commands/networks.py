"""A small trained network and its examples, as a user's own module that recipes name."""

from __future__ import annotations

import functools
import sys

import torch
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


def data(seed: int = 0, count: int = 96) -> Batches:
    """Noisy pictures with a bright quarter; the label says which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    inputs = torch.randn(count, 1, 8, 8, generator=generator)
    for quarter in range(4):
        row, column = 4 * (quarter // 2), 4 * (quarter % 2)
        inputs[labels == quarter, :, row : row + 4, column : column + 4] += 1.5
    return list(zip(inputs.split(48), labels.split(48), strict=True))


def held_out() -> Batches:
    return data(seed=1)


@functools.cache
def _trained() -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 8, 3, stride=2)
    network = nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(15):
        for inputs, labels in data():
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    return network.eval()


def trained() -> nn.Module:
    """The network; it talks, as users' code does."""
    print("loading the weights")
    return _trained()


def other() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2))


def parts() -> type:
    class Parts:
        calibration = data()

    return Parts


def no_network() -> str:
    return "no network"


def broken() -> nn.Module:
    raise ValueError("the weights\nare elsewhere")


def leaves() -> nn.Module:
    sys.exit("gone")


NUMBER = 3


class Slow(nn.Module):
    """Says when it runs, and takes its time: there is something to interrupt."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        print("running", flush=True)
        torch.zeros(()).item()
        for _ in range(200):
            inputs = inputs + torch.randn(1000, 1000).mean() * 0
        outputs: Tensor = self.inner(inputs.flatten(1))
        return outputs


def slow() -> nn.Module:
    return Slow().eval()

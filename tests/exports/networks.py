"""Small networks with every kind of layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTH = 24


class Side(nn.Module):
    """Layers side by side on the same inputs, each with its own output; normalisations may follow them."""

    def __init__(self, layers: Sequence[nn.Module], norms: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        found = [layer(inputs) for layer in self.layers]
        # Every other output goes through a normalisation.
        return tuple(
            self.norms[number // 2](one) if number % 2 and self.norms else one for number, one in enumerate(found)
        )


class Slices(nn.Module):
    """Linear layers of any shapes on the first columns of one matrix."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*shape) for shape in shapes)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(inputs[:, : layer.in_features]) for layer in self.layers)


class Tables(nn.Module):
    """Embeddings of any shapes, of which the same row is picked."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Embedding(*shape) for shape in shapes)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(inputs % layer.num_embeddings) for layer in self.layers)


class Attentions(nn.Module):
    """torch's attention, many times, to itself and to the same tokens in reverse."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(WIDTH, 4, batch_first=True) for _ in range(count))

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        pairs = [(inputs, inputs), (inputs, inputs.flip(1))]
        return tuple(
            layer(pairs[number % 2][0], *[pairs[number % 2][1]] * 2, need_weights=False)[0]
            for number, layer in enumerate(self.layers)
        )


class Convolutions(nn.Module):
    """A residual network with depthwise convolutions, and normalisations behind and before convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.norm3 = nn.BatchNorm2d(channels)
        self.last = nn.Conv2d(channels, 2 * channels, 3, stride=2)
        self.head = nn.Linear(2 * channels, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm1(self.first(inputs)).relu()
        hidden = self.norm3(hidden + self.norm2(self.depthwise(hidden))).relu()
        return self.head(self.last(hidden).flatten(2).mean(2))


class Tied(nn.Module):
    """A table of tokens that also gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(37, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 37, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(self.tokens(inputs)))


def unusual(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval mode, with other weights, statistics and signs than a fresh one."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        elif parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def pictures(axes: int, count: int = 5, size: int = 7, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, *[size] * axes, generator=torch.Generator().manual_seed(1))


def rows(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


def texts(count: int = 5, length: int = 6) -> Tensor:
    return torch.randint(0, 37, (count, length), generator=torch.Generator().manual_seed(1))

"""A zoo of small networks: one for each way of using weights that the library must cope with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EXAMPLES = 24
CLASSES = 3


class Grouped(nn.Module):
    """Grouped and depthwise convolutions, in-place activations, GroupNorm, and a reshape by view()."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.group_norm = nn.GroupNorm(2, 6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.norm(self.stem(x)))
        hidden = functional.relu_(self.group_norm(self.grouped(hidden)))
        hidden = self.relu(self.depthwise(hidden))
        return self.head(hidden.view(hidden.size(0), -1))


class Positions(nn.Module):
    """Conv1d with one decision per position: outputs (N, C, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Conv1d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


class Volume(nn.Module):
    """Conv3d, and batch normalisation behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, (2, 3, 2))
        self.norm = nn.BatchNorm3d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.norm(self.conv(x))).mean((2, 3, 4)))


class TiedLanguage(nn.Module):
    """An embedding whose weight is the output layer's too; outputs (N, vocabulary, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        return self.head(self.norm(hidden + torch.tanh(self.mix(hidden)))).transpose(1, 2)


class Encoder(nn.Module):
    """A transformer encoder layer, examples along the first or the second axis."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embedding = nn.Embedding(7, 8)
        self.place = nn.Embedding(EXAMPLES, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=batch_first)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.place(torch.arange(tokens.shape[1], device=tokens.device))
        hidden = self.embedding(tokens) + places
        if self.batch_first:
            return self.head(self.layer(hidden).mean(1))
        return self.head(self.layer(hidden.transpose(0, 1)).mean(0))


class Attention(nn.Module):
    """MultiheadAttention used directly, with more than one tensor returned."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        mixed, _ = self.attention(hidden, hidden, hidden)
        return self.head(self.norm(hidden + mixed).mean(1))


class Recurrent(nn.Module):
    """An LSTM, whose weights are also held in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        return self.head(states[:, -1])


class Twice(nn.Module):
    """One module called twice, and one registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.shared = nn.Linear(6, 6)
        self.again = self.shared
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        hidden = self.norm(torch.tanh(self.shared(hidden)))
        return self.head(torch.relu(self.again(self.norm(hidden))))


class Functional(nn.Module):
    """Weights used outside their modules: one module is never called, the other is called too."""

    def __init__(self) -> None:
        super().__init__()
        self.uncalled = nn.Linear(5, 6)
        self.called = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(functional.linear(x, self.uncalled.weight, self.uncalled.bias))
        hidden = torch.tanh(self.called(hidden))
        return self.head(functional.linear(hidden, self.called.weight.t()))


class TwoInputs(nn.Module):
    """Called as model(*x) or model(**x)."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(5, 6)
        self.right = nn.Linear(4, 6)
        self.head = nn.Linear(6, CLASSES)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf, -torch.inf]))
        self.register_buffer("shift", torch.full((6,), 0.5), persistent=False)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.softmax(self.left(left) + self.right(right) + self.mask, -1) + self.shift)


class Changeable(nn.Module):
    """Takes another path for some batches."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = 1.0
        self.first = nn.Linear(5, 6)
        self.low = nn.Linear(6, 6)
        self.high = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        hidden = self.low(hidden) if x.mean() < self.threshold else self.high(hidden)
        return self.head(torch.relu(hidden))


class BatchDependent(nn.Module):
    """A batch normalisation without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x)).relu())


class Aliasing(nn.Module):
    """Outputs that are changed in place later, through modules that hand on what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.identity = nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        rectified = self.relu(self.identity(hidden))
        hidden = self.middle(hidden + rectified)
        hidden += rectified
        return self.head(torch.tanh(hidden))


class CrossAttention(nn.Module):
    """Attention with a projection for each of query, key and value, between sequences of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.memory = nn.Embedding(7, 6)
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, add_bias_kv=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        asked, told = self.embedding(tokens[:, :4]).transpose(0, 1), self.memory(tokens).transpose(0, 1)
        return self.head(self.attention(asked, told, told, need_weights=False)[0].mean(0))


class Gated(nn.Module):
    """A bidirectional GRU, then a cell that is called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.gru = nn.GRU(5, 4, bidirectional=True)
        self.cell = nn.LSTMCell(8, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.gru(self.embedding(tokens).transpose(0, 1))
        hidden = None
        for step in states:
            hidden = self.cell(step, hidden)
        return self.head(hidden[0])


class Upsampling(nn.Module):
    """Transposed convolutions, one of them grouped: their weights have the inputs first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 3)
        self.up = nn.ConvTranspose1d(4, 6, 3, stride=2)
        self.grouped = nn.ConvTranspose2d(6, 4, (2, 3), groups=2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.grouped(hidden.unsqueeze(2))).mean((2, 3)))


class Conv1D(nn.Module):
    """As transformers has it: a linear layer with its inputs first."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(0.3 * torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


class InputsFirst(nn.Module):
    """Layers like those of transformers' GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.norm = nn.LayerNorm(6)
        self.wide = Conv1D(10, 6)
        self.narrow = Conv1D(6, 10)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        hidden = hidden + self.narrow(functional.gelu(self.wide(self.norm(hidden))))
        return self.head(hidden.mean(1))


class SamePadding(nn.Conv2d):
    """Pads in its own forward, more behind than in front, as TensorFlow does; its own padding says 0."""

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for size, kernel, stride in zip(reversed(x.shape[2:]), self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, sides), self.weight, self.bias, self.stride, 0, 1, self.groups)


class OwnPadding(nn.Module):
    """Convolutions with a forward of their own, one of them depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SamePadding(2, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = SamePadding(6, 6, 4, groups=6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x))))).mean((2, 3)))


class Mixing(nn.Module):
    """Plain parameters: one that multiplies, one that is added, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(0.4 * torch.randn(5, 6))
        self.shift = nn.Parameter(torch.zeros(1, 6))
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ self.mix + self.shift) * self.scale)


class Unreached(nn.Module):
    """A second entry point, and a head that runs but whose output goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, CLASSES)
        self.dropped = nn.Linear(6, 2)
        self.other = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))

    def embed(self, x: Tensor) -> Tensor:
        return self.other(torch.tanh(self.body(x)))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.body(x)))
        self.dropped(hidden)
        return self.head(hidden)

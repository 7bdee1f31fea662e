"""A small network of today's kind: RMSNorm, rotary embeddings, a gated perceptron, and heads that share keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKENS, WIDTH, HEADS, LENGTH = 31, 24, 6, 7


def by_halves(x: Tensor) -> Tensor:
    """Rotary embeddings that turn one half of a head against the other."""
    left, right = x.chunk(2, -1)
    angles = torch.outer(torch.arange(x.shape[-2]), 0.3 ** torch.arange(left.shape[-1]))
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], -1)


def by_pairs(x: Tensor) -> Tensor:
    """Rotary embeddings of neighbours, as complex numbers."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    angles = torch.outer(torch.arange(x.shape[-2]), 0.3 ** torch.arange(x.shape[-1] // 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class Attention(nn.Module):
    """Attention whose heads share keys and values.

    Args:
        keys: heads of keys and values.
        how: ``"kernel"``: torch's own sharing; ``"repeated"``: keys are repeated before; ``"products"``: without a
            kernel.
        counted: whether the code has the number of heads in attributes, or derives it from the widths.
        pairs: which rotary embedding.
    """

    def __init__(self, keys: int, how: str, counted: bool, pairs: bool) -> None:
        super().__init__()
        self.how, self.counted, self.rotary = how, counted, by_pairs if pairs else by_halves
        self.num_heads, self.num_key_value_heads, self.head_dim = HEADS, keys, WIDTH // HEADS
        self.query, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(WIDTH, keys * self.head_dim, bias=False) for _ in range(2))

    def heads(self, x: Tensor, count: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], count if self.counted else -1, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query = self.rotary(self.heads(self.query(x), self.num_heads))
        key = self.rotary(self.heads(self.key(x), self.num_key_value_heads))
        value = self.heads(self.value(x), self.num_key_value_heads)
        if self.how != "kernel":
            key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        if self.how == "products":
            mixed = (query @ key.transpose(2, 3)).softmax(-1) @ value
        else:
            mixed = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=self.how == "kernel"
            )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Llama(nn.Module):
    """One block; the arguments are those of :class:`Attention`."""

    def __init__(self, keys: int = 3, how: str = "kernel", counted: bool = False, pairs: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.before, self.between, self.last = (nn.RMSNorm(WIDTH) for _ in range(3))
        self.attention = Attention(keys, how, counted, pairs)
        self.gate, self.up = (nn.Linear(WIDTH, 20, bias=False) for _ in range(2))
        self.down, self.head = nn.Linear(20, WIDTH, bias=False), nn.Linear(WIDTH, TOKENS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        x = x + self.attention(self.before(x))
        hidden = self.between(x)
        return self.head(self.last(x + self.down(functional.silu(self.gate(hidden)) * self.up(hidden))))

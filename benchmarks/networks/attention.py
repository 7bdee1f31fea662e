"""The benchmark transformers: a byte-level GPT and a small vision transformer for 28 x 28 pictures.

The GPT is written with plain ``nn.Linear`` layers, as most language models are, and returns logits (N, T, V). The
vision transformer uses torch's own ``nn.TransformerEncoderLayer``, whose attention keeps three projections in one
packed parameter, so that both ways of writing attention are tried.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BYTES = 256
"""Size of the vocabulary of the GPT: every byte is a token."""


class CausalAttention(nn.Module):
    """Attention of every position to itself and to those before it.

    Args:
        width: features of a position.
        heads: number of heads; divides the width.

    Shapes: (N, T, width) -> (N, T, width).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        query, key, value = (
            layer(inputs).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        outputs: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return outputs


class GPTBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a normalisation and added to its input.

    Args:
        width: features of a position.
        heads: number of attention heads.

    Shapes: (N, T, width) -> (N, T, width).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        hidden: Tensor = inputs + self.attention(self.norm1(inputs))
        outputs: Tensor = hidden + self.down(self.gelu(self.up(self.norm2(hidden))))
        return outputs


class ByteGPT(nn.Module):
    """A decoder-only transformer over bytes, with normalisation before each part as in GPT-2.

    Args:
        width: features of a position.
        depth: number of blocks.
        heads: attention heads of each block.
        context: the longest sequence.

    Shapes: (N, T) int64 with values below 256 and T <= context -> logits (N, T, 256) for the byte that follows each.

    Raises:
        ValueError: when the heads do not divide the width.
    """

    def __init__(self, width: int = 192, depth: int = 5, heads: int = 4, context: int = 128) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads were asked for with width {width}; the width must be a multiple of them")
        self.context = context
        self.token = nn.Embedding(BYTES, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(GPTBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.output.weight", "down.weight")):  # sums of 2 * depth terms, GPT-2 section 2.3
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, T) int64 -> logits (N, T, 256).

        Raises:
            ValueError: when the sequence is longer than the context.
        """
        length = inputs.shape[1]
        if length > self.context:
            raise ValueError(f"a sequence of {length} bytes was given; this network reads at most {self.context}")
        positions = torch.arange(length, device=inputs.device).expand_as(inputs)
        hidden = self.blocks(self.token(inputs) + self.position(positions))
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class VisionTransformer(nn.Module):
    """A small ViT (Dosovitskiy et al. 2021) for grey 28 x 28 pictures: patches, a class token, torch's encoder layers.

    Args:
        width: features of a patch.
        depth: number of encoder layers.
        heads: attention heads of each layer.
        patch: side of a patch in pixels; divides 28.
        classes: number of logits.

    Shapes: (N, 1, 28, 28) -> (N, classes).

    Raises:
        ValueError: when the patches do not divide the picture.
    """

    def __init__(self, width: int = 112, depth: int = 4, heads: int = 4, patch: int = 7, classes: int = 10) -> None:
        super().__init__()
        if 28 % patch:
            raise ValueError(f"patches of {patch} pixels were asked for; they must divide the 28 pixels of a picture")
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + (28 // patch) ** 2, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, 1, 28, 28) -> logits (N, classes)."""
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(inputs.shape[0], -1, -1), patches], dim=1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return logits

"""Modules of a smaller network whose code counts channels: hooks around them, and attention with fewer heads.

A module without tensors, such as a shortcut that pads channels, may have the number of channels in its code. Around it,
the channels that left come back as zeros, and of its result only the channels that stay are passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_compress.errors import InvalidModel


class Spread:
    """A forward pre-hook: zeros for the channels that left.

    Args:
        axis: of the channels.
        full: channels that the module expects.
        kept: positions of those that stayed.
    """

    def __init__(self, axis: int, full: int, kept: tuple[int, ...]) -> None:
        self.axis, self.full, self.kept = axis, full, kept

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs with zeros between them."""
        given = inputs[0]
        shape = _checked(given, self.axis, len(self.kept), module)
        shape[self.axis] = self.full
        index = torch.tensor(self.kept, device=given.device)
        return (given.new_zeros(shape).index_copy(self.axis, index, given), *inputs[1:])


class Pick:
    """A forward hook: only the channels that stay.

    Args:
        axis: of the channels.
        kept: their positions.
    """

    def __init__(self, axis: int, kept: tuple[int, ...]) -> None:
        self.axis, self.kept = axis, kept

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Part of the output."""
        _checked(output, self.axis, max(self.kept) + 1, module, more=True)
        return output.index_select(self.axis, torch.tensor(self.kept, device=output.device))


def _checked(given: Any, axis: int, channels: int, module: nn.Module, more: bool = False) -> list[int]:
    """The shape of a tensor with so many channels, or more."""
    shape = [*given.shape] if isinstance(given, Tensor) else []
    length = shape[axis] if axis < len(shape) else 0
    if length != channels and not (more and length > channels):
        raise InvalidModel(
            f"by what was removed from this network a {type(module).__name__} has {'at least ' * more}{channels} "
            f"channels along axis {axis}, and it has the shape {tuple(shape)}: the file that it was loaded from is of "
            "another network"
        )
    return shape


class FewerHeads(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` after some heads were removed: the tensors have the same names and are smaller.

    torch's own forward derives the width of a head from the width of the inputs, which is no longer the sum of the
    heads'. ``num_heads`` counts the heads that are left, ``head_dim`` their width.
    """

    @classmethod
    def adopt(cls, module: nn.MultiheadAttention) -> None:
        """Turn a module whose tensors were cut into one that computes with them."""
        module.num_heads = module.out_proj.weight.shape[1] // module.head_dim
        module._qkv_same_embed_dim = False  # torch's fused kernels would read the width of the inputs
        module.__class__ = cls

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in ``nn.MultiheadAttention``, which explains the arguments."""
        batched = query.ndim == 3
        alike = query is key and key is value
        given = [self._batch_first(tensor) for tensor in ((query,) if alike else (query, key, value))]
        given = given * 3 if alike else given
        split = (self.num_heads, self.head_dim)
        heads = [rows.reshape(*rows.shape[:2], *split).transpose(1, 2) for rows in self._projected(given)]
        mask = self._mask(heads[0], heads[1], key_padding_mask, attn_mask)
        weights = None
        if need_weights:
            scores = heads[0] @ heads[1].transpose(2, 3) / self.head_dim**0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = weights @ heads[2]
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], mask)
        result = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return result[0], weights
        return (result if self.batch_first else result.transpose(0, 1)), weights

    def _batch_first(self, tensor: Tensor) -> Tensor:
        """(N, T, width) from any layout."""
        if tensor.ndim == 2:
            return tensor[None]
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _projected(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        """Queries, keys and values, by one product where all come from one tensor."""
        if given[0] is given[1] and given[1] is given[2]:
            return functional.linear(given[0], self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [functional.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True)]

    def _mask(self, query: Tensor, key: Tensor, padding: Tensor | None, attention: Tensor | None) -> Tensor | None:
        """(N, 1 or heads, T, S) numbers to be added to the scores."""
        found = None
        for mask, per_key in ((padding, True), (attention, False)):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = query.new_zeros(mask.shape).masked_fill(mask, -torch.inf)
            if per_key:
                mask = mask.reshape(query.shape[0], 1, 1, key.shape[2])
            elif mask.ndim == 3:
                mask = mask.reshape(query.shape[0], -1, *mask.shape[1:])
            found = mask if found is None else found + mask
        return found

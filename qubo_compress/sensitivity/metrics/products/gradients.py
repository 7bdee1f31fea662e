"""Per-example gradients of layers that are linear in their parameters.

Given the gradient delta of a scalar with respect to a layer's output, the gradient with respect to its weight is

    linear, x W^T          G_n = sum over rows of delta x^T
    convolution            G_n = sum over positions of delta (unfolded x)^T
    transposed             the same with x and delta exchanged
    normalisation          G_n = sum over positions of delta * normalised x
    embedding              delta, added at the rows that were looked up

and the gradient of a bias is the sum of delta over rows and positions. All gradients are per example: (n, *parameter
shape).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qubo_compress.sensitivity.metrics.products.calls import Call

NORMALISATIONS = ("batch-norm", "layer-norm", "rms-norm", "group-norm")


def by_example(tensor: Tensor, axis: int, examples: int, inner: bool) -> Tensor:
    """(n, r, ...): the example axis of length n r moved to the front and split into examples and their r rows.

    ``inner``: examples vary fastest along it, as when attention joins its time and batch axes.
    """
    moved = tensor.movedim(axis, 0)
    rows = moved.shape[0] // examples
    if inner:
        return moved.reshape(rows, examples, *moved.shape[1:]).transpose(0, 1)
    return moved.reshape(examples, rows, *moved.shape[1:])


def parameter_gradients(call: Call, inputs: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Role -> (n, *shape) float32 gradients of the given examples.

    Args:
        call: the layer.
        inputs: (n, r, ...) of these examples.
        delta: (n, r, ...) gradient of its output.
    """
    delta = delta.float()
    found = {}
    if "bias" in call.views:
        found["bias"] = _bias(call, delta)
    if "weight" not in call.views:
        return found
    if call.kind in NORMALISATIONS:
        found["weight"] = _scale(call, inputs, delta)
    elif call.kind in ("linear", "product"):
        rows = inputs.float().flatten(1, -2), delta.flatten(1, -2)
        x, d = rows if call.kind == "product" else rows[::-1]
        found["weight"] = x.transpose(1, 2) @ d
    elif call.kind == "embedding":
        found["weight"] = _looked_up(call, inputs, delta)
    else:
        found["weight"] = _convolved(call, inputs.float(), delta)
    return found


def _channel_axis(call: Call) -> int:
    """The channel axis of a tensor (n, r, ...), counted from its end if the layer does so."""
    return 2 if call.kind in ("convolution", "transposed", "batch-norm", "group-norm") else -1


def _bias(call: Call, delta: Tensor) -> Tensor:
    if call.kind == "layer-norm":
        return delta.flatten(1, delta.ndim - 1 - len(call.settings["normalized_shape"])).sum(1)
    moved = delta.movedim(_channel_axis(call), -1)
    return moved.flatten(1, -2).sum(1)


def _scale(call: Call, inputs: Tensor, delta: Tensor) -> Tensor:
    """Gradient of a normalisation's weight: delta times the normalised input, summed over where it is used."""
    flat = inputs.flatten(0, 1)
    settings = call.settings
    epsilon = settings.get("eps", 1e-5)
    if call.kind == "batch-norm":
        normal = functional.batch_norm(flat, settings["running_mean"], settings["running_var"], eps=epsilon)
    elif call.kind == "layer-norm":
        normal = functional.layer_norm(flat, settings["normalized_shape"], eps=epsilon)
    elif call.kind == "rms-norm":
        normal = functional.rms_norm(flat, settings["normalized_shape"], eps=settings.get("eps"))
    else:
        normal = functional.group_norm(flat, settings["num_groups"], eps=epsilon)
    product = normal.float().reshape(delta.shape) * delta
    if call.kind in ("layer-norm", "rms-norm"):
        return product.flatten(1, product.ndim - 1 - len(settings["normalized_shape"])).sum(1)
    return product.movedim(2, -1).flatten(1, -2).sum(1)


def _looked_up(call: Call, inputs: Tensor, delta: Tensor) -> Tensor:
    count, rows = inputs.shape[0], call.weight_shape[0]
    total = delta.new_zeros(count * rows, call.weight_shape[1])
    where = inputs.flatten(1) + torch.arange(count, device=inputs.device)[:, None] * rows
    return total.index_add_(0, where.reshape(-1), delta.reshape(-1, delta.shape[-1])).reshape(count, rows, -1)


def _convolved(call: Call, inputs: Tensor, delta: Tensor) -> Tensor:
    """(n, *weight shape) of a convolution; a transposed one is a convolution read backwards."""
    examples, repeats = inputs.shape[:2]
    x, d = inputs.flatten(0, 1), delta.flatten(0, 1)
    kernel = call.weight_shape[2:]
    stride = _each(call.settings.get("stride", 1), len(kernel))
    dilation = _each(call.settings.get("dilation", 1), len(kernel))
    groups = int(call.settings.get("groups", 1))
    if call.kind == "transposed":
        x, d = d, x
    padded = functional.pad(x, _padding(call.settings.get("padding", 0), kernel, dilation))
    # Positions that the layer did not compute are cropped: with strides some inputs may be unread.
    sizes = d.shape[2:]
    offsets = torch.cartesian_prod(*(torch.arange(k) for k in kernel)).reshape(-1, len(kernel)).tolist()
    windows = [
        padded[(slice(None), slice(None), *(_window(*w) for w in zip(at, dilation, stride, sizes, strict=True)))]
        for at in offsets
    ]
    if groups == d.shape[1] and groups == x.shape[1]:
        flat = d.flatten(2)
        columns = [torch.einsum("ncl,ncl->nc", flat, window.reshape(flat.shape)) for window in windows]
        found = torch.stack(columns, dim=-1).unsqueeze(2)
    else:
        found = _grouped(windows, d, groups)
    per_row = found.reshape(len(d), -1)
    return per_row.reshape(examples, repeats, -1).sum(1).reshape(examples, *call.weight_shape)


def _grouped(windows: Sequence[Tensor], delta: Tensor, groups: int) -> Tensor:
    """(n, outputs, inputs of a group, kernel) from one shifted input per kernel position."""
    count, channels = windows[0].shape[:2]
    positions = math.prod(delta.shape[2:])
    unfolded = torch.stack([w.reshape(count, channels, positions) for w in windows], dim=2)
    columns = unfolded.reshape(count * groups, channels // groups * len(windows), positions)
    rows = delta.reshape(count * groups, delta.shape[1] // groups, positions)
    return (rows @ columns.transpose(1, 2)).reshape(count, delta.shape[1], channels // groups, len(windows))


def _window(at: int, dilation: int, stride: int, size: int) -> slice:
    start = at * dilation
    return slice(start, start + stride * (size - 1) + 1, stride)


def _each(value: Any, count: int) -> tuple[int, ...]:
    """One number per spatial axis, from torch's argument."""
    values = tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),)
    return values * count if len(values) == 1 else values


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Padding before and after every spatial axis, the last axis first, as ``functional.pad`` expects."""
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in _each(0 if padding == "valid" else padding, len(kernel))]
    return [side for pair in reversed(sides) for side in pair]

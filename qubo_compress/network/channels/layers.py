"""What layers do with labels: convolutions, linear maps, normalisations, embeddings and products of activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qubo_compress.network.channels.labels import NONE, IntArray, Origin
from qubo_compress.network.channels.uses import HeadUse, Reading, Role, Use, axis_of
from qubo_compress.network.channels.walk import ChannelWalk, Operation, Rule, unknown

STEADY = 1e-6
"""Values of a channel that differ by less than this, relative to their size, count as equal: kernels may round."""


def used(walk: ChannelWalk, tensor: Any, axis_index: Tensor, labels: Tensor, role: Role) -> Use | None:
    """Note labels along an axis of a parameter; None if the vector does not run along one axis."""
    found = walk.known(tensor)
    if not isinstance(found, Origin):
        return None
    place = axis_of(axis_index, walk.tensors[found.name].shape)
    if place is None:
        walk.ties.pin(labels, f"{found.name} is used in {walk.place} in a view that is not along its axes")
        return None
    use = Use(found.name, place[0], place[1], labels.numpy(), role)
    walk.uses.along.append(use)
    return use


def per_channel(walk: ChannelWalk, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (C,) of a tensor along its channel axis, whether each channel is one fixed value, and that value."""
    marks = walk.marks(tensor)
    axes = [other for other in range(tensor.ndim) if other != axis]
    labels = walk.ties.along(marks.labels, axes, f"{walk.place} reads it together with what is no channel")
    fixed, rows = marks.fixed, tensor.detach().double().movedim(axis, 0).flatten(1)
    for other in axes:
        fixed = fixed.all(other, keepdim=True)
    low, high = rows.amin(1), rows.amax(1)
    return labels.reshape(-1), fixed.reshape(-1) & (high - low <= STEADY * high.abs()), rows[:, 0]


def convolved(walk: ChannelWalk, operation: Operation) -> None:
    """A convolution: new channels, or, if it is grouped, whole groups that stay or leave together."""
    inputs, weight, bias = operation.args[:3]
    origin = walk.known(weight)
    groups, transposed = int(operation.get("groups")), bool(operation.get("transposed"))
    whole = isinstance(origin, Origin) and origin.index.shape == walk.tensors[origin.name].shape
    if not whole or walk.known(inputs) is None:
        unknown(walk, operation)
        return
    labels, steady, values = per_channel(walk, inputs, 1)
    made, reached = operation.results[0], int(transposed)
    outputs = made.shape[1]
    if groups == 1:
        new = walk.ties.fresh(outputs)
        _along(walk, weight, reached, new, "makes")
        reads = _along(walk, weight, 1 - reached, labels, "reads")
        filters = weight.detach().double().flatten(2).sum(2)
        columns = filters.T if transposed else filters
        silent = (weight.detach() == 0).movedim(1 - reached, 0).flatten(1).all(1)
        outside = any(int(side) for side in operation.get("padding")) or transposed
        reading = Reading(reads, steady, values, silent, outside, columns, _positions(walk, bias))
        fixed = _fixed_outputs(weight.detach().transpose(0, 1) if transposed else weight.detach(), reading)
        walk.made_by(made, reading)
    else:
        new = _grouped(walk, weight, labels, outputs, groups, transposed)
        fixed = torch.zeros(outputs, dtype=torch.bool)
        if not transposed:
            silenced = (steady & (values == 0)).reshape(groups, -1).all(1).repeat_interleave(outputs // groups)
            fixed = (weight.detach() == 0).flatten(1).all(1) | silenced
    if bias is not None:
        used(walk, bias, _index(walk, bias), new, "makes" if groups == 1 else "follows")
    shape = [1, -1, *[1] * (made.ndim - 2)]
    walk.mark(made, new.reshape(shape), fixed.reshape(shape))


def _along(walk: ChannelWalk, weight: Tensor, axis: int, labels: Tensor, role: Role) -> Use:
    name = walk.known(weight).name  # type: ignore[union-attr]
    use = Use(name, axis, np.arange(weight.shape[axis]), labels.numpy(), role)
    walk.uses.along.append(use)
    return use


def _index(walk: ChannelWalk, tensor: Tensor) -> Tensor:
    found = walk.known(tensor)
    return found.index.reshape(-1) if isinstance(found, Origin) else torch.arange(tensor.numel())


def _positions(walk: ChannelWalk, bias: Tensor | None) -> tuple[str, IntArray] | None:
    found = walk.known(bias)
    return (found.name, found.index.reshape(-1).numpy()) if isinstance(found, Origin) else None


def _fixed_outputs(weight: Tensor, reading: Reading) -> Tensor:
    """(O,) outputs that do not depend on the network's inputs: they read only fixed channels."""
    harmless = reading.steady & ((reading.values == 0) | (not reading.padded))
    return ((weight == 0).flatten(2).all(2) | harmless).all(1)


def _grouped(walk: ChannelWalk, weight: Tensor, labels: Tensor, outputs: int, groups: int, transposed: bool) -> Tensor:
    """(O,) labels of the outputs of a grouped or depthwise convolution: those of their group of inputs."""
    reason = f"a group of the convolution {walk.place} reads it together with what is no channel"
    blocks = walk.ties.along(labels.reshape(groups, -1), [1], reason).clamp(min=NONE)
    new = blocks.expand(groups, outputs // groups).reshape(-1)
    _along(walk, weight, 0, labels if transposed else new, "follows")
    return new


def mapped(walk: ChannelWalk, operation: Operation) -> None:
    """A linear map by a parameter, whatever its order of axes; a product of two activations otherwise."""
    inputs, weight, bias, flipped = _operands(operation)
    origin, made = walk.known(weight), operation.results[0]
    if not isinstance(origin, Origin) or isinstance(walk.known(inputs), Origin) or weight.ndim != 2:
        if operation.name in ("bmm", "baddbmm", "matmul", "mm") and not isinstance(origin, Origin):
            attended(walk, operation, [inputs, weight])
        else:
            unknown(walk, operation)
        return
    index, values = (t.T if flipped else t for t in (origin.index, weight.detach()))
    labels, steady, levels = per_channel(walk, inputs, inputs.ndim - 1)
    new = walk.ties.fresh(index.shape[1])
    makes = used(walk, weight, index[0], new, "makes")
    reads = used(walk, weight, index[:, 0], labels, "reads")
    if makes is None or reads is None:
        unknown(walk, operation)
        return
    added = None
    if bias is not None:
        used(walk, bias, _index(walk, bias), new, "makes")
        added = _positions(walk, bias)
    silent = (values == 0).all(1)
    reading = Reading(reads, steady, levels, silent, False, values.double().T, added)
    walk.made_by(made, reading)
    walk.mark(made, new, ((values == 0) | steady[:, None]).all(0))


def _operands(operation: Operation) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """Inputs, weight, bias, and whether the weight is (outputs, inputs)."""
    args = operation.args
    if operation.name in ("addmm", "baddbmm"):
        return args[1], args[2], args[0], False
    if operation.name == "linear":
        return args[0], args[1], operation.get("bias"), True
    return args[0], args[1], None, False


def attended(walk: ChannelWalk, operation: Operation, operands: Sequence[Tensor]) -> None:
    """A product of activations: everything in one entry of the leading axes, such as a head, is tied."""
    made, reason = operation.results[0], f"{operation.name} in {walk.place} mixes it with what is no channel"
    blocks: list[Tensor] = []
    for tensor in operands:
        blocks.append(walk.ties.along(walk.marks(tensor).labels, [tensor.ndim - 2, tensor.ndim - 1], reason))
    if operation.name not in ("matmul", "bmm", "baddbmm", "mm"):
        blocks = [_for_every_query(block, blocks[0].shape[-3]) for block in blocks]
    try:
        shape = torch.broadcast_tensors(*blocks)[0].shape  # type: ignore[no-untyped-call]
    except RuntimeError:
        unknown(walk, operation)
        return
    first = blocks[0].expand(shape)
    for block in blocks[1:]:
        if len(shape) > 2 and block.shape[-3] < shape[-3]:
            walk.ties.pin(block, f"all heads of {walk.place} share it")
        else:
            walk.ties.tie(first, block.expand(shape), reason)
    walk.uses.heads.append(HeadUse(walk.module, first.reshape(-1).numpy()))
    walk.mark(made, first.expand(made.shape), _fixed_product(walk, operands[-1], made))
    for other in operation.results[1:]:
        walk.mark(other, torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.bool))


def _for_every_query(block: Tensor, heads: int) -> Tensor:
    """What is known of keys or values (N, heads, ...) that several heads share inside one kernel, for each of these."""
    each = block.shape[-3]
    return block.repeat_interleave(heads // each, -3) if 1 < each < heads and heads % each == 0 else block


def _fixed_product(walk: ChannelWalk, values: Tensor, made: Tensor) -> Tensor:
    """A weighted sum over rows is fixed where these are fixed zeros."""
    zero = (walk.marks(values).fixed & (values == 0)).all(-2, keepdim=True)
    if zero.ndim > 2 and made.ndim == zero.ndim:
        zero = _for_every_query(zero, made.shape[-3])
    return zero.expand(made.shape) if zero.shape[-1] == made.shape[-1] else torch.zeros((), dtype=torch.bool)


def scaled_dot_product(walk: ChannelWalk, operation: Operation) -> None:
    """Attention of queries, keys and values (N, heads, T, D)."""
    attended(walk, operation, operation.args[:3])


def batch_normalised(walk: ChannelWalk, operation: Operation) -> None:
    """A normalisation by one mean and variance per channel."""
    inputs, made = operation.args[0], operation.results[0]
    labels = per_channel(walk, inputs, 1)[0]
    dead = torch.zeros(labels.shape, dtype=torch.bool)
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = operation.get(name)
        if isinstance(tensor, Tensor):
            used(walk, tensor, _index(walk, tensor), labels, "follows")
            dead = tensor.detach() == 0 if name == "weight" else dead
    mean = walk.known(operation.get("running_mean"))
    if isinstance(mean, Origin):
        walk.normalised_next(inputs, mean.name)
    marks = walk.marks(inputs)
    frozen = "no_training" in operation.name or not operation.get("training")
    shape = [1, -1, *[1] * (inputs.ndim - 2)]
    walk.mark(made, marks.labels, marks.fixed | dead.reshape(shape) if frozen else torch.zeros(()).bool())


def layer_normalised(walk: ChannelWalk, operation: Operation) -> None:
    """A normalisation over the last axes, whose elements are tied."""
    inputs, made = operation.args[0], operation.results[0]
    axes = list(range(inputs.ndim - len(operation.get("normalized_shape")), inputs.ndim))
    marks, weight = walk.marks(inputs), operation.get("weight")
    labels = walk.ties.along(marks.labels, axes, f"{walk.place} normalises it with what is no channel")
    fixed = marks.fixed
    for axis in axes:
        fixed = fixed.all(axis, keepdim=True)
    if isinstance(weight, Tensor):
        fixed = fixed | (weight.detach() == 0)
    walk.mark(made, labels, fixed)


def group_normalised(walk: ChannelWalk, operation: Operation) -> None:
    """A normalisation over groups of channels: whole groups stay or leave."""
    inputs, made, groups = operation.args[0], operation.results[0], int(operation.get("group"))
    labels = per_channel(walk, inputs, 1)[0]
    reason = f"{walk.place} normalises it with what is no channel"
    blocks = walk.ties.along(labels.reshape(groups, -1), [1], reason)
    each = blocks.expand(groups, labels.numel() // groups).reshape(-1)
    for name in ("weight", "bias"):
        tensor = operation.get(name)
        if isinstance(tensor, Tensor):
            used(walk, tensor, _index(walk, tensor), each, "follows")
    marks = walk.marks(inputs)
    walk.mark(made, marks.labels, torch.zeros((), dtype=torch.bool))


def looked_up(walk: ChannelWalk, operation: Operation) -> None:
    """An embedding: one new channel per column."""
    weight, made = operation.args[0], operation.results[0]
    origin = walk.known(weight)
    if not isinstance(origin, Origin) or origin.index.ndim != 2:
        unknown(walk, operation)
        return
    new = walk.ties.fresh(weight.shape[1])
    used(walk, weight, origin.index[0], new, "makes")
    walk.mark(made, new, (weight.detach() == weight.detach()[:1]).all(0))


LAYERS: dict[str, Rule] = {
    "convolution": convolved,
    "_convolution": convolved,
    "mkldnn_convolution": convolved,
    **dict.fromkeys(("mm", "addmm", "linear", "bmm", "baddbmm", "matmul"), mapped),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention", "scaled_dot_product_attention",
            "_scaled_dot_product_attention_math",
        ),
        scaled_dot_product,
    ),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), batch_normalised
    ),
    **dict.fromkeys(("native_layer_norm", "rms_norm", "_fused_rms_norm"), layer_normalised),
    "native_group_norm": group_normalised,
    "embedding": looked_up,
}  # fmt: skip

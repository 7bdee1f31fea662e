"""What operations do with labels: those that move elements, that combine them one by one, and that reduce axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qubo_compress.network.channels.labels import NONE, ZERO, Marks, Origin
from qubo_compress.network.channels.walk import ChannelWalk, Operation, Rule, unknown

MOVES = (
    "permute", "transpose", "t", "slice", "select", "expand",
    "unsqueeze", "squeeze", "alias", "detach", "split", "split_with_sizes", "chunk", "unbind", "roll", "flip",
    "repeat", "unfold", "diagonal", "narrow", "numpy_T", "movedim", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle",
)  # fmt: skip
"""Operations whose result has the elements of their one tensor in other places."""

SHAPES = ("view", "_unsafe_view", "reshape", "_reshape_alias")

SAME = ("clone", "contiguous", "_to_copy", "lift_fresh", "to", "dropout", "native_dropout")
"""Operations whose result has the same elements in the same places."""

PICKS = ("index_select", "index", "gather", "take_along_dim")
"""Operations that move elements by a second tensor of positions."""

SMOOTH = (
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_nearest1d", "upsample_linear1d", "adaptive_avg_pool1d", "avg_pool1d", "max_pool1d", "max_pool2d",
    "upsample_nearest3d", "upsample_trilinear3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "adaptive_max_pool1d", "adaptive_max_pool3d", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
)  # fmt: skip
"""Operations over the spatial axes of (N, C, ...), channel by channel."""

REDUCTIONS = ("mean", "sum", "amax", "amin", "var", "std", "prod", "max", "min", "logsumexp", "var_mean", "all", "any")

WITHIN = ("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "_safe_softmax")
"""Operations that mix the elements along one axis and keep the shape."""


ROUNDS = (
    "fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
)  # fmt: skip
"""Operations that round every element to the levels of one range."""


def moved(walk: ChannelWalk, operation: Operation) -> None:
    """Run the operation on labels instead of values."""
    first = operation.args[0]
    found = walk.known(first)
    shaped = operation.name in SHAPES
    if found is None or len(operation.tensors) > 1 or (shaped and not isinstance(operation.args[1], (list, tuple))):
        unknown(walk, operation)
        return

    def again(tensor: Tensor) -> Sequence[Tensor]:
        if shaped:  # labels may be expanded where values are not
            return [tensor.reshape(operation.results[0].shape)]
        made = operation.function(tensor, *operation.args[1:], **operation.named)
        return list(made) if isinstance(made, (list, tuple)) else [made]

    if isinstance(found, Origin):
        for tensor, index in zip(operation.results, again(found.index), strict=True):
            walk.origin(tensor, Origin(found.name, index))
        return
    for tensor, labels, fixed in zip(operation.results, again(found.labels), again(found.fixed), strict=True):
        walk.mark(tensor, labels, fixed)


def copied(walk: ChannelWalk, operation: Operation) -> None:
    """Pass on what is known of the one tensor."""
    found, made = walk.known(operation.args[0]), operation.results[0]
    if isinstance(found, Origin):
        walk.origin(made, found)
    elif found is not None:
        walk.mark(made, found.labels, found.fixed)


def picked(walk: ChannelWalk, operation: Operation) -> None:
    """Move labels by positions that do not depend on the network's inputs."""
    first, *rest = operation.tensors
    if first is not operation.args[0] or any(walk.known(tensor) is not None for tensor in rest):
        unknown(walk, operation)
        return
    marks = walk.marks(first)
    found = [operation.function(t, *operation.args[1:], **operation.named) for t in (marks.labels, marks.fixed)]
    walk.mark(operation.results[0], found[0], found[1])


def joined(walk: ChannelWalk, operation: Operation) -> None:
    """Concatenate labels; constants beside channels are channels, too."""
    parts = list(operation.args[0])
    marks = [walk.marks(tensor) for tensor in parts]
    if operation.name == "cat":
        axis = int(operation.get("dim")) % max(1, parts[0].ndim)
        if any(_vary(mark.labels, axis) for mark in marks):
            marks = [
                mark if walk.known(tensor) is not None else Marks(_constants(walk, tensor.shape, axis), mark.fixed)
                for mark, tensor in zip(marks, parts, strict=True)
            ]
    labels, fixed = (
        operation.function(some, *operation.args[1:], **operation.named)
        for some in ([m.labels for m in marks], [m.fixed for m in marks])
    )
    walk.mark(operation.results[0], labels, fixed)


def _vary(labels: Tensor, axis: int) -> bool:
    return labels.numel() > 0 and bool((labels.amax(axis) != labels.amin(axis)).any())


def _constants(walk: ChannelWalk, shape: Sequence[int], axis: int) -> Tensor:
    """New labels along an axis."""
    sizes = [length if number == axis else 1 for number, length in enumerate(shape)]
    return walk.ties.fresh(shape[axis]).reshape(sizes).expand(*shape)


def padded(walk: ChannelWalk, operation: Operation) -> None:
    """Pad labels: new ones along channels, those of the same channel along other axes."""
    marks, pad = walk.marks(operation.args[0]), list(operation.get("pad"))
    labels = marks.labels
    for number, sides in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis, length = labels.ndim - 1 - number, labels.shape[labels.ndim - 1 - number]
        labels = labels.narrow(axis, max(0, -sides[0]), length - max(0, -sides[0]) - max(0, -sides[1]))
        channels = _vary(labels, axis)
        added = []
        for side in sides:
            shape = [*labels.shape]
            shape[axis] = max(0, side)
            added.append(_constants(walk, shape, axis) if channels else labels.narrow(axis, 0, 1).expand(*shape))
        labels = torch.cat([added[0], labels, added[1]], dim=axis)
    walk.mark(operation.results[0], labels, ~torch.ops.aten.constant_pad_nd(~marks.fixed, pad, 0))


def spread(walk: ChannelWalk, operation: Operation) -> None:
    """Write a tensor into some positions of a constant one along an axis."""
    target, axis, index, source = (operation.get(name) for name in ("self", "dim", "index", "source"))
    if walk.known(index) is not None:
        unknown(walk, operation)
        return
    under, over = walk.marks(target), walk.marks(source)
    constant = walk.known(target) is None and _vary(over.labels, axis)
    below = _constants(walk, target.shape, axis) if constant else under.labels
    labels = below.clone().index_copy(axis, index, over.labels.contiguous())
    walk.mark(operation.results[0], labels, under.fixed.clone().index_copy(axis, index, over.fixed.contiguous()))


def combined(walk: ChannelWalk, operation: Operation) -> None:
    """Tie the labels of an elementwise operation's operands."""
    made = operation.results[0]
    operands = [walk.marks(tensor) for tensor in operation.tensors if tensor is not operation.named.get("out")]
    where = f"{operation.name} in {walk.place}"
    reasons = f"{where} combines it with what is no channel", f"{where} combines it with every channel"
    shape = made.shape
    zeros = [(mark.labels == ZERO).expand(shape) for mark in operands]
    if operation.name == "mul":
        labels = _products(walk, operands, zeros, shape, reasons)
    else:
        labels = walk.ties.matched([mark.labels for mark in operands], shape, *reasons)
    labels = torch.where((labels == ZERO) & (made != 0), NONE, labels)
    fixed = torch.ones(shape, dtype=torch.bool)
    for mark in operands:
        fixed = fixed & mark.fixed
    if operation.name == "mul":
        for mark, tensor in zip(operands, operation.tensors, strict=True):
            fixed = fixed | (mark.fixed & (tensor == 0)).expand(shape)
    walk.mark(made, labels, fixed)


def _products(
    walk: ChannelWalk, operands: Sequence[Marks], zeros: Sequence[Tensor], shape: torch.Size, reasons: tuple[str, str]
) -> Tensor:
    """Labels of a product, which is a constant zero where one operand is."""
    zero = torch.zeros(shape, dtype=torch.bool)
    for found in zeros:
        zero = zero | found
    labels = walk.ties.matched([mark.labels for mark in operands], shape, *reasons)
    return torch.where(zero, ZERO, labels)


def smoothed(walk: ChannelWalk, operation: Operation) -> None:
    """A result of (N, C, ...) whose channels are those of the operand, each from its own."""
    first, made = operation.args[0], operation.results[0]
    marks = walk.marks(first)
    leading = first.ndim - (3 if "3d" in operation.name else 1 if "1d" in operation.name else 2)
    axes = list(range(leading, first.ndim))
    labels = walk.ties.along(marks.labels, axes, f"{operation.name} in {walk.place} mixes it with what is no channel")
    walk.mark(made, labels, marks.fixed.all(axes[0], keepdim=True) if len(axes) == 1 else _all(marks.fixed, axes))
    for other in operation.results[1:]:
        walk.mark(other, labels, torch.zeros(other.shape, dtype=torch.bool))


def _all(fixed: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        fixed = fixed.all(axis, keepdim=True)
    return fixed


def reduced(walk: ChannelWalk, operation: Operation) -> None:
    """Reduce axes: everything along them is tied."""
    first = operation.args[0]
    marks = walk.marks(first)
    given = operation.get("dim") if "dim" in operation._names else None
    axes = list(range(first.ndim)) if given is None or given == [] else _listed(given)
    axes = [axis % max(1, first.ndim) for axis in axes]
    reason = f"{operation.name} in {walk.place} mixes it with what is no channel"
    labels, fixed = walk.ties.reduced(marks.labels, axes, reason), _all(marks.fixed, axes)
    for number, made in enumerate(operation.results):
        held = fixed if number == 0 else torch.zeros_like(fixed)
        if made.ndim == labels.ndim:
            walk.mark(made, labels, held)
        else:
            walk.mark(made, labels.reshape(made.shape), held.reshape(made.shape))


def _listed(given: Any) -> list[int]:
    return [int(given)] if isinstance(given, int) else [int(axis) for axis in given]


def mixed(walk: ChannelWalk, operation: Operation) -> None:
    """Mix the elements along one axis, which are tied."""
    first, made = operation.args[0], operation.results[0]
    marks, axis = walk.marks(first), int(operation.get("dim")) % first.ndim
    if made.shape != first.shape:
        unknown(walk, operation)
        return
    labels = walk.ties.along(marks.labels, [axis], f"{operation.name} in {walk.place} mixes it with no channel")
    walk.mark(made, labels, marks.fixed.all(axis, keepdim=True))


def gated(walk: ChannelWalk, operation: Operation) -> None:
    """One half of an axis times a function of the other: both lose the same channels."""
    first, made = operation.args[0], operation.results[0]
    marks, axis = walk.marks(first), int(operation.get("dim")) % first.ndim
    labels, fixed, values = (list(tensor.chunk(2, axis)) for tensor in (marks.labels, marks.fixed, first))
    reason = f"{operation.name} in {walk.place} multiplies it by what is no channel"
    zero = fixed[0] & (values[0] == 0)
    walk.mark(made, walk.ties.matched(labels, made.shape, reason, reason), (fixed[0] & fixed[1]) | zero)


def paired(walk: ChannelWalk, operation: Operation) -> None:
    """Pairs along the last axis become complex numbers, as rotary embeddings make them."""
    marks, made = walk.marks(operation.args[0]), operation.results[0]
    reason = f"{operation.name} in {walk.place} joins it with what is no channel"
    labels = walk.ties.along(marks.labels, [marks.labels.ndim - 1], reason)
    walk.mark(made, labels.reshape(made.shape), marks.fixed.all(-1))


def unpaired(walk: ChannelWalk, operation: Operation) -> None:
    """Complex numbers become pairs along a new last axis."""
    marks, made = walk.marks(operation.args[0]), operation.results[0]
    walk.mark(made, marks.labels[..., None], marks.fixed[..., None])


RULES: dict[str, Rule] = {
    **dict.fromkeys((*MOVES, *SHAPES), moved),
    **dict.fromkeys(SAME, copied),
    **dict.fromkeys(PICKS, picked),
    **dict.fromkeys(("cat", "stack"), joined),
    **dict.fromkeys(SMOOTH, smoothed),
    **dict.fromkeys(REDUCTIONS, reduced),
    **dict.fromkeys(WITHIN, mixed),
    # These are pointwise, although torch 2.4 to 2.9 do not say so.
    **dict.fromkeys(("pointwise", "hardswish", "hardsigmoid", "hardtanh", "relu6", "leaky_relu", "elu"), combined),
    **dict.fromkeys(("_prelu_kernel", *ROUNDS), combined),
    "glu": gated,
    "view_as_complex": paired,
    "view_as_real": unpaired,
    "constant_pad_nd": padded,
    "index_copy": spread,
}

"""How a factored weight computes: one small linear map or convolution after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from qubo_compress.menu.storage.portable import ScaledCodes


@dataclass(frozen=True)
class Step:
    """The map of one factor when the layer runs, without its numbers.

    Attributes:
        axes: spatial axes of the layer's inputs that it convolves, ascending; it takes their stride, padding and
            dilation. Along all other axes it has kernel length 1 and keeps their size.
        kernel: lengths along these axes.
        depthwise: whether every channel is convolved separately.
    """

    axes: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    depthwise: bool = False


def separable_steps(kernel: Sequence[int], depthwise: bool) -> tuple[Step, ...]:
    """One step for every axis along which a kernel is longer than 1; the first takes the other axes' strides too.

    Example:
        >>> [step.axes for step in separable_steps((3, 1, 5), depthwise=False)]
        [(0, 1), (2,)]
    """
    long = [axis for axis, length in enumerate(kernel) if length > 1]
    found = []
    for axis in long:
        axes = [n for n, length in enumerate(kernel) if n == axis or (length == 1 and axis == long[0])]
        found.append(Step(tuple(axes), tuple(kernel[n] for n in axes), depthwise))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Stage:
    """One map of a factored layer.

    Attributes:
        weight: (outputs, inputs, *kernel) float32, or (outputs, 1, *kernel) if depthwise.
        step: which axes it convolves.
        portable: the weight as codes with steps, if it is stored so.
    """

    weight: Tensor
    step: Step
    portable: ScaledCodes | None = None


def stage_of(factor: Tensor, step: Step, dimensions: int, last: bool) -> Stage:
    """A factor, led by its rank, as the weight of a map.

    Args:
        factor: (rank, inputs x kernel), or (rank, outputs) for the last one.
        step: what it convolves.
        dimensions: spatial axes of the layer; 0 for a linear one.
        last: whether it holds the output channels.

    Example:
        >>> import torch
        >>> stage_of(torch.ones(3, 2 * 9), Step((0, 1), (3, 3)), 2, last=False).weight.shape
        torch.Size([3, 2, 3, 3])
    """
    lengths = [1] * dimensions
    for axis, length in zip(step.axes, step.kernel, strict=True):
        lengths[axis] = length
    turned = factor.T if last else factor
    return Stage(turned.reshape(turned.shape[0], -1, *lengths).contiguous(), step)


def stage_positions(
    stages: Sequence[Stage], positions: int, inputs: Sequence[int], outputs: Sequence[int]
) -> list[int]:
    """Output positions of every stage, given the layer's: axes not yet convolved have the inputs' size.

    Args:
        stages: of one layer.
        positions: of the whole layer, over all examples that share a call.
        inputs: sizes of its inputs along the spatial axes.
        outputs: sizes of its outputs along them.

    Example:
        >>> import torch
        >>> point, wide = Stage(torch.ones(1, 1, 1), Step()), Stage(torch.ones(1, 1, 3), Step((0,), (3,)))
        >>> stage_positions([point, wide, point], 4, [9], [4])
        [9, 4, 4]
    """
    found, left = [], dict(enumerate(zip(inputs, outputs, strict=True)))
    for stage in stages:
        for axis in stage.step.axes:
            left.pop(axis, None)
        here = positions
        for before, after in left.values():
            here = here // after * before
        found.append(here)
    return found

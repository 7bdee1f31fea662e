"""How a run of a network used the axes of its parameters: as outputs, as inputs, or channel by channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from qubo_compress.network.channels.labels import IntArray

Role = Literal["makes", "reads", "follows"]
"""Outputs of a layer; its inputs; one value or filter per channel, as in a normalisation or depthwise convolution."""


@dataclass(frozen=True, eq=False)
class Use:
    """Labels along one axis of a tensor.

    Attributes:
        tensor: its name.
        axis: of the tensor, in the network's order.
        indices: along the axis.
        labels: of these indices.
        role: what the axis is for.
    """

    tensor: str
    axis: int
    indices: IntArray
    labels: IntArray
    role: Role


@dataclass(frozen=True, eq=False)
class Reading:
    """What a layer reads, input by input, and where a constant input could go instead.

    Attributes:
        use: of the weight.
        steady: (C,) whether all elements of the input have one value for all examples.
        values: (C,) float64: that value, where it is steady.
        ignored: (C,) whether all weights of the input are zero.
        padded: whether the layer also sees zeros around its inputs.
        columns: (O, C) float64: what a constant input of one adds to every output.
        bias: name and positions of what is added to the outputs, if there is such a tensor.
        statistics: name of the running mean that is subtracted next from the outputs, if nothing else reads these.
    """

    use: Use
    steady: Tensor
    values: Tensor
    ignored: Tensor
    padded: bool
    columns: Tensor
    bias: tuple[str, IntArray] | None = None
    statistics: str | None = None

    @property
    def absorbs(self) -> Tensor:
        """(C,) which inputs may go: nothing reads them, or they are constant and what they add can go elsewhere."""
        movable = not self.padded and (self.bias is not None or self.statistics is not None)
        return self.ignored | (self.steady & ((self.values == 0) | movable))


@dataclass(frozen=True, eq=False)
class Passage:
    """A call of a module without tensors, from channels to channels.

    Attributes:
        module: its name.
        inputs: what it was given, of the few examples.
        before, after: labels of its input and output.
    """

    module: str
    inputs: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class HeadUse:
    """A product of two activations, head by head.

    Attributes:
        module: the innermost one that was running.
        labels: (B,) one per head, repeated for every example.
    """

    module: str
    labels: IntArray


@dataclass(eq=False)
class Uses:
    """Everything that was seen in one run.

    Attributes:
        along: uses of axes.
        elements: tensor -> labels of its single elements, where these were used like an activation.
        readings: of layers.
        passages: through modules without tensors.
        heads: products of activations.
        opaque: tensor -> why its use is not known.
    """

    along: list[Use] = field(default_factory=list)
    elements: dict[str, Tensor] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    heads: list[HeadUse] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)


def axis_of(index: Tensor, shape: torch.Size) -> tuple[int, IntArray] | None:
    """The axis of a tensor that a vector of positions in its memory runs along, and the indices there.

    None if it runs along several axes, or is a single position in a tensor of several axes.

    Example:
        >>> axis_of(torch.tensor([1, 4]), torch.Size((2, 3)))
        (0, array([0, 1]))
    """
    found = np.unravel_index(index.numpy(), tuple(shape))
    moving = [axis for axis, values in enumerate(found) if len(np.unique(values)) > 1]
    if len(moving) > 1 or (not moving and len(shape) > 1):
        return None
    axis = moving[0] if moving else 0
    return axis, np.asarray(found[axis], dtype=np.int64)

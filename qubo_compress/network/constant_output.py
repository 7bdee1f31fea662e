"""What stands in for the layers of a branch that left a network whole: nothing, and at its end a constant."""

from __future__ import annotations

from torch import Tensor, nn


class NoOutput(nn.Module):
    """Instead of a layer none of whose outputs is left: one number, so that what follows costs nothing."""

    def forward(self, inputs: Tensor) -> Tensor:
        """A single element of the inputs, with as many axes."""
        return inputs[(slice(0, 1),) * inputs.ndim]


class ConstantOutput(nn.Module):
    """Instead of a layer none of whose inputs is left: what it then computes, one value per channel.

    Args:
        bias: (C,) the values.
        axis: of the channels in the output.

    Shapes: any number of axes -> as many axes, all of length one but the channels'. What it is added to has the others.

    Example:
        >>> import torch
        >>> ConstantOutput(nn.Parameter(torch.ones(3)), 1)(torch.zeros(1, 1, 1, 1)).shape
        torch.Size([1, 3, 1, 1])
    """

    def __init__(self, bias: nn.Parameter, axis: int) -> None:
        super().__init__()
        self.bias, self.axis = bias, axis

    def forward(self, inputs: Tensor) -> Tensor:
        """The values, whatever the inputs."""
        shape = [1] * inputs.ndim
        shape[self.axis] = -1
        return self.bias.reshape(shape)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the brackets."""
        return f"channels={self.bias.numel()}, axis={self.axis}"

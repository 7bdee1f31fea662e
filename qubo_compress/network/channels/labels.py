"""Labels of channels: what every element of a tensor belongs to, and which labels must stay or leave together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]

NONE, ZERO = 0, -1
"""Labels of elements that are no channel, and of constant zeros, which fit to every channel. Channels count from 1."""


@dataclass(frozen=True, eq=False)
class Marks:
    """What is known about every element of an activation.

    Attributes:
        labels: int64, in the activation's shape.
        fixed: bool, in the same shape: whether the element has this value for all inputs of the network.
    """

    labels: Tensor
    fixed: Tensor


@dataclass(frozen=True, eq=False)
class Origin:
    """A parameter or buffer, or a view of one.

    Attributes:
        name: of the tensor.
        index: position of every element in the whole tensor, counted along its memory.
    """

    name: str
    index: Tensor


@dataclass(eq=False)
class Ties:
    """Which labels belong together, and which must stay.

    Attributes:
        count: labels given so far.
        edges: pairs of labels that stay or leave together.
        pins: labels that must stay, and why.
        mixtures: (new label, label, reason) arrays: the new labels stand for mixtures of channels, which are tied only
            if something uses them.
    """

    count: int = 0
    edges: list[IntArray] = field(default_factory=list)
    pins: list[tuple[IntArray, str]] = field(default_factory=list)
    mixtures: list[tuple[IntArray, str]] = field(default_factory=list)

    def fresh(self, count: int) -> Tensor:
        """(count,) new labels."""
        first = self.count + 1
        self.count += count
        return torch.arange(first, first + count)

    def pin(self, labels: Tensor, reason: str) -> None:
        """Keep all channels among some labels."""
        found = torch.unique(labels[labels > 0])
        if found.numel():
            self.pins.append((found.numpy(), reason))

    def tie(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Tie two tensors of labels of one shape, element by element; a channel beside no channel must stay."""
        different = (first != second) & (first != ZERO) & (second != ZERO)
        if not bool(different.any()):
            return
        pairs = torch.unique(torch.stack([first[different], second[different]]), dim=1)
        loose = (pairs == NONE).any(0)
        self.pin(pairs[:, loose], reason)
        self.edges.append(pairs[:, ~loose].numpy())

    def along(self, labels: Tensor, axes: Sequence[int], reason: str) -> Tensor:
        """Tie all labels along some axes, which have length 1 in the result."""
        if not axes:
            return labels
        if all(labels.shape[axis] == 1 or labels.stride(axis) == 0 for axis in axes):
            for axis in axes:
                labels = labels.narrow(axis, 0, 1)
            return labels
        largest = labels.amax(tuple(axes), keepdim=True)
        self.tie(largest.expand_as(labels), labels, reason)
        return largest

    def reduced(self, labels: Tensor, axes: Sequence[int], reason: str) -> Tensor:
        """Labels of a sum over some axes, which have length 1 in the result: new ones where channels are mixed."""
        if not axes or bool((labels.amax(tuple(axes)) == labels.amin(tuple(axes))).all()):
            return self.along(labels, axes, reason)
        shape = [1 if axis in axes else length for axis, length in enumerate(labels.shape)]
        new = self.fresh(int(torch.Size(shape).numel())).reshape(shape)
        pairs = torch.stack([new.expand_as(labels).reshape(-1), labels.reshape(-1)])
        pairs = torch.unique(pairs[:, pairs[1] != ZERO], dim=1)
        self.mixtures.append((pairs.numpy(), reason))
        return new

    def settle(self, used: IntArray) -> None:
        """Tie the mixtures that are used.

        Args:
            used: labels of the axes that layers use.
        """
        seen = np.zeros(self.count + 1, dtype=bool)
        for labels in (used, *self.edges, *(labels for labels, _ in self.pins)):
            seen[labels[labels > 0]] = True
        for pairs, reason in reversed(self.mixtures):  # later ones may use earlier ones
            pairs = pairs[:, seen[pairs[0]]]
            loose = pairs[1] == NONE
            self.pins.append((pairs[0, loose], reason))
            self.edges.append(pairs[:, ~loose])
            seen[pairs[1]] = True

    def matched(self, operands: Sequence[Tensor], shape: torch.Size, reason: str, repeated: str) -> Tensor:
        """Labels of an elementwise result: those of its operands, tied.

        An operand that is repeated along the channels of another, such as a mask or what a normalisation divides by,
        has no part in them and must stay.

        Args:
            operands: labels.
            shape: of the result.
            reason: why channels beside what is no channel must stay.
            repeated: why such an operand must stay.
        """
        widened = [labels.expand(shape) for labels in operands]
        result = torch.full(shape, ZERO, dtype=torch.int64)
        for number, (labels, wide) in enumerate(zip(operands, widened, strict=True)):
            others = widened[:number] + widened[number + 1 :]
            if _repeated_along_channels(labels, shape, others):
                self.pin(labels, repeated)
            else:
                self.tie(result, wide, reason)
                result = torch.maximum(result, wide)
        return result


def _repeated_along_channels(labels: Tensor, shape: torch.Size, others: Sequence[Tensor]) -> bool:
    """Whether an operand is repeated along an axis on which another's labels vary, or is a plain number."""
    if labels.numel() == 1 and bool((labels <= NONE).all()):
        return True
    missing = len(shape) - labels.ndim
    repeated = [a for a in range(len(shape)) if shape[a] > 1 and (a < missing or labels.shape[a - missing] == 1)]
    return any(bool((other.amax(axis) != other.amin(axis)).any()) for other in others for axis in repeated)

"""Decision groups: which tensors of a network are compressed together, and which are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_compress.network.roles import Kind


@dataclass(frozen=True)
class Member:
    """One tensor of a group, or some of its rows, with output rows along the first axis.

    Attributes:
        name: first name of the parameter or buffer in the state dict.
        shape: its whole shape, outputs first.
        dtype: its dtype.
        rows: (start, stop) of the rows that the group owns, or None for all.
        inputs_first: 0 if the network stores the tensor in that order. Otherwise it stores (inputs, outputs, *kernel),
            in this many blocks along the inputs with separate outputs: 1 for transformers' ``Conv1D``, and
            the number of groups of a transposed convolution.

    Example:
        >>> member = Member("w", (3, 2), torch.float32, inputs_first=1)
        >>> member.part(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
        [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: tuple[int, int] | None = None
    inputs_first: int = 0

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of the part that the group owns."""
        if self.rows is None:
            return self.shape
        return (self.rows[1] - self.rows[0], *self.shape[1:])

    @property
    def numel(self) -> int:
        """Number of values that the group owns."""
        return int(torch.Size(self.part_shape).numel())

    @property
    def nbytes(self) -> int:
        """Bytes of these values in the original network."""
        return self.numel * self.dtype.itemsize

    def part(self, held: Tensor, leading: int = 0) -> Tensor:
        """The group's part of a tensor in the network, outputs first.

        Args:
            held: (*leading axes, *axes of the tensor), such as one gradient per example.
            leading: number of axes before those of the tensor.
        """
        whole = outputs_first(held, self.inputs_first, leading)
        return whole if self.rows is None else whole.narrow(leading, self.rows[0], self.rows[1] - self.rows[0])

    def write(self, held: Tensor, value: Tensor) -> None:
        """Replace the group's part of a tensor in the network, in place."""
        if self.rows is None:
            held.copy_(self.in_network_order(value))
        elif not self.inputs_first:
            held[self.rows[0] : self.rows[1]] = value.to(held.device)
        else:
            # Splitting and swapping axes gives a view; reshape would copy.
            blocks = held.unflatten(0, (self.inputs_first, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
            rows = torch.arange(*self.rows, device=held.device)
            blocks[rows // blocks.shape[1], rows % blocks.shape[1]] = value.to(held.device)

    def in_network_order(self, whole: Tensor) -> Tensor:
        """A whole tensor, given outputs first, in the network's order of axes."""
        if not self.inputs_first:
            return whole
        blocks = whole.reshape(self.inputs_first, -1, *whole.shape[1:]).transpose(1, 2)
        return blocks.reshape(-1, *blocks.shape[2:]).contiguous()


def outputs_first(held: Tensor, inputs_first: int, leading: int = 0) -> Tensor:
    """A tensor in the network's order of axes, with its output rows moved first; see :class:`Member`.

    Example:
        >>> outputs_first(torch.zeros(4, 3, 5), inputs_first=2).shape
        torch.Size([6, 2, 5])
    """
    if not inputs_first:
        return held
    before, (inputs, outputs, *kernel) = held.shape[:leading], held.shape[leading:]
    blocks = held.reshape(*before, inputs_first, inputs // inputs_first, outputs, *kernel)
    turned = blocks.transpose(leading + 1, leading + 2)
    return turned.reshape(*before, inputs_first * outputs, inputs // inputs_first, *kernel)


@dataclass(frozen=True)
class Group:
    """Tensors that get one common choice.

    Attributes:
        name: first parameter, such as ``layer1.0.conv1.weight``, or ``layer1.0.conv1.weight[17]`` for a filter.
        kind: what operators may assume about it.
        members: its tensors.
        module_type: class name of the (first) owner, for reports.
        epsilon: of a batch normalisation; else None.
    """

    name: str
    kind: Kind
    members: tuple[Member, ...]
    module_type: str
    epsilon: float | None = None

    @property
    def numel(self) -> int:
        """Number of values in the group."""
        return sum(member.numel for member in self.members)

    @property
    def nbytes(self) -> int:
        """Bytes of these values in the original network."""
        return sum(member.nbytes for member in self.members)


@dataclass(frozen=True)
class Kept:
    """A tensor that no choice changes, with the reason.

    Attributes:
        name: in the state dict.
        reason: why it is kept.
        nbytes: its bytes in the file.
        shape: of the tensor.
        dtype: of the tensor, as text; :data:`EXTRA` for a value that is not a tensor.
    """

    name: str
    reason: str
    nbytes: int
    shape: tuple[int, ...] = ()
    dtype: str = ""

    @classmethod
    def of(cls, name: str, tensor: Tensor, reason: str) -> Kept:
        """The entry for a tensor of a network."""
        return cls(name, reason, tensor.numel() * tensor.element_size(), tuple(tensor.shape), str(tensor.dtype))


EXTRA = "extra state"
"""The ``dtype`` of extra state in the state dict, which is not a tensor."""


@dataclass(frozen=True)
class Layout:
    """Every unique tensor of a network: in a group, or kept with a reason.

    Attributes:
        groups: the decision groups, in state-dict order.
        kept: everything else.
        aliases: name -> first name, for parameters and persistent buffers that share one tensor.
        original_bytes: numel x itemsize over unique parameters and persistent buffers.
        parameters: number of unique parameters.
        rule: the grouping as text, from which :mod:`qubo_compress.network.discovery` makes the same groups again.
        removed: channels that the network lacks, as text; see :mod:`qubo_compress.network.channels.removal_file`.
    """

    groups: tuple[Group, ...]
    kept: tuple[Kept, ...]
    aliases: dict[str, str]
    original_bytes: int
    parameters: int
    rule: str = "layer"
    removed: str = ""


def kept_text(kept: Sequence[Kept], most: int = 4) -> str:
    """The largest kept tensors with their sizes and reasons, as text.

    Example:
        >>> kept_text((Kept("mask", "it is a buffer", 40), Kept("empty", "it is empty", 0)))
        'mask (40 bytes: it is a buffer)'
    """
    largest = sorted((item for item in kept if item.nbytes), key=lambda item: -item.nbytes)
    said = [f"{item.name} ({item.nbytes:,} bytes: {item.reason})" for item in largest[:most]]
    return "; ".join(said) + (f"; and {len(largest) - most} more" if len(largest) > most else "")

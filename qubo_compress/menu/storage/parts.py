"""Stored groups whose members are written one after the other, each in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from qubo_compress.menu.storage.streams import Writer, plain_bytes, plain_size
from qubo_compress.network.groups import Member


class StoredPart(Protocol):
    """One member of a group as it is stored."""

    def write(self, writer: Writer) -> None:
        """Everything that is stored, in a fixed order."""
        ...

    def value(self) -> Tensor:
        """The member's values in its own dtype and part shape."""
        ...

    def project(self, value: Tensor, refit: bool) -> Any:
        """The nearest storable values in the same bytes; scales move only with ``refit``."""
        ...


class UnreliablePart(StoredPart, Protocol):
    """One member of a group in cells that come back with errors; ``value`` is the mean of what is read."""

    def variance(self) -> Tensor:
        """Variance of what is read, in the part's shape."""
        ...

    def drawn(self, generator: torch.Generator) -> Tensor:
        """One read."""
        ...


Part = TypeVar("Part", bound=StoredPart)
Noisy = TypeVar("Noisy", bound=UnreliablePart)


@dataclass(frozen=True, eq=False)
class StoredParts(Generic[Part]):
    """What all groups of stored parts share; a subclass says what its numbers are.

    Attributes:
        parts: one per member of the group.
    """

    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all members in plain fields."""
        return plain_size(self)

    @property
    def nonzeros(self) -> int:
        """Number of stored values that may differ from zero."""
        raise NotImplementedError

    @property
    def weight_bits(self) -> int:
        """Bits of one stored value."""
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """Members one after the other."""
        return plain_bytes(self)

    def write(self, writer: Writer) -> None:
        """Members one after the other."""
        for part in self.parts:
            part.write(writer)

    def tensors(self) -> tuple[Tensor, ...]:
        """Values of all members."""
        return tuple(part.value() for part in self.parts)

    def project(self, values: Sequence[Tensor], refit: bool = False) -> Self:
        """The nearest storable values in the same bytes, member by member."""
        return type(self)(tuple(p.project(v, refit) for p, v in zip(self.parts, values, strict=True)))


@dataclass(frozen=True, eq=False)
class UnreliableParts(StoredParts[Noisy]):
    """What all groups in unreliable cells share; a subclass counts its cells."""

    def variances(self) -> tuple[Tensor, ...]:
        """Variance of what is read of all members."""
        return tuple(part.variance() for part in self.parts)

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """One read of all members."""
        return tuple(part.drawn(generator) for part in self.parts)


def as_member(values: Tensor, member: Member) -> Tensor:
    """Values in a member's dtype and part shape, never beyond the range of the dtype or of float32.

    Example:
        >>> as_member(torch.tensor([7e4, 1.0]), Member("w", (1, 2), torch.float16)).tolist()
        [[65504.0, 1.0]]
    """
    return within_range(values, member.dtype).reshape(member.part_shape)


def within_range(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in a dtype, never beyond its range or float32's."""
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    return values.clamp(-largest, largest).to(dtype)

"""Stored groups whose members are written one after the other, each in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from qubo_compress.menu.storage.portable import Portable
from qubo_compress.menu.storage.stored import Grid, Stored
from qubo_compress.menu.storage.streams import Writer
from qubo_compress.network.groups import Member


class StoredPart(ABC):
    """One member of a group as it is stored."""

    @abstractmethod
    def write(self, writer: Writer) -> None:
        """Everything that is stored, in a fixed order."""

    @abstractmethod
    def value(self) -> Tensor:
        """The member's values in its own dtype and part shape."""

    @abstractmethod
    def project(self, value: Tensor, refit: bool) -> Any:
        """The nearest storable values in the same bytes; scales move only with ``refit``."""

    def portable(self) -> Portable | None:
        """A form that other programs can read; none by default."""
        return None

    def grids(self) -> tuple[Grid, ...]:
        """Its grids of codes; none by default."""
        return ()

    def with_grids(self, grids: Iterator[Any]) -> Self:
        """The same part with the next grids of an iterator in the places of its own."""
        return self


class UnreliablePart(StoredPart):
    """One member of a group in cells that come back with errors; ``value`` is the mean of what is read."""

    @abstractmethod
    def variance(self) -> Tensor:
        """Variance of what is read, in the part's shape."""

    @abstractmethod
    def drawn(self, generator: torch.Generator) -> Tensor:
        """One read."""


Part = TypeVar("Part", bound=StoredPart)
Noisy = TypeVar("Noisy", bound=UnreliablePart)


@dataclass(frozen=True, eq=False)
class StoredParts(Stored, Generic[Part]):
    """What all groups of stored parts share; a subclass says what its numbers are.

    Attributes:
        parts: one per member of the group.
    """

    parts: tuple[Part, ...]

    def write(self, writer: Writer) -> None:
        for part in self.parts:
            part.write(writer)

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(part.value() for part in self.parts)

    def project(self, values: Sequence[Tensor], refit: bool = False) -> Self:
        """The nearest storable values in the same bytes, member by member."""
        return type(self)(tuple(p.project(v, refit) for p, v in zip(self.parts, values, strict=True)))

    def portable(self, member: int) -> Portable | None:
        return self.parts[member].portable()

    def grids(self) -> tuple[Grid, ...]:
        return tuple(grid for part in self.parts for grid in part.grids())

    def with_grids(self, grids: Iterator[Any]) -> Self:
        return type(self)(tuple(part.with_grids(grids) for part in self.parts))


@dataclass(frozen=True, eq=False)
class UnreliableParts(StoredParts[Noisy]):
    """What all groups in unreliable cells share; a subclass counts its cells."""

    unreliable: ClassVar[bool] = True

    def variances(self) -> tuple[Tensor, ...]:
        """Variance of what is read of all members."""
        return tuple(part.variance() for part in self.parts)

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, ...]:
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

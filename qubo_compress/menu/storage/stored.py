"""The interface of stored groups of tensors: required methods, and abilities of some forms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from qubo_compress.menu.low_rank.stages import Stage
from qubo_compress.menu.storage.portable import Portable
from qubo_compress.menu.storage.streams import ByteCounter, PlainWriter, Writer
from qubo_compress.network.rounding import InputRange

FLOAT_BITS = 32
"""Bits of an activation that is not rounded."""


class Stored(ABC):
    """A group of tensors as one choice stores it.

    Every form must implement the abstract methods. The others are abilities, and their defaults mean "none": values
    without underlying parameters, memory without errors, no movable mask, no layer of several stages, no form for other
    programs.
    """

    unreliable: ClassVar[bool] = False
    """Whether it is read back with random errors: ``tensors()`` is then the mean reading."""

    @property
    @abstractmethod
    def nonzeros(self) -> int:
        """Number of stored values that may differ from zero: each multiplies once per position."""

    @property
    @abstractmethod
    def weight_bits(self) -> int:
        """Bits of one stored value."""

    @property
    def activation_bits(self) -> int:
        """Bits of the layers' inputs: 32 unless they are rounded."""
        return FLOAT_BITS

    @property
    def input_ranges(self) -> tuple[InputRange, ...]:
        """The range of every member's inputs, if they are rounded; none by default."""
        return ()

    @abstractmethod
    def write(self, writer: Writer) -> None:
        """Write everything that is stored, in a fixed order."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The members' values on the CPU, in their own dtype and part shape."""

    @abstractmethod
    def project(self, values: Sequence[Tensor], refit: bool = False) -> Stored:
        """The nearest storable values with the same bytes: masks stay, codes move on the grid.

        Args:
            values: one tensor per member.
            refit: also move the scales, which are stored in as many bytes as before.
        """

    def to_bytes(self) -> bytes:
        """The bytes for the file: everything that :meth:`write` writes, in plain fields."""
        writer = PlainWriter()
        self.write(writer)
        return writer.data()

    @property
    def nbytes(self) -> int:
        """Exact length of :meth:`to_bytes`, computed without building the bytes where possible."""
        counter = ByteCounter()
        self.write(counter)
        return counter.total

    def parameters(self) -> tuple[Tensor, ...]:
        """The numbers that determine the values, such as factors, in float32 on the CPU; none by default.

        Fine-tuning trains these numbers instead of the values.
        """
        return ()

    def assemble(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The members' values as a differentiable function of the parameters, on the parameters' device."""
        return tuple(parameters)

    def store(self, parameters: Sequence[Tensor], refit: bool = False) -> Stored:
        """The nearest storable parameters in the same bytes, as :meth:`project` does for values."""
        return self.project(parameters, refit)

    @property
    def cells(self) -> int:
        """Memory cells that it takes: one per bit by default."""
        return 8 * self.nbytes

    def variances(self) -> tuple[Tensor, ...]:
        """Variance of every value when read, one float32 tensor per member; none in reliable memory."""
        return ()

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The members' values from one random read: by default their mean plus normal errors of their variances."""
        values = self.tensors()
        if not self.unreliable:
            return values
        spread = [variance.sqrt() for variance in self.variances()]
        return tuple(
            (v.float() + torch.randn(v.shape, generator=generator) * s).to(v.dtype)
            for v, s in zip(values, spread, strict=True)
        )

    def movable_masks(self) -> tuple[Tensor, ...]:
        """Masks of the numbers that survive pruning, in the shapes used in training; none if no mask may move.

        The numbers are the parameters, if there are any, else the members' values.
        """
        return ()

    def numbers(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The float32 numbers that represent the members' values, including pruned ones."""
        return tuple(value.detach().to("cpu", torch.float32) for value in values)

    def remasked(self, masks: Sequence[Tensor], numbers: Sequence[Tensor]) -> Stored:
        """The nearest storable numbers under other masks with the same number of survivors; scales move too."""
        raise NotImplementedError(f"{type(self).__name__} has no masks that could move")

    def stages(self, member: int) -> tuple[Stage, ...]:
        """The maps whose composition is the linear part of an ungrouped layer with that member as its weight.

        Empty if the layer can only run with the whole weight.
        """
        return ()

    def portable(self, member: int) -> Portable | None:
        """A member in a form that other programs can read, with exactly the values of :meth:`tensors`.

        A product of factors may differ from them by rounding. None by default: other programs get the numbers.
        """
        return None

    def grids(self) -> tuple[Grid, ...]:
        """Its grids of codes; none by default."""
        return ()

    def with_grids(self, grids: Iterator[Any]) -> Self:
        """The same group with its grids replaced, in order, by those of an iterator."""
        return self

    def weighed(self, values: Sequence[Tensor], price: float, refit: bool = False) -> Self | None:
        """Storable values near others, chosen as a whole by error plus price of bits; None by default.

        For codes that cannot be moved one by one, as those of a grid can.

        Args:
            values: one tensor per member.
            price: of a bit, in squared steps.
            refit: whether steps may move.
        """
        return None


class Grid(ABC):
    """Stored whole numbers times steps.

    Attributes:
        codes: (R, D) whole numbers.
        mask: (R, D) which of them are written, or None if all are.
    """

    codes: Tensor
    mask: Tensor | None = None

    @abstractmethod
    def steps(self) -> Tensor:
        """(R, 1) or (1, 1) float32 distance between codes."""

    @abstractmethod
    def stored_codes(self) -> Tensor:
        """(n,) the codes that are written, row by row."""

    @abstractmethod
    def with_codes(self, codes: Tensor) -> Self:
        """The same grid with other codes of the same range and positions."""

    @abstractmethod
    def with_steps(self, steps: Tensor) -> Self:
        """The same codes with other steps, rounded to their stored form."""

"""Codes of any size on one even grid, made for the entropy coder.

A coder makes rare codes expensive and frequent ones cheap, so a grid need not end at a fixed number of bits, and rows
need no separate ranges: one step for all weights is optimal at high rates (Gish & Pierce, IEEE Trans. Information
Theory 1968). Codes are compensated as in ``compensate``; a rate term may weigh their bits against the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.compensation.layer_error import Compensating
from qubo_compress.menu.compensation.moments import MOST_DAMPING, Codebook, descended, output_error, propagated
from qubo_compress.menu.families import offer
from qubo_compress.menu.operator import operators, values_of
from qubo_compress.menu.quantize import half_scale
from qubo_compress.menu.storage.parts import StoredPart, StoredParts, as_member
from qubo_compress.menu.storage.portable import ScaledCodes
from qubo_compress.menu.storage.row_kernels import LARGEST_SCALE
from qubo_compress.menu.storage.stored import Grid
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.network.groups import Group, Member

LARGEST_CODE = 2000
LARGEST_RATE = 2.0
RATE_ROUNDS = 2
WHOLE = Codebook(-LARGEST_CODE, LARGEST_CODE)


@dataclass(frozen=True, eq=False)
class LatticeTensor(StoredPart, Grid):
    """Codes of one member on an even grid.

    Attributes:
        member: what is stored.
        step: float16 scalar.
        codes: (R, D) int16.
        low, high: smallest and largest code that can be stored.
    """

    member: Member
    step: Tensor
    codes: Tensor
    low: int
    high: int

    def value(self) -> Tensor:
        return as_member(self.codes.float() * self.step.float(), self.member)

    def portable(self) -> ScaledCodes:
        """All codes, with one step."""
        return ScaledCodes(self.codes.reshape(self.member.part_shape), self.step.float().reshape(1))

    def write(self, writer: Writer) -> None:
        writer.raw(self.step.reshape(1).numpy().tobytes())
        writer.raw(np.array([self.low, self.high], dtype="<i2").tobytes())
        writer.codes(self.codes.reshape(-1).numpy().astype(np.int64), self.low, self.high)

    @classmethod
    def read(cls, member: Member, reader: Reader) -> LatticeTensor:
        """Inverse of :meth:`write`."""
        rows = member.part_shape[0] if len(member.part_shape) > 1 else 1
        step = torch.from_numpy(np.frombuffer(reader.raw(2), dtype=np.float16).copy()).reshape(())
        low, high = (int(end) for end in np.frombuffer(reader.raw(4), dtype="<i2"))
        if not -LARGEST_CODE <= low <= high <= LARGEST_CODE:
            raise ValueError(f"codes from {low} to {high} cannot have been stored")
        if not 0.0 < float(step) <= LARGEST_SCALE:
            raise ValueError(f"a step of {float(step)} cannot have been stored")
        codes = torch.from_numpy(reader.codes(member.numel, low, high)).to(torch.int16)
        return cls(member, step, codes.reshape(rows, -1), low, high)

    def project(self, value: Tensor, refit: bool = False) -> LatticeTensor:
        """Nearest codes on the same grid, even with ``refit``."""
        return self.with_codes(torch.round(values_of(value) / self.step.float()).clamp(self.low, self.high))

    def grids(self) -> tuple[Grid, ...]:
        return (self,)

    def with_grids(self, grids: Iterator[Any]) -> Self:
        found: Self = next(grids)
        return found

    def steps(self) -> Tensor:
        return self.step.float().reshape(1, 1)

    def stored_codes(self) -> Tensor:
        return self.codes.reshape(-1)

    def with_codes(self, codes: Tensor) -> LatticeTensor:
        return replace(self, codes=codes.to(torch.int16))

    def with_steps(self, steps: Tensor) -> LatticeTensor:
        return replace(self, step=half_scale(steps).reshape(()))


@dataclass(frozen=True, eq=False)
class LatticeTensors(StoredParts[LatticeTensor]):
    """All members of a group on their grids."""

    @property
    def nonzeros(self) -> int:
        return sum(int((part.codes != 0).sum()) for part in self.parts)

    @property
    def weight_bits(self) -> int:
        return max(1, *((part.high - part.low).bit_length() for part in self.parts))


@operators.register
@dataclass(frozen=True)
class Lattice(Compensating):
    """Compensated codes on an even grid; small when coded: ``coded(of='lattice(step=1.0)')``.

    Args:
        step: in units of the root mean square of the tensor.
        rate: weight of a bit, relative to a bit's worth at the error reached without it (2 ln 2 times the
            mean squared error of a weight); 0: bits do not count.
        damping: share of the mean input moment that is added to every input's, at least; more where there are few
            examples, see :mod:`qubo_compress.calibration.statistics.damping`.

    Raises:
        InvalidMenu: for settings out of range.

    Example:
        >>> Lattice(step=0.5).needs
        (InputMoments(),)
    """

    operator_name: ClassVar[str] = "lattice"
    step: float
    rate: float = 0.0
    damping: float = 0.01

    def __post_init__(self) -> None:
        for name, low, high in (("step", 0.005, 10.0), ("rate", 0.0, LARGEST_RATE), ("damping", 1e-9, MOST_DAMPING)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and low <= value <= high):
                raise InvalidMenu(f"{name} must be a number from {low} to {high}; got {value!r}")
            object.__setattr__(self, name, float(value))

    @classmethod
    def samples(cls) -> tuple[Lattice, ...]:
        return cls(0.3), cls(1.0, rate=0.5), cls(2.0)

    @classmethod
    def faithful(cls) -> tuple[Lattice, float] | None:
        return cls(0.01), 0.03

    def at_price(self, price: float) -> Lattice | None:
        return replace(self, rate=min(self.rate * price, LARGEST_RATE)) if self.rate > 0 else None

    def encode_with(
        self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, tuple[Any, ...]]
    ) -> LatticeTensors:
        found = zip(group.members, parts, evidence[InputMoments()], strict=True)
        return LatticeTensors(tuple(self._one(*item) for item in found))

    def _one(self, member: Member, part: Tensor, moments: Moments) -> LatticeTensor:
        values = values_of(part).double()
        root = float(values.square().mean().sqrt())
        step = half_scale(torch.tensor(max(self.step * root, float(values.abs().max()) / LARGEST_CODE)))
        enough = replace(self, damping=min(moments.at_least(self.damping), MOST_DAMPING))
        codes = enough._codes(values, step.double().expand(len(values), 1), moments)
        return LatticeTensor(member, step, codes.to(torch.int16), int(codes.min()), int(codes.max()))

    def _codes(self, values: Tensor, steps: Tensor, moments: Moments) -> Tensor:
        codes = torch.zeros_like(values)
        for block, a, b in moments.spans(len(values)):
            upper = moments.inverse_factor(block, self.damping)
            codes[a:b] = propagated(values[a:b], steps[a:b], None, upper, WHOLE)
        self._descend(values, codes, steps, moments, WHOLE)
        if self.rate > 0:
            error = sum(
                float(output_error(values[a:b], codes[a:b] * steps[a:b], moments.damped(block, self.damping)).sum())
                for block, a, b in moments.spans(len(values))
            )
            worth = 2 * math.log(2) * error / values.numel()
            for _ in range(RATE_ROUNDS):
                self._descend(values, codes, steps, moments, WHOLE.priced(codes, self.rate * worth))
        return codes

    def _descend(self, values: Tensor, codes: Tensor, steps: Tensor, moments: Moments, book: Codebook) -> None:
        for block, a, b in moments.spans(len(values)):
            damped = moments.damped(block, self.damping)
            codes[a:b] = descended(values[a:b], codes[a:b], steps[a:b], None, damped, book)

    def read(self, group: Group, reader: Reader) -> LatticeTensors:
        return LatticeTensors(tuple(LatticeTensor.read(member, reader) for member in group.members))


offer("compensate", *(f"coded(of='lattice(step={step},rate=1.0)')" for step in (0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2)))

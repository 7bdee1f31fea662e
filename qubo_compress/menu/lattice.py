"""Codes of any size on an even grid, made for the entropy coder: steps follow what the loss minds, not the range.

A coder makes rare codes dear and frequent ones cheap, so a grid need not end where its fields do. At equal slope of
error against bits every weight has the same *weighted* step (Gish & Pierce, IEEE Trans. Information Theory 1968):
rows whose outputs the loss minds more get a finer one, step_r ~ g_r^(-1/2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.compensation import Rounding, descended, propagated
from qubo_compress.menu.families import offer
from qubo_compress.menu.groups import Group, Member
from qubo_compress.menu.operator import needs_data, operators, values_of
from qubo_compress.menu.quantize import SMALLEST_SCALE, half_scale, shrunk_codes
from qubo_compress.menu.streams import Reader, Writer, plain_bytes, plain_read, plain_size
from qubo_compress.statistics.input_moments import InputMoments, Moments
from qubo_compress.statistics.output_sensitivity import OutputSensitivity
from qubo_compress.statistics.statistic import Statistic

LARGEST_CODE = 2000
ROW_STEPS = 8
"""Row steps are powers of 2^(1 / ROW_STEPS): a row's is stored as a small whole number."""

MOST_ROW_STEPS = 3 * ROW_STEPS
_ROOTS = torch.tensor(
    [1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142136, 1.5422108, 1.6817928, 1.8340081], dtype=torch.float64
)
RATE_ROUNDS = 2


@dataclass(frozen=True, eq=False)
class LatticeTensor:
    """Codes of one member on an even grid.

    Attributes:
        member: what is stored.
        step: float16 scalar.
        exponents: (R, 1) int64; row r has the step ``step * 2^(exponents[r] / 8)``.
        codes: (R, D) int16.
        low, high: smallest and largest code that can be stored.
    """

    member: Member
    step: Tensor
    exponents: Tensor
    codes: Tensor
    low: int
    high: int

    def steps(self) -> Tensor:
        """(R, 1) float32 steps."""
        octaves, rest = self.exponents // ROW_STEPS, self.exponents % ROW_STEPS
        # From a table and powers of two, which every machine multiplies alike.
        return (self.step.double() * torch.ldexp(_ROOTS[rest], octaves)).float()

    def value(self) -> Tensor:
        """The weights that the codes stand for."""
        largest = min(torch.finfo(self.member.dtype).max, torch.finfo(torch.float32).max)
        values = (self.codes.float() * self.steps()).clamp(-largest, largest)
        return values.to(self.member.dtype).reshape(self.member.part_shape)

    def write(self, writer: Writer) -> None:
        """Step, range, row exponents, codes."""
        writer.raw(self.step.reshape(1).numpy().tobytes())
        writer.raw(np.array([self.low, self.high], dtype="<i2").tobytes())
        writer.codes(self.exponents.reshape(-1).numpy(), -MOST_ROW_STEPS, MOST_ROW_STEPS)
        writer.codes(self.codes.reshape(-1).numpy().astype(np.int64), self.low, self.high)

    @classmethod
    def read(cls, member: Member, reader: Reader) -> LatticeTensor:
        """Inverse of :meth:`write`."""
        rows = member.part_shape[0] if len(member.part_shape) > 1 else 1
        step = torch.from_numpy(np.frombuffer(reader.raw(2), dtype=np.float16).copy()).reshape(())
        low, high = (int(end) for end in np.frombuffer(reader.raw(4), dtype="<i2"))
        if not -LARGEST_CODE <= low <= high <= LARGEST_CODE:
            raise ValueError(f"codes from {low} to {high} cannot have been stored")
        exponents = torch.from_numpy(reader.codes(rows, -MOST_ROW_STEPS, MOST_ROW_STEPS)).reshape(rows, 1)
        codes = torch.from_numpy(reader.codes(member.numel, low, high)).to(torch.int16)
        return cls(member, step, exponents, codes.reshape(rows, -1), low, high)

    def project(self, value: Tensor) -> LatticeTensor:
        """Nearest codes on the same grid."""
        return self.shrunk(value, 0.0)

    def shrunk(self, value: Tensor, zone: float) -> LatticeTensor:
        """Codes of least magnitude within half a step plus ``zone`` steps."""
        steps = values_of(value) / self.steps()
        codes = torch.round(steps) if zone == 0.0 else shrunk_codes(steps, zone)
        return replace(self, codes=codes.clamp(self.low, self.high).to(torch.int16))


@dataclass(frozen=True, eq=False)
class LatticeTensors:
    """All members of a group on their grids."""

    parts: tuple[LatticeTensor, ...]

    @property
    def nbytes(self) -> int:
        """In plain fields; an entropy coder needs far fewer."""
        return plain_size(self)

    @property
    def nonzeros(self) -> int:
        """Weights whose code is not zero."""
        return sum(int((part.codes != 0).sum()) for part in self.parts)

    @property
    def weight_bits(self) -> int:
        """Bits of a plain code."""
        return max(1, *((part.high - part.low).bit_length() for part in self.parts))

    def to_bytes(self) -> bytes:
        """Members one after the other."""
        return plain_bytes(self)

    def write(self, writer: Writer) -> None:
        """Members one after the other."""
        for part in self.parts:
            part.write(writer)

    def tensors(self) -> tuple[Tensor, ...]:
        """Codes times steps."""
        return tuple(part.value() for part in self.parts)

    def project(self, values: Sequence[Tensor], refit: bool = False) -> LatticeTensors:
        """Nearest codes; the grid stays."""
        return LatticeTensors(tuple(p.project(v) for p, v in zip(self.parts, values, strict=True)))

    def shrunk(self, values: Sequence[Tensor], zone: float) -> LatticeTensors:
        """Codes rounded towards zero."""
        return LatticeTensors(tuple(p.shrunk(v, zone) for p, v in zip(self.parts, values, strict=True)))


@operators.register("lattice")
@dataclass(frozen=True)
class Lattice:
    """Compensated codes on an even grid; small when coded: ``coded(of='lattice(step=1.0)')``.

    Args:
        step: in units of the root mean square of the tensor.
        rate: weight of a bit against the squared error, in squared steps; 0: bits do not count.
        damping: share of the mean input moment that is added to every input's.
        by_row: whether rows that the loss minds more get a finer step.

    Raises:
        InvalidMenu: for settings out of range.

    Example:
        >>> Lattice(step=0.5).needs
        (InputMoments(), OutputSensitivity(count=512))
    """

    operator_name: ClassVar[str] = "lattice"
    step: float
    rate: float = 0.0
    damping: float = 0.01
    by_row: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (("step", 0.005, 10.0), ("rate", 0.0, 2.0), ("damping", 1e-9, 10.0)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and low <= value <= high):
                raise InvalidMenu(f"{name} must be a number from {low} to {high}; got {value!r}")
            object.__setattr__(self, name, float(value))

    @classmethod
    def samples(cls) -> tuple[Lattice, ...]:
        """Settings that the conformance suite tries."""
        return cls(0.3), cls(1.0, rate=0.1), cls(0.7, by_row=False)

    @classmethod
    def faithful(cls) -> tuple[Lattice, float] | None:
        """Highest fidelity, and the largest relative displacement that it leaves."""
        return cls(0.01, by_row=False), 0.03

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Second moments of the inputs, and where asked for what the loss minds in the outputs."""
        return (InputMoments(), OutputSensitivity()) if self.by_row else (InputMoments(),)

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Suits weights of convolutions and linear layers."""
        if group.kind != "weight":
            return f"{group.kind} vectors have no inputs to compensate with"
        if group.module_type == "Embedding":
            return "an embedding picks rows, so its inputs have no moments to compensate with"
        return None

    def encode(self, group: Group, parts: Sequence[Tensor]) -> LatticeTensors:
        """Refused: needs data."""
        raise needs_data(self)

    def encode_with(
        self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, tuple[Any, ...]]
    ) -> LatticeTensors:
        """Steps by sensitivity, codes by propagation and descent."""
        minded = evidence[OutputSensitivity()] if self.by_row else (None,) * len(parts)
        found = zip(group.members, parts, evidence[InputMoments()], minded, strict=True)
        return LatticeTensors(tuple(self._one(*item) for item in found))

    def _one(self, member: Member, part: Tensor, moments: Moments, minded: Tensor | None) -> LatticeTensor:
        values = values_of(part).double()
        root = float(values.square().mean().sqrt())
        step = half_scale(torch.tensor(max(self.step * root, float(values.abs().max()) / LARGEST_CODE)))
        exponents = torch.zeros(len(values), 1, dtype=torch.int64)
        if minded is not None:
            wanted = torch.round(-0.5 * torch.log2(minded.clamp(min=1e-12)) * ROW_STEPS)
            exponents[:, 0] = wanted.clamp(-MOST_ROW_STEPS, MOST_ROW_STEPS).to(torch.int64)
            finest = torch.log2(values.abs().amax(1) / (LARGEST_CODE * step.double())).clamp(min=-100) * ROW_STEPS
            exponents[:, 0] = torch.maximum(exponents[:, 0], torch.ceil(finest).to(torch.int64)).clamp(
                max=MOST_ROW_STEPS
            )
        empty = LatticeTensor(member, step, exponents, torch.zeros(values.shape, dtype=torch.int16), 0, 0)
        codes = self._codes(values, empty.steps().double().clamp(min=SMALLEST_SCALE), moments)
        return replace(empty, codes=codes.to(torch.int16), low=int(codes.min()), high=int(codes.max()))

    def _codes(self, values: Tensor, steps: Tensor, moments: Moments) -> Tensor:
        codes = torch.zeros_like(values)
        for block, a, b in moments.spans(len(values)):
            upper = moments.inverse_factor(block, self.damping)
            codes[a:b] = propagated(values[a:b], steps[a:b], None, upper, _nearest)
        rounding: Rounding = _nearest
        for _ in range(1 + (RATE_ROUNDS if self.rate else 0)):
            for block, a, b in moments.spans(len(values)):
                damped = moments.damped(block, self.damping)
                codes[a:b] = descended(values[a:b], codes[a:b], steps[a:b], None, damped, rounding)
            scale = float(torch.stack([m.diagonal().mean() for m in moments.blocks]).mean()) * float(
                steps.square().mean()
            )
            rounding = _cheapest(codes, self.rate * scale)
        return codes

    def decode(self, group: Group, data: memoryview) -> tuple[LatticeTensors, int]:
        """Read the members one after the other."""
        return cast(tuple[LatticeTensors, int], plain_read(self, group, data))

    def read(self, group: Group, reader: Reader) -> LatticeTensors:
        """Read the members one after the other."""
        return LatticeTensors(tuple(LatticeTensor.read(member, reader) for member in group.members))


def _nearest(target: Tensor, _column: int, _weight: Tensor) -> Tensor:
    return torch.round(target).clamp_(-LARGEST_CODE, LARGEST_CODE)


def _cheapest(codes: Tensor, price: float) -> Rounding:
    """Rounding that weighs the squared error against the bits of a code, by how often codes occur now."""
    reach = int(codes.abs().max()) + 2
    counts = torch.bincount((codes + reach).reshape(-1).long(), minlength=2 * reach + 1).double() + 0.5
    bits = -torch.log2(counts / counts.sum())

    def cheapest(target: Tensor, _column: int, weight: Tensor) -> Tensor:
        near = torch.round(target).clamp(-reach, reach)
        inward = near - torch.sign(near)
        tried = torch.stack([near, inward, torch.zeros_like(near)])
        cost = weight * (target - tried) ** 2 + price * bits[(tried + reach).long()]
        return tried.gather(0, cost.argmin(0, keepdim=True))[0]

    return cheapest


offer("compensate", *(f"coded(of='lattice(step={step})')" for step in (0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2)))

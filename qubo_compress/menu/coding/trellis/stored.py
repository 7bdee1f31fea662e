"""Codes of a trellis as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from qubo_compress.menu.coding.layout import CodeLayout, multiples
from qubo_compress.menu.coding.trellis.rates import Rates
from qubo_compress.menu.coding.trellis.search import Floats, Integers, Quantizers, nearest
from qubo_compress.menu.operator import values_of
from qubo_compress.menu.quantize import half_scale
from qubo_compress.menu.storage.parts import StoredPart, StoredParts, as_member
from qubo_compress.menu.storage.portable import ScaledCodes
from qubo_compress.menu.storage.row_kernels import LARGEST_SCALE
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.network.groups import Member

LARGEST_CODE = 2000


@dataclass(frozen=True, eq=False)
class TrellisTensor(StoredPart):
    """Codes of one member.

    Attributes:
        member: what is stored.
        states: of the trellis; 0: plain codes.
        step: float16 scalar: half the distance between two values of one quantizer; of plain codes the distance.
        codes: (R, D) int16.
        reach: largest magnitude that can be stored.
    """

    member: Member
    states: int
    step: Tensor
    codes: Tensor
    reach: int

    @property
    def multiples(self) -> Tensor:
        """(R, D) multiples of the step."""
        return torch.from_numpy(multiples(self.codes.numpy(), self.states))

    def value(self) -> Tensor:
        return as_member(self.multiples.float() * self.step.float(), self.member)

    def portable(self) -> ScaledCodes:
        """The multiples, with one step."""
        found = self.multiples
        kind = torch.int8 if int(found.abs().max()) < 128 else torch.int16
        return ScaledCodes(found.to(kind).reshape(self.member.part_shape), self.step.float().reshape(1))

    def write(self, writer: Writer) -> None:
        writer.raw(self.step.reshape(1).numpy().tobytes())
        writer.raw(np.array([self.reach], dtype="<i2").tobytes())
        writer.codes(self.codes.reshape(-1).numpy().astype(np.int64), -self.reach, self.reach, self.layout)

    @classmethod
    def read(cls, member: Member, states: int, reader: Reader) -> TrellisTensor:
        """Inverse of :meth:`write`."""
        layout = CodeLayout.of(member.part_shape, states)
        step = torch.from_numpy(np.frombuffer(reader.raw(2), dtype=np.float16).copy()).reshape(())
        reach = int(np.frombuffer(reader.raw(2), dtype="<i2")[0])
        if not 0 <= reach <= LARGEST_CODE:
            raise ValueError(f"codes up to {reach} cannot have been stored")
        if not 0.0 < float(step) <= LARGEST_SCALE:
            raise ValueError(f"a step of {float(step)} cannot have been stored")
        codes = torch.from_numpy(reader.codes(member.numel, -reach, reach, layout)).to(torch.int16)
        return cls(member, states, step, codes.reshape(layout.rows, layout.columns), reach)

    @property
    def quantizers(self) -> Quantizers:
        """The quantizers of its codes."""
        return Quantizers(self.layout, float(self.step) * (2 if self.states else 1), self.reach)

    @property
    def layout(self) -> CodeLayout:
        """The order in which its codes are coded."""
        return CodeLayout.of(self.member.part_shape, self.states)

    def project(self, value: Tensor, refit: bool = False) -> TrellisTensor:
        """The codes of the nearest values; with ``refit`` the step that fits them best, and the codes nearest then."""
        return self.weighed(value, 0.0, refit)

    def weighed(self, value: Tensor, price: float, refit: bool = False) -> TrellisTensor:
        """The codes of least squared error, in units of the squared step, plus price of bits.

        Args:
            value: what the codes should approximate.
            price: of a bit; bits are estimated from the present codes.
            refit: whether the step may move.
        """
        values = np.ascontiguousarray(values_of(value).double().numpy().T)
        rates = self._rates.priced(price) if price > 0 else self.quantizers.free()
        found = self._nearest(values, rates)
        if refit:
            step = half_scale(torch.tensor(_fitted(values, found, self.quantizers)))
            moved = replace(self, step=step)
            return replace(moved, codes=_as_stored(moved._nearest(values, rates)))
        return replace(self, codes=_as_stored(found))

    @cached_property
    def _rates(self) -> Rates:
        """Bits that the present codes suggest: computed once for many prices."""
        return self.quantizers.rates(np.ascontiguousarray(self.codes.numpy().T))

    def _nearest(self, values: Floats, rates: Rates) -> Integers:
        return nearest(values, self.quantizers, rates.priced(float(self.step) ** 2))


def _as_stored(codes: Integers) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(codes.T)).to(torch.int16)


def _fitted(values: Floats, codes: Integers, quantizers: Quantizers) -> float:
    """The unit of least squared error for given codes."""
    whole = multiples(codes.T, quantizers.states).T
    square, product = float((whole * whole).sum()), float((whole * values).sum())
    return product / square if square > 0 and product > 0 else quantizers.unit


@dataclass(frozen=True, eq=False)
class TrellisTensors(StoredParts[TrellisTensor]):
    """All members of a group as codes of a trellis."""

    @property
    def nonzeros(self) -> int:
        return sum(int((part.codes != 0).sum()) for part in self.parts)

    @property
    def weight_bits(self) -> int:
        return max(1, *((2 * part.reach).bit_length() for part in self.parts))

    def weighed(self, values: Sequence[Tensor], price: float, refit: bool = False) -> TrellisTensors:
        """Storable values near others, with fewer bits; see :meth:`TrellisTensor.weighed`."""
        pairs = zip(self.parts, values, strict=True)
        return TrellisTensors(tuple(part.weighed(value, price, refit) for part, value in pairs))

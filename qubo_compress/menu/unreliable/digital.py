"""Quantized codes in one-bit cells that flip, with better protection for important bits.

Unequal error protection by bit position: every bit of a code is stored in an odd number of cells with a majority vote,
or protected by an error-correcting code. Mean and variance of a reading are exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from qubo_compress.channels.binary import BinaryChannel
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.operator import Operator, operators, values_of
from qubo_compress.menu.prune import check_sparsity, magnitude_mask
from qubo_compress.menu.quantize import half_scale, least_squares_scale
from qubo_compress.menu.storage.parts import UnreliablePart, UnreliableParts, as_member
from qubo_compress.menu.storage.streams import ByteCounter, Reader, Writer
from qubo_compress.network.groups import Group, Member

REPRESENTATIONS = ("sign-magnitude", "offset")
SCALES = 24
SMALLEST_SCALE_SHARE = 0.15


@dataclass(frozen=True, eq=False)
class BitCode:
    """The value of every bit pattern, and mean and variance of its readings.

    Patterns are whole numbers of ``bits`` binary digits. With transition matrix T of independent flips, the mean
    is T f and the variance T f^2 - (T f)^2, f the value of each pattern.

    Attributes:
        bits: digits of a pattern.
        rates: flip rate of every digit, the most significant (or sign) first.
        values: (2^bits,) f.
        means, variances: (2^bits,) of readings.
    """

    bits: int
    rates: tuple[float, ...]
    values: Tensor
    means: Tensor
    variances: Tensor

    def nearest(self, numbers: Tensor) -> Tensor:
        """Patterns with the nearest mean."""
        order = torch.argsort(self.means, stable=True)
        ordered = self.means[order]
        middles = (ordered[1:] + ordered[:-1]) / 2
        return order[torch.searchsorted(middles, numbers.contiguous())]

    def flipped(self, patterns: Tensor, generator: torch.Generator) -> Tensor:
        """Patterns after one random read."""
        for position, rate in enumerate(self.rates):
            flips = torch.rand(patterns.shape, generator=generator) < rate
            patterns = patterns ^ (flips.long() << (self.bits - 1 - position))
        return patterns


@functools.lru_cache(maxsize=64)
def bit_code(bits: int, representation: str, rates: tuple[float, ...]) -> BitCode:
    """The code of one representation under given flip rates; cached.

    Example:
        >>> code = bit_code(2, "offset", (0.0, 0.25))
        >>> code.values.tolist(), code.means.tolist(), code.variances.tolist()
        ([-2.0, -1.0, 0.0, 1.0], [-1.75, -1.25, 0.25, 0.75], [0.1875, 0.1875, 0.1875, 0.1875])
    """
    patterns = np.arange(1 << bits)
    half = 1 << (bits - 1)
    values = patterns - half if representation == "offset" else np.where(patterns < half, patterns, half - patterns)
    transition = functools.reduce(np.kron, [np.array([[1 - p, p], [p, 1 - p]]) for p in rates])
    mean = transition @ values
    variance = np.maximum(transition @ (values**2.0) - mean**2, 0.0)
    found = (torch.from_numpy(np.asarray(column, dtype=np.float32)) for column in (values, mean, variance))
    return BitCode(bits, rates, *found)


@dataclass(frozen=True, eq=False)
class DigitalTensor(UnreliablePart):
    """One member in cells that flip.

    Attributes:
        member: the stored tensor.
        settings: of the operator.
        scale: (rows, 1) float16, kept reliably.
        patterns: (rows, columns) int64, zero where pruned.
        mask: (rows, columns) survivors, or None; kept reliably.
    """

    member: Member
    settings: Digital
    scale: Tensor
    patterns: Tensor
    mask: Tensor | None

    @property
    def survivors(self) -> Tensor:
        """(rows, columns) weights that take cells."""
        return torch.ones_like(self.patterns, dtype=torch.bool) if self.mask is None else self.mask

    def _weights(self, numbers: Tensor) -> Tensor:
        return as_member(numbers * self.scale.float() * self.survivors, self.member)

    def value(self) -> Tensor:
        return self._weights(self.settings.code.means[self.patterns])

    def variance(self) -> Tensor:
        spread = self.settings.code.variances[self.patterns] * self.scale.float() ** 2 * self.survivors
        return spread.reshape(self.member.part_shape)

    def drawn(self, generator: torch.Generator) -> Tensor:
        return self._weights(self.settings.code.values[self.settings.code.flipped(self.patterns, generator)])

    def write(self, writer: Writer) -> None:
        self.write_reliable(writer)
        patterns = self.patterns[self.survivors].numpy()
        writer.codes(patterns, 0, (1 << self.settings.bits) - 1)

    def write_reliable(self, writer: Writer) -> None:
        """Write the protected bits: scales and mask."""
        writer.raw(self.scale.numpy().tobytes())
        if self.mask is not None:
            writer.mask(self.mask.reshape(-1).numpy())

    @classmethod
    def read(cls, member: Member, settings: Digital, reader: Reader) -> DigitalTensor:
        """Inverse of :meth:`write`."""
        shape = member.part_shape
        rows = shape[0] if len(shape) > 1 else 1
        scale = torch.from_numpy(np.frombuffer(reader.raw(2 * rows), dtype=np.float16).copy()).reshape(rows, 1)
        patterns = torch.zeros(rows, member.numel // rows, dtype=torch.int64)
        mask = None
        if settings.sparsity > 0:
            mask = torch.from_numpy(reader.mask(member.numel)).reshape(patterns.shape)
        survivors = torch.ones_like(patterns, dtype=torch.bool) if mask is None else mask
        found = reader.codes(int(survivors.sum()), 0, (1 << settings.bits) - 1)
        patterns[survivors] = torch.from_numpy(found)
        return cls(member, settings, scale, patterns, mask)

    def project(self, value: Tensor, refit: bool) -> DigitalTensor:
        """The nearest means under the same mask; scales change only with ``refit``."""
        values = values_of(value) * self.survivors
        code, scale = self.settings.code, self.scale
        patterns = code.nearest(values / scale.float())
        if refit:
            means = code.means[patterns] * self.survivors
            scale = half_scale(least_squares_scale(values, means, scale.float()))
            patterns = code.nearest(values / scale.float())
        return DigitalTensor(self.member, self.settings, scale, patterns * self.survivors, self.mask)


@dataclass(frozen=True, eq=False)
class DigitalTensors(UnreliableParts[DigitalTensor]):
    """All members of a group in cells that flip."""

    @property
    def nonzeros(self) -> int:
        """Weights that are not pruned: with flips, none of them is certainly zero."""
        return sum(int(part.survivors.sum()) for part in self.parts)

    @property
    def weight_bits(self) -> int:
        return self.parts[0].settings.bits

    @property
    def cells(self) -> int:
        """Cells for the copies of every bit, for protected bits at the channel's price, and for scales and masks."""
        counter = ByteCounter()
        for part in self.parts:
            part.write_reliable(counter)
        settings = self.parts[0].settings
        price = settings.medium.cells_per_reliable_bit
        protected = 8 * counter.total + self.nonzeros * settings.protection.count(0)
        return self.nonzeros * sum(settings.protection) + math.ceil(protected * price)


@operators.register
@dataclass(frozen=True)
class Digital(Operator):
    """Codes in one-bit cells that flip, with one reliable float16 scale per output row.

    It stores the pattern whose *expected* reading is nearest to the weight. This compensates the bias of flips, which
    pull large codes towards the middle, as far as the grid allows.

    Args:
        bits: digits of a code, 2 to 10.
        flip_rate: of a cell, 0 to 0.5.
        copies: an odd number of cells for every digit, the sign or most significant first; 0: protected by an
            error-correcting code at the channel's price. Empty: one cell each.
        sparsity: share of weights pruned first; the mask is protected.
        representation: ``"sign-magnitude"``: small codes risk little except their sign; ``"offset"``: two's complement
            with its first digit inverted.

    Raises:
        InvalidMenu, InvalidChannel: for values out of range.

    Example:
        >>> group = Group("w", "weight", (Member("w", (1, 8), torch.float32),), "Linear")
        >>> packed = Digital(bits=4, copies=(3, 1, 1, 1)).encode(group, [torch.linspace(-1, 1, 8).reshape(1, 8)])
        >>> packed.nbytes, packed.cells  # 8 x 6 cells, and a protected scale of 16 bits
        (6, 69)
    """

    operator_name: ClassVar[str] = "digital"
    unreliable: ClassVar[bool] = True
    bits: int
    flip_rate: float = 0.01
    copies: tuple[int, ...] = ()
    sparsity: float = 0.0
    representation: str = "sign-magnitude"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if not (isinstance(self.bits, int) and 2 <= self.bits <= 10):
            raise InvalidMenu(f"bits must be a whole number from 2 to 10; got {self.bits!r}")
        if self.representation not in REPRESENTATIONS:
            raise InvalidMenu(f"representation is one of {', '.join(REPRESENTATIONS)}; got {self.representation!r}")
        whole = isinstance(self.copies, (tuple, list)) and all(isinstance(c, int) and c >= 0 for c in self.copies)
        copies = tuple(self.copies) if whole else ()
        if not whole or (copies and len(copies) != self.bits):
            raise InvalidMenu(
                f"copies gives a whole number for every one of {self.bits} digits, or nothing; got {self.copies!r}"
            )
        object.__setattr__(self, "copies", copies)
        self.medium.residual_rates(self.protection)
        self.medium.cells_per_reliable_bit  # noqa: B018  a hopeless channel is refused here

    @classmethod
    def samples(cls) -> tuple[Digital, ...]:
        return (
            cls(4),
            cls(2, copies=(0, 1)),
            cls(3, copies=(3, 1, 1), sparsity=0.5),
            cls(8, flip_rate=0.05, copies=(0, 5, 3, 3, 1, 1, 1, 1), representation="offset"),
            cls(5, flip_rate=0.1, representation="offset"),
        )

    @classmethod
    def faithful(cls) -> tuple[Digital, float] | None:
        """The settings of highest fidelity, and their largest relative displacement of the mean."""
        return cls(10, flip_rate=0.0), 4e-3

    @property
    def protection(self) -> tuple[int, ...]:
        """Copies of every digit."""
        return self.copies or (1,) * self.bits

    @property
    def medium(self) -> BinaryChannel:
        """The cells."""
        return BinaryChannel(self.flip_rate)

    @property
    def code(self) -> BitCode:
        """The values of the patterns."""
        return bit_code(self.bits, self.representation, self.medium.residual_rates(self.protection))

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        return None if group.kind == "weight" else f"{group.kind} vectors are kept in reliable memory"

    def encode(self, group: Group, parts: Sequence[Tensor]) -> DigitalTensors:
        """Prune, fit the scales, take the nearest patterns."""
        return DigitalTensors(tuple(self._one(m, p) for m, p in zip(group.members, parts, strict=True)))

    def _one(self, member: Member, part: Tensor) -> DigitalTensor:
        values = values_of(part)
        mask = None
        if self.sparsity > 0:
            mask = magnitude_mask(values, self.sparsity).reshape(values.shape)
            values = values * mask
        keep = torch.ones_like(values) if mask is None else mask
        scale = self._fitted_scale(values, keep)
        return DigitalTensor(member, self, scale, self.code.nearest(values / scale.float()) * keep.long(), mask)

    def _fitted_scale(self, values: Tensor, keep: Tensor) -> Tensor:
        """(rows, 1) float16 scale with the least expected squared error, including flips."""
        code = self.code
        largest = values.abs().amax(1, keepdim=True) / float(code.means.max())
        best: Any = None
        least: Any = None
        for share in np.linspace(1.0, SMALLEST_SCALE_SHARE, SCALES):
            scale = half_scale(float(share) * largest)
            patterns = code.nearest(values / scale.float())
            wrong = (values - code.means[patterns] * scale.float()) ** 2
            error = ((wrong + code.variances[patterns] * scale.float() ** 2) * keep).double().sum(1, keepdim=True)
            if best is None:
                best, least = scale, error
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        return cast(Tensor, best)

    def read(self, group: Group, reader: Reader) -> DigitalTensors:
        return DigitalTensors(tuple(DigitalTensor.read(member, self, reader) for member in group.members))

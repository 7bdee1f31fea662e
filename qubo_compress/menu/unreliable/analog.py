"""Weights in analog memory cells: noisy when read, protected by robust codes.

Isik, Choi, Zheng, Weissman, Ermon, Wong, Alaghi, "Neural network compression for noisy storage devices"
(arXiv 2102.07725). A weight is a share y of its row's range; its write level is phi^-1(y), and it is read as
w + (range) sigma(y) n / sqrt(r) with n standard normal and r cells averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from qubo_compress.calibration.statistics.curvature import Curvature
from qubo_compress.channels.analog import AnalogChannel, analog_channel
from qubo_compress.channels.redundancy import water_filling
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.operator import Operator, needs_data, operators, values_of
from qubo_compress.menu.prune import check_sparsity, magnitude_mask
from qubo_compress.menu.quantize import half_scale
from qubo_compress.menu.storage.parts import UnreliablePart, UnreliableParts, as_member
from qubo_compress.menu.storage.streams import ByteCounter, Reader, Writer
from qubo_compress.network.groups import Group, Member

MOST_CELLS = 16
LARGEST_BLOCK = 1 << 20
"""Cells that one weight can be averaged over."""

RANGES = 12
SMALLEST_RANGE_SHARE = 0.4


@dataclass(frozen=True)
class AnalogCode:
    """The mapping from weights to write levels.

    Attributes:
        channel: the cells.
        bits: resolution of the write level.
        sign: signs are stored in reliable bits, which halves the range.
        small: weights up to this share of their row's range have a separate range; 0: none do.
    """

    channel: AnalogChannel
    bits: int
    sign: bool
    small: float

    @property
    def highest(self) -> int:
        """Largest code; codes range from minus to plus this."""
        return (1 << self.bits) - 1 if self.sign else (1 << (self.bits - 1)) - 1

    def gains(self, ranges: Tensor, small: Tensor | None) -> Tensor:
        """(rows, columns) or (rows, 1) weight of the highest code."""
        whole = ranges.float()
        return whole if small is None else torch.where(small, self.small * whole, whole)

    def encode(self, values: Tensor, gains: Tensor) -> Tensor:
        """Nearest codes."""
        return torch.round(values / gains * self.highest).clamp_(-self.highest, self.highest)

    def shares(self, codes: Tensor) -> Tensor:
        """Levels written to the cells, as a share of their range."""
        codes = codes.float()
        return codes.abs() / self.highest if self.sign else (codes / self.highest + 1) / 2

    def spans(self, gains: Tensor) -> Tensor:
        """Width, in weights, of the cells' range."""
        return gains if self.sign else 2 * gains

    def variances(self, codes: Tensor, gains: Tensor) -> Tensor:
        """Variance of a reading of one cell."""
        every = torch.arange(-self.highest, self.highest + 1)
        table = torch.from_numpy(self.channel.deviation(self.shares(every).double().numpy())).float()
        return (table[(codes + self.highest).long()] * self.spans(gains)) ** 2


@dataclass(frozen=True, eq=False)
class AnalogTensor(UnreliablePart):
    """One member in analog cells.

    Attributes:
        member: the stored tensor.
        code: its mapping to write levels.
        ranges: (rows, 1) float16, the largest weight of each row that can be written.
        codes: (rows, columns) int32 write levels with their signs, zero where pruned.
        mask: (rows, columns) survivors, or None if nothing is pruned; kept reliably.
        small: (rows, columns) weights with the small range, or None; kept reliably.
        copies: (blocks,) cells per weight of every block of survivors, or one number for all.
        block: survivors per block; 0: one number for all.
    """

    member: Member
    code: AnalogCode
    ranges: Tensor
    codes: Tensor
    mask: Tensor | None
    small: Tensor | None
    copies: Tensor
    block: int

    @property
    def survivors(self) -> Tensor:
        """(rows, columns) weights that take cells."""
        return torch.ones_like(self.codes, dtype=torch.bool) if self.mask is None else self.mask

    def copies_of_survivors(self) -> Tensor:
        """(survivors,) cells of each."""
        count = int(self.survivors.sum())
        return self.copies.expand(count) if self.block == 0 else self.copies.repeat_interleave(self.block)[:count]

    def _gains(self) -> Tensor:
        return self.code.gains(self.ranges, self.small)

    def value(self) -> Tensor:
        return as_member(self.codes.float() / self.code.highest * self._gains(), self.member)

    def variance(self) -> Tensor:
        single = self.code.variances(self.codes, self._gains())
        found = torch.zeros_like(single)
        found[self.survivors] = single[self.survivors] / self.copies_of_survivors()
        return found.reshape(self.member.part_shape)

    def write(self, writer: Writer) -> None:
        """Ranges, mask, small weights, copies, signs, levels."""
        self.write_reliable(writer)
        levels = self.codes[self.survivors].numpy().astype(np.int64)
        if self.code.sign:
            writer.codes(np.abs(levels), 0, self.code.highest)
        else:
            writer.codes(levels, -self.code.highest, self.code.highest)

    def write_reliable(self, writer: Writer) -> None:
        """Write everything except the levels: the protected bits."""
        writer.raw(self.ranges.numpy().tobytes())
        if self.mask is not None:
            writer.mask(self.mask.reshape(-1).numpy())
        if self.small is not None:
            writer.mask(self.small[self.survivors].numpy())
        if self.block:
            writer.codes(self.copies.numpy().astype(np.int64), 1, MOST_CELLS)
        if self.code.sign:
            writer.codes((self.codes[self.survivors] >= 0).numpy().astype(np.int64), 0, 1)

    @classmethod
    def read(cls, member: Member, settings: Analog, reader: Reader) -> AnalogTensor:
        """Inverse of :meth:`write`."""
        shape = member.part_shape
        rows = shape[0] if len(shape) > 1 else 1
        code = settings.code
        ranges = torch.from_numpy(np.frombuffer(reader.raw(2 * rows), dtype=np.float16).copy()).reshape(rows, 1)
        codes = torch.zeros(rows, member.numel // rows, dtype=torch.int32)
        mask = None
        if settings.sparsity > 0:
            mask = torch.from_numpy(reader.mask(member.numel)).reshape(codes.shape)
        survivors = torch.ones_like(codes, dtype=torch.bool) if mask is None else mask
        count = int(survivors.sum())
        small = None
        if settings.small > 0:
            small = torch.zeros_like(survivors)
            small[survivors] = torch.from_numpy(reader.mask(count))
        copies = torch.tensor([settings.copies])
        if settings.block_size:
            copies = torch.from_numpy(reader.codes(-(-count // settings.block_size), 1, MOST_CELLS))
        signs = 2 * reader.codes(count, 0, 1) - 1 if code.sign else 1
        levels = reader.codes(count, 0 if code.sign else -code.highest, code.highest)
        codes[survivors] = torch.from_numpy(signs * levels).to(torch.int32)
        return cls(member, code, ranges, codes, mask, small, copies, settings.block_size)

    def project(self, value: Tensor, refit: bool = False) -> AnalogTensor:
        """Nearest levels; ranges, mask, small weights and copies stay, also with ``refit``."""
        codes = self.code.encode(values_of(value), self._gains()) * self.survivors
        return self._with(codes=codes.to(torch.int32))

    def _with(self, **changes: Any) -> AnalogTensor:
        return AnalogTensor(**{**self.__dict__, **changes})

    def drawn(self, generator: torch.Generator) -> Tensor:
        """One noisy read with normal errors, which stay normal when averaged."""
        noise = torch.randn(self.member.part_shape, generator=generator) * self.variance().sqrt()
        return as_member(self.value().float() + noise, self.member)


@dataclass(frozen=True, eq=False)
class AnalogTensors(UnreliableParts[AnalogTensor]):
    """All members of a group in analog cells."""

    @property
    def nonzeros(self) -> int:
        """Weights that are not pruned: noise leaves none of them zero."""
        return sum(int(part.survivors.sum()) for part in self.parts)

    @property
    def weight_bits(self) -> int:
        return self.parts[0].code.bits

    @property
    def cells(self) -> int:
        """Analog cells of the levels, plus cells of the protected bits."""
        counter = ByteCounter()
        for part in self.parts:
            part.write_reliable(counter)
        analog = sum(int(part.copies_of_survivors().sum()) for part in self.parts)
        return analog + math.ceil(8 * counter.total * self.parts[0].code.channel.cells_per_reliable_bit)


@operators.register
@dataclass(frozen=True)
class Analog(Operator):
    """Write levels in analog cells, the range of every row fitted to the noise.

    Args:
        cells: analog cells per stored weight, averaged when read: a whole number from 1 to 16; with
            ``redundancy="curvature"`` the mean, which need not be whole.
        channel: name of a registered channel; see ``qubo_compress.channels.names()``.
        noise: factor on the channel's deviations, for older or worse cells.
        sign: keep signs in protected bits, so that magnitudes use the whole range of a cell: half the noise.
        small: weights up to this share of their row's range get a separate gain, marked by a protected bit.
        sparsity: share of weights that are pruned first and take no cell; the mask is protected.
        redundancy: ``"uniform"``, or ``"curvature"``: more cells where 1/2 h sigma^2 is large, by water filling
            over blocks; the number of every block is protected.
        block: consecutive weights that share one number of cells under ``redundancy="curvature"``.
        bits: resolution of the write levels.

    Raises:
        InvalidMenu: for values out of range.

    Example:
        >>> group = Group("w", "weight", (Member("w", (2, 4), torch.float32),), "Linear")
        >>> packed = Analog(cells=2).encode(group, [torch.tensor([[1.0, -1.0, 0.0, 0.5], [2.0, 0.0, -2.0, 1.0]])])
        >>> packed.nbytes, packed.cells  # 16 cells of levels, and 4 + 1 protected bytes
        (13, 32)
    """

    operator_name: ClassVar[str] = "analog"
    unreliable: ClassVar[bool] = True
    cells: float = 1
    channel: str = "pcm"
    noise: float = 1.0
    sign: bool = True
    small: float = 0.0
    sparsity: float = 0.0
    redundancy: str = "uniform"
    block: int = 9
    bits: int = 8

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.redundancy not in ("uniform", "curvature"):
            raise InvalidMenu(f"redundancy is 'uniform' or 'curvature'; got {self.redundancy!r}")
        limits = (
            ("cells", 1, MOST_CELLS), ("noise", 0, 1000), ("small", 0, 0.9), ("bits", 3, 14),
            ("block", 1, LARGEST_BLOCK),
        )  # fmt: skip
        for name, low, high in limits:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise InvalidMenu(f"{name} must be from {low} to {high}; got {value!r}")
        whole = ("bits", "block") if self.redundancy == "curvature" else ("bits", "block", "cells")
        for name in whole:
            value = getattr(self, name)
            if value != int(value):
                raise InvalidMenu(f"{name} must be a whole number; got {value!r}")
            object.__setattr__(self, name, int(value))
        self.code.channel.cells_per_reliable_bit  # noqa: B018  an unknown or hopeless channel is refused here

    @classmethod
    def samples(cls) -> tuple[Analog, ...]:
        return (
            cls(),
            cls(cells=3, sign=False, channel="pcm-open-loop"),
            cls(small=0.3, sparsity=0.5),
            cls(cells=2.5, redundancy="curvature", sparsity=0.3, block=4),
            cls(cells=2, redundancy="curvature", small=0.25, bits=12, noise=2.0),
        )

    @classmethod
    def faithful(cls) -> tuple[Analog, float] | None:
        """The settings of highest fidelity, and their largest relative displacement of the mean."""
        return cls(cells=16, noise=0.0, bits=14), 1e-3

    @property
    def code(self) -> AnalogCode:
        """How weights become write levels."""
        return AnalogCode(
            analog_channel(self.channel, float(self.noise)), int(self.bits), bool(self.sign), float(self.small)
        )

    @property
    def needs(self) -> tuple[Any, ...]:
        return (Curvature(),) if self.redundancy == "curvature" else ()

    @property
    def block_size(self) -> int:
        """Weights that share one number of cells; 0: one number for all."""
        return int(self.block) if self.redundancy == "curvature" else 0

    @property
    def copies(self) -> int:
        """Cells per weight before redundancy is distributed."""
        return int(self.cells)

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        return None if group.kind == "weight" else f"{group.kind} vectors are kept in reliable memory"

    def encode(self, group: Group, parts: Sequence[Tensor]) -> AnalogTensors:
        """Prune, fit the ranges, round to write levels."""
        if self.needs:
            raise needs_data(self)
        return AnalogTensors(tuple(self._one(m, p) for m, p in zip(group.members, parts, strict=True)))

    def encode_with(
        self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, tuple[Any, ...]]
    ) -> AnalogTensors:
        """As :meth:`encode`, then distribute the cells by curvature."""
        stored = tuple(self._one(m, p) for m, p in zip(group.members, parts, strict=True))
        if not self.needs:
            return AnalogTensors(stored)
        return AnalogTensors(self._spread(stored, evidence[self.needs[0]]))

    def _one(self, member: Member, part: Tensor) -> AnalogTensor:
        values = values_of(part)
        mask = None
        if self.sparsity > 0:
            mask = magnitude_mask(values, self.sparsity).reshape(values.shape)
            values = values * mask
        ranges = self._fitted_ranges(values, mask)
        small = values.abs() <= self.small * ranges.float() if self.small > 0 else None
        if small is not None and mask is not None:
            small = small & mask
        codes = self.code.encode(values, self.code.gains(ranges, small)).to(torch.int32)
        copies = torch.tensor([self.copies])
        return AnalogTensor(member, self.code, ranges, codes, mask, small, copies, 0)

    def _fitted_ranges(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """(rows, 1) float16 ranges with the least expected squared error: a narrow range clips, a wide one is noisy."""
        keep = torch.ones_like(values) if mask is None else mask.float()
        largest = values.abs().amax(1, keepdim=True)
        best = least = None
        for share in np.linspace(1.0, SMALLEST_RANGE_SHARE, RANGES):
            ranges = half_scale(float(share) * largest)
            small = values.abs() <= self.small * ranges.float() if self.small > 0 else None
            gains = self.code.gains(ranges, small)
            codes = self.code.encode(values, gains)
            wrong = (values - codes / self.code.highest * gains) ** 2
            noise = self.code.variances(codes, gains) / self.cells
            error = ((wrong + noise) * keep).double().sum(1, keepdim=True)
            if best is None or least is None:
                best, least = ranges, error
            best, least = torch.where(error < least, ranges, best), torch.minimum(error, least)
        return cast(Tensor, best)

    def _spread(self, stored: tuple[AnalogTensor, ...], curvature: Sequence[Tensor]) -> tuple[AnalogTensor, ...]:
        """Cells of all members by water filling within ``cells`` times the number of stored weights."""
        damages, sizes = [], []
        for part, diagonal in zip(stored, curvature, strict=True):
            harm = 0.5 * part.variance().double() * diagonal.double().cpu().reshape(part.member.part_shape)
            singles = harm.reshape(part.codes.shape)[part.survivors] * self.copies
            starts = np.arange(0, singles.numel(), self.block)
            damages.append(np.add.reduceat(singles.numpy(), starts))
            sizes.append(np.minimum(self.block, singles.numel() - starts))
        every = np.concatenate(sizes)
        budget = math.floor(self.cells * int(every.sum()) + 1e-9)
        cells = np.split(
            water_filling(np.concatenate(damages), every, budget, MOST_CELLS), np.cumsum([s.size for s in sizes])[:-1]
        )
        return tuple(
            part._with(copies=torch.from_numpy(found), block=int(self.block))
            for part, found in zip(stored, cells, strict=True)
        )

    def read(self, group: Group, reader: Reader) -> AnalogTensors:
        return AnalogTensors(tuple(AnalogTensor.read(member, self, reader) for member in group.members))

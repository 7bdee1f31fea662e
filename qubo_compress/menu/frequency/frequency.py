"""Convolution kernels stored as quantized cosine coefficients: low bands only, or the largest ones.

Source: Liu, Xu, Peng, Xiong, "Frequency-Domain Dynamic Pruning for Convolutional Neural Networks", NeurIPS 2018.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.families import offer
from qubo_compress.menu.frequency.bands import Spectrum, band_mask, kernel_bands
from qubo_compress.menu.operator import Operator, operators
from qubo_compress.menu.prune import check_sparsity, survivor_count
from qubo_compress.menu.quantize import QuantizedTensor, fit_scale, round_to_codes
from qubo_compress.menu.storage.parts import StoredPart, StoredParts, as_member
from qubo_compress.menu.storage.portable import Product, ScaledCodes
from qubo_compress.menu.storage.stored import Grid
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.network.groups import Group, Member

Scales = Literal["fewest", "filter", "frequency"]

SMALLEST_KERNEL = 3


@dataclass(frozen=True)
class CoefficientGrid:
    """How the coefficients of one member become a matrix of codes.

    Attributes:
        member: what is stored.
        spectrum: the frequencies that are kept.
        slope: doublings of the step from one band to the next.
        by_frequency: whether a row of the matrix, which has a float16 scale of its own, is a frequency or a filter.
    """

    member: Member
    spectrum: Spectrum
    slope: float
    by_frequency: bool

    @property
    def steps(self) -> Tensor:
        """(frequencies,) float64 steps relative to that of the lowest band."""
        return torch.from_numpy(2.0 ** (self.slope * self.spectrum.band))

    @property
    def stored(self) -> Member:
        """The matrix of codes, as a member."""
        kernels = self.member.numel // self.spectrum.basis.shape[1]
        rows = self.spectrum.frequencies if self.by_frequency else self.member.part_shape[0]
        shape = (rows, kernels * self.spectrum.frequencies // rows)
        return Member("coefficients", shape, torch.float32)

    def matrix(self, table: Tensor) -> Tensor:
        """(rows, columns) of a (kernels, frequencies) table."""
        return (table.T if self.by_frequency else table).reshape(self.stored.shape)

    def table(self, matrix: Tensor) -> Tensor:
        """Inverse of :meth:`matrix`."""
        count = self.spectrum.frequencies
        return matrix.reshape(count, -1).T if self.by_frequency else matrix.reshape(-1, count)

    def scaled(self, coefficients: Tensor) -> Tensor:
        """(rows, columns) float32 matrix whose grid has one step per row."""
        return self.matrix(coefficients.to("cpu", torch.float64) / self.steps).float()


@dataclass(frozen=True, eq=False)
class FrequencyTensor(StoredPart):
    """Codes of the coefficients of one member."""

    grid: CoefficientGrid
    codes: QuantizedTensor

    def coefficients(self) -> Tensor:
        """(kernels, frequencies) float64 that are stored."""
        return self.grid.table(self.codes.codes.double() * self.codes.scale.double()) * self.grid.steps

    def value(self) -> Tensor:
        """The kernels. They are added up in float64, so that every machine rounds to the same float32."""
        return as_member(self.grid.spectrum.synthesise(self.coefficients()).float(), self.grid.member)

    def portable(self) -> Product:
        """Codes, a kernel in a row, times cosines, which carry the slope, and the steps if those are by frequency."""
        grid, codes = self.grid, self.codes
        basis = grid.spectrum.basis.double() * grid.steps[:, None]
        table = grid.table(codes.codes).contiguous()
        if grid.by_frequency:
            left, basis = ScaledCodes(table, torch.ones(1)), basis * codes.scale.double()
        else:
            left = ScaledCodes(codes.codes, codes.scale.float().reshape(-1))
        return Product(left, basis.float(), grid.member.part_shape)

    def write(self, writer: Writer) -> None:
        self.codes.write(writer)

    def grids(self) -> tuple[Grid, ...]:
        return (self.codes,)

    def with_grids(self, grids: Iterator[Any]) -> Self:
        return replace(self, codes=next(grids))

    def project(self, value: Tensor, refit: bool) -> FrequencyTensor:
        """Nearest codes of the coefficients of other kernels."""
        return self.quantized(self.moved(value), refit)

    def moved(self, value: Tensor) -> Tensor:
        """(kernels, frequencies) float64 coefficients of other kernels.

        Only the difference to what is stored is transformed: kernels that were rounded to their dtype give the
        stored coefficients back.
        """
        difference = value.detach().to("cpu", torch.float64) - self.value().double()
        return self.coefficients() + self.grid.spectrum.analyse(difference)

    def quantized(self, coefficients: Tensor, refit: bool) -> FrequencyTensor:
        """Nearest codes of other coefficients on the same mask."""
        return FrequencyTensor(self.grid, self.codes.project(self.grid.scaled(coefficients), refit))

    def survivors(self) -> Tensor | None:
        """(kernels, frequencies) mask, or None."""
        return None if self.codes.mask is None else self.grid.table(self.codes.mask)

    def remasked(self, mask: Tensor, coefficients: Tensor) -> FrequencyTensor:
        """Nearest codes of other coefficients on another mask."""
        moved = QuantizedTensor(
            self.codes.member, self.codes.bits, self.codes.scale, self.codes.codes, self.grid.matrix(mask.cpu())
        )
        return FrequencyTensor(self.grid, moved).quantized(coefficients, refit=True)

    def assembled(self, coefficients: Tensor) -> Tensor:
        """The kernels of other coefficients, differentiable."""
        return self.grid.spectrum.synthesise(coefficients).reshape(self.grid.member.part_shape)


@dataclass(frozen=True, eq=False)
class FrequencyTensors(StoredParts[FrequencyTensor]):
    """All members of a group, in the frequency domain."""

    @property
    def nonzeros(self) -> int:
        """Weights of kernels that are not all zero: kernels are rebuilt before they multiply."""
        return sum(
            int((part.grid.table(part.codes.codes) != 0).any(1).sum()) * part.grid.spectrum.basis.shape[1]
            for part in self.parts
        )

    @property
    def weight_bits(self) -> int:
        return self.parts[0].codes.bits

    def parameters(self) -> tuple[Tensor, ...]:
        """(kernels, frequencies) coefficients per member; pruned ones are zero."""
        return tuple(part.coefficients().float() for part in self.parts)

    def assemble(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(part.assembled(numbers) for part, numbers in zip(self.parts, parameters, strict=True))

    def store(self, parameters: Sequence[Tensor], refit: bool = False) -> FrequencyTensors:
        return FrequencyTensors(tuple(p.quantized(n, refit) for p, n in zip(self.parts, parameters, strict=True)))

    def movable_masks(self) -> tuple[Tensor, ...]:
        return tuple(mask for part in self.parts if (mask := part.survivors()) is not None)

    def numbers(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(kernels, frequencies) coefficients of kernels, those of pruned ones too."""
        return tuple(p.grid.spectrum.analyse(v).float() for p, v in zip(self.parts, values, strict=True))

    def remasked(self, masks: Sequence[Tensor], numbers: Sequence[Tensor]) -> FrequencyTensors:
        """Nearest codes under other masks, member by member."""
        return FrequencyTensors(tuple(p.remasked(m, n) for p, m, n in zip(self.parts, masks, numbers, strict=True)))


@operators.register
@dataclass(frozen=True, kw_only=True)
class Frequency(Operator):
    """Quantized coefficients of the kernels' orthonormal cosine transform, for kernels of 3 or more along an axis.

    A kernel of shape (k_1, ..., k_n) is stored as the coefficients c_u of its n-dimensional DCT-II, u_i < k_i.
    The transform keeps the norm: errors of coefficients are errors of weights. Band b holds the frequencies with
    u_1 + ... + u_n = b. With ``bands`` only low bands are stored, the same ones in every kernel, and no index;
    with ``sparsity`` the coefficients that survive are marked in a mask. Kernels are rebuilt before they multiply.

    Args:
        bands: how many bands are kept, or None for all.
        sparsity: share of the kept bands' coefficients that is set to zero, per tensor.
        bits: 2 to 16 per code; as for ``quantize``, pruned two-bit codes are signs.
        slope: doublings of the quantization step from one band to the next, as in JPEG: the error that minimises
            the fit counts 4^-slope times as much in the next band.
        scales: one float16 scale per output ``"filter"``, or per ``"frequency"`` of the whole tensor; ``"fewest"``:
            whichever are fewer. On trained kernels scales per frequency also have the smaller error.
        beta: (lambda, omega) of :func:`~qubo_compress.menu.frequency.bands.band_rates`, or None for one threshold for
            all bands.

    Raises:
        InvalidMenu: for values out of range.

    Example:
        >>> group = Group("w", "weight", (Member("w", (1, 2, 3, 3), torch.float32),), "Conv2d")
        >>> smooth = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
        >>> packed = Frequency(bands=1, bits=2).encode(group, [smooth])
        >>> round(float((packed.tensors()[0] - smooth).norm()), 6), packed.nbytes
        (0.0, 3)
    """

    operator_name: ClassVar[str] = "frequency"
    bands: int | None = None
    sparsity: float = 0.0
    bits: int
    slope: float = 0.0
    scales: Scales = "fewest"
    beta: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 2 <= self.bits <= 16):
            raise InvalidMenu(f"bits must be a whole number from 2 to 16; got {self.bits!r}")
        if not (self.bands is None or (isinstance(self.bands, int) and self.bands >= 1)):
            raise InvalidMenu(f"bands must be a whole number of at least 1, or None for all; got {self.bands!r}")
        check_sparsity(self.sparsity)
        if not (isinstance(self.slope, (int, float)) and abs(self.slope) <= 4):
            raise InvalidMenu(f"slope is in doublings per band, from -4 to 4; got {self.slope!r}")
        if self.scales not in ("fewest", "filter", "frequency"):
            raise InvalidMenu(f"scales must be 'fewest', 'filter' or 'frequency'; got {self.scales!r}")
        object.__setattr__(self, "sparsity", float(self.sparsity))
        object.__setattr__(self, "slope", float(self.slope))
        if self.beta is not None:
            object.__setattr__(self, "beta", _checked_beta(self.beta, self.sparsity))

    @classmethod
    def samples(cls) -> tuple[Frequency, ...]:
        return (
            cls(bands=2, bits=4),
            cls(bands=3, bits=3, slope=0.5, scales="frequency"),
            cls(sparsity=0.5, bits=4, beta=(2.0, 1.0)),
            cls(sparsity=0.7, bits=2, scales="filter"),
            cls(bands=3, sparsity=0.3, bits=12, slope=-0.25, scales="frequency"),
        )

    @classmethod
    def faithful(cls) -> tuple[Frequency, float] | None:
        return cls(bits=16), 1e-3

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Suits convolutions with kernels of three or more along an axis."""
        if group.kind != "weight":
            return f"{group.kind} vectors have no kernels"
        for member in group.members:
            kernel = member.shape[2:]
            if not kernel:
                return f"{member.name} is a matrix: it has no kernels with several frequencies"
            size = " x ".join(map(str, kernel))
            if max(kernel) < SMALLEST_KERNEL:
                return f"kernels of {size} have no band to drop: one axis must have {SMALLEST_KERNEL} values or more"
            bands = int(kernel_bands(kernel).max()) + 1
            if self.bands is not None and self.bands > bands:
                return f"kernels of {size} have {bands} bands only"
        return None

    def encode(self, group: Group, parts: Sequence[Tensor]) -> FrequencyTensors:
        return FrequencyTensors(tuple(self._one(m, p) for m, p in zip(group.members, parts, strict=True)))

    def _grid(self, member: Member) -> CoefficientGrid:
        spectrum = Spectrum(tuple(member.shape[2:]), self.bands)
        fewer = spectrum.frequencies <= member.part_shape[0]
        by_frequency = fewer if self.scales == "fewest" else self.scales == "frequency"
        return CoefficientGrid(member, spectrum, self.slope, by_frequency)

    def _one(self, member: Member, part: Tensor) -> FrequencyTensor:
        grid = self._grid(member)
        coefficients = grid.spectrum.analyse(part)
        values, mask = grid.scaled(coefficients), None
        if self.sparsity > 0:
            survivors = survivor_count(coefficients.numel(), self.sparsity)
            mask = grid.matrix(band_mask(coefficients.abs(), grid.spectrum.band, survivors, self.beta))
            values = values * mask
        scale = fit_scale(values, mask, self.bits)
        codes = round_to_codes(values, scale, self.bits, signs_only=mask is not None and self.bits == 2)
        if mask is not None:
            codes = codes * mask
        return FrequencyTensor(grid, QuantizedTensor(grid.stored, self.bits, scale, codes.to(torch.int16), mask))

    def read(self, group: Group, reader: Reader) -> FrequencyTensors:
        grids = [self._grid(member) for member in group.members]
        sparse = self.sparsity > 0
        return FrequencyTensors(
            tuple(FrequencyTensor(g, QuantizedTensor.read(g.stored, self.bits, sparse, reader)) for g in grids)
        )


def _checked_beta(beta: tuple[float, float], sparsity: float) -> tuple[float, float]:
    valid = isinstance(beta, tuple) and len(beta) == 2
    if not valid or not all(isinstance(b, (int, float)) and math.isfinite(b) and 0 < b <= 20 for b in beta):
        raise InvalidMenu(f"beta must be two positive numbers up to 20, (lambda, omega); got {beta!r}")
    if sparsity == 0:
        raise InvalidMenu(f"beta={beta!r} shapes the rates of pruning: give a sparsity above 0, or leave beta out")
    return float(beta[0]), float(beta[1])


offer("frequency", *(f"frequency(bands={bands},bits={bits})" for bands in (3, 4) for bits in (3, 4)))
offer("frequency", *(f"frequency(sparsity={share},bits={bits})" for share in (0.5, 0.75) for bits in (3, 4)))

"""Symmetric quantization with a float16 scale per output row, alone or after pruning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.families import offer
from qubo_compress.menu.operator import Operator, operators, values_of
from qubo_compress.menu.prune import check_sparsity, magnitude_mask
from qubo_compress.menu.storage.packing import mask_size
from qubo_compress.menu.storage.parts import StoredPart, StoredParts, as_member
from qubo_compress.menu.storage.portable import ScaledCodes
from qubo_compress.menu.storage.row_kernels import LARGEST_SCALE, SMALLEST_SCALE, fit_rows, round_rows
from qubo_compress.menu.storage.stored import Grid
from qubo_compress.menu.storage.streams import Reader, Writer, code_bytes
from qubo_compress.network.groups import Group, Member

EVERY = np.ones((0, 0), dtype=bool)
"""Replaces the mask if nothing is pruned."""

SIGNS = (0, 1)
"""The codes of the two signs in the file."""


def highest_level(bits: int) -> int:
    """2^(bits - 1) - 1: codes range from minus this to plus this."""
    return (1 << (bits - 1)) - 1


def code_dtype(bits: int) -> torch.dtype:
    """The narrowest dtype that holds codes of this many bits."""
    return torch.int8 if bits <= 8 else torch.int16


def half_scale(scale: Tensor) -> Tensor:
    """Scales in their stored form: float16, never zero or infinite."""
    return scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float16)


def round_to_codes(values: Tensor, scale: Tensor, bits: int, signs_only: bool) -> Tensor:
    """Nearest codes of (rows, columns) values on the grid of (rows, 1) scales."""
    if signs_only:
        return torch.where(values < 0, -1.0, 1.0)
    level = highest_level(bits)
    return torch.round(values / scale.float()).clamp_(-level, level)


def least_squares_scale(values: Tensor, codes: Tensor, fallback: Tensor) -> Tensor:
    """(rows, 1) scale that fits values best for given codes."""
    square = (codes * codes).sum(1, keepdim=True)
    fitted = (values * codes).sum(1, keepdim=True) / square.clamp(min=1.0)
    return torch.where((square > 0) & (fitted > 0), fitted, fallback)


def fit_scale(values: Tensor, mask: Tensor | None, bits: int) -> Tensor:
    """(rows, 1) float16 scales of least squared error over the surviving weights.

    A grid of clipping ranges, then alternating least squares between codes and scale.

    Args:
        values: (rows, columns) float32, zero where pruned.
        mask: (rows, columns) survivors, or None.
        bits: bits per code.
    """
    scales = np.empty(len(values), dtype=np.float32)
    fit_rows(*_arrays(values, mask), float(highest_level(bits)), mask is not None and bits == 2, scales)
    return torch.from_numpy(scales).reshape(-1, 1).to(torch.float16)


def nearest_codes(values: Tensor, mask: Tensor | None, scale: Tensor, bits: int) -> Tensor:
    """(rows, columns) nearest codes in the narrowest dtype that holds them, zero where pruned."""
    codes = torch.empty(values.shape, dtype=code_dtype(bits))
    steps = scale.float().reshape(-1).numpy()
    signs_only = mask is not None and bits == 2
    round_rows(*_arrays(values, mask), steps, float(highest_level(bits)), signs_only, codes.numpy())
    return codes


def _arrays(values: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    kept = EVERY if mask is None else mask.to("cpu", torch.bool).contiguous().numpy()
    return values.detach().to("cpu", torch.float32).contiguous().numpy(), kept


@dataclass(frozen=True, eq=False)
class QuantizedTensor(StoredPart, Grid):
    """Codes and scales of one member.

    Attributes:
        member: what is stored.
        bits: bits per code.
        scale: (rows, 1) float16.
        codes: (rows, columns) int8 or int16, zero where pruned.
        mask: (rows, columns) survivors, or None if nothing is pruned.
    """

    member: Member
    bits: int
    scale: Tensor
    codes: Tensor
    mask: Tensor | None

    def value(self) -> Tensor:
        """The decoded weights, clamped to the range of their dtype."""
        return as_member(self.codes.float() * self.scale.float(), self.member)

    def portable(self) -> ScaledCodes:
        """All codes, pruned ones as zeros; vectors have one step."""
        return ScaledCodes(self.codes.reshape(self.member.part_shape), self.scale.float().reshape(-1))

    def stored_codes(self) -> Tensor:
        """The codes that are written: only the survivors'."""
        if self.mask is None:
            return self.codes.reshape(-1)
        return torch.from_numpy(self.codes.numpy()[self.mask.numpy()])  # several times faster than torch's own

    def write(self, writer: Writer) -> None:
        writer.raw(self.scale.numpy().tobytes())
        if self.mask is not None:
            writer.mask(self.mask.reshape(-1).numpy())
        low, high = code_range(self.bits, self.mask is not None)
        codes = self.stored_codes().numpy()
        # If zeros are masked out, two bits hold only a sign: one bit is enough.
        writer.codes((codes > 0).view(np.int8) if (low, high) == SIGNS else codes, low, high)

    @property
    def nbytes(self) -> int:
        """Bytes in plain fields, counted without building them."""
        size = 2 * self.scale.numel()
        count = self.codes.numel()
        if self.mask is not None:
            survivors = self.mask.reshape(-1).numpy()
            count = int(np.count_nonzero(survivors))
            size += mask_size(survivors)
        return size + code_bytes(count, *code_range(self.bits, self.mask is not None))

    @classmethod
    def read(cls, member: Member, bits: int, sparse: bool, reader: Reader) -> QuantizedTensor:
        """Inverse of :meth:`write`."""
        shape = member.part_shape
        rows = shape[0] if len(shape) > 1 else 1
        scale = torch.from_numpy(np.frombuffer(reader.raw(2 * rows), dtype=np.float16).copy()).reshape(rows, 1)
        mask = None
        count = member.numel
        if sparse:
            survivors = reader.mask(member.numel)
            mask = torch.from_numpy(survivors).reshape(rows, -1)
            count = int(survivors.sum())
        low, high = code_range(bits, sparse)
        found = reader.codes(count, low, high)
        stored = torch.from_numpy(2 * found - 1 if (low, high) == SIGNS else found).to(code_dtype(bits))
        if mask is None:
            codes = stored.reshape(rows, -1)
        else:
            codes = torch.zeros(mask.shape, dtype=stored.dtype)
            codes[mask] = stored
        return cls(member, bits, scale, codes, mask)

    def project(self, value: Tensor, refit: bool) -> QuantizedTensor:
        """Nearest codes on the same mask; scales move only with ``refit``."""
        values = values_of(value)
        signs_only = self.mask is not None and self.bits == 2
        keep = torch.ones_like(values) if self.mask is None else self.mask.float()
        values = values * keep
        scale = self.scale
        codes = round_to_codes(values, scale, self.bits, signs_only) * keep
        if refit:
            scale = half_scale(least_squares_scale(values, codes, scale.float()))
            codes = round_to_codes(values, scale, self.bits, signs_only) * keep
        return QuantizedTensor(self.member, self.bits, scale, codes.to(code_dtype(self.bits)), self.mask)

    def grids(self) -> tuple[Grid, ...]:
        return (self,)

    def with_grids(self, grids: Iterator[Any]) -> Self:
        found: Self = next(grids)
        return found

    def steps(self) -> Tensor:
        return self.scale.float()

    def with_codes(self, codes: Tensor) -> QuantizedTensor:
        """Other codes on the same grid and mask."""
        return replace(self, codes=codes)

    def with_steps(self, steps: Tensor) -> QuantizedTensor:
        return replace(self, scale=half_scale(steps))


def code_range(bits: int, sparse: bool) -> tuple[int, int]:
    """Smallest and largest code that is written."""
    if sparse and bits == 2:
        return SIGNS
    return -highest_level(bits), highest_level(bits)


@dataclass(frozen=True, eq=False)
class QuantizedTensors(StoredParts[QuantizedTensor]):
    """All members of a group as codes and scales."""

    @property
    def nbytes(self) -> int:
        """Bytes of all members in plain fields."""
        return sum(part.nbytes for part in self.parts)

    @property
    def nonzeros(self) -> int:
        return sum(int(np.count_nonzero(part.codes.numpy())) for part in self.parts)

    @property
    def weight_bits(self) -> int:
        return self.parts[0].bits

    def movable_masks(self) -> tuple[Tensor, ...]:
        """Survivors per member in its own shape."""
        return tuple(p.mask.reshape(p.member.part_shape) for p in self.parts if p.mask is not None)

    def remasked(self, masks: Sequence[Tensor], numbers: Sequence[Tensor]) -> QuantizedTensors:
        """Nearest codes under other masks, member by member."""
        moved = [
            replace(part, mask=mask.cpu().reshape(part.codes.shape))
            for part, mask in zip(self.parts, masks, strict=True)
        ]
        return QuantizedTensors(tuple(moved)).project(numbers, refit=True)


def scales_of(fit: bytes, rows: Sequence[int]) -> list[Tensor]:
    """(rows, 1) float16 scales of every member, concatenated as bytes."""
    flat = torch.from_numpy(np.frombuffer(fit, dtype=np.float16).copy())
    return [scale.reshape(-1, 1) for scale in torch.split(flat, list(rows))]


@operators.register
@dataclass(frozen=True)
class Quantize(Operator):
    """Symmetric codes with one float16 scale per output row, optionally after magnitude pruning.

    Levels are -(2^(bits-1) - 1) ... 2^(bits-1) - 1 times the scale; two bits are ternary and take 1.6 bits
    each, or one bit (the sign) for the survivors of pruning. The clipping range minimises the squared
    error of each row.

    Args:
        bits: 2 to 16.
        sparsity: share of weights set to zero first, per tensor.

    Raises:
        InvalidMenu: for values out of range.

    Example:
        >>> group = Group("w", "weight", (Member("w", (2, 4), torch.float32),), "Linear")
        >>> weight = torch.tensor([[1.0, -1.0, 0.0, 1.0], [2.0, 0.0, -2.0, 2.0]])
        >>> packed = Quantize(bits=2).encode(group, [weight])
        >>> torch.equal(packed.tensors()[0], weight), packed.nbytes, len(packed.to_bytes())
        (True, 6, 6)
    """

    operator_name: ClassVar[str] = "quantize"
    whole_numbers: ClassVar[bool] = True
    quick: ClassVar[bool] = True
    bits: int
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 2 <= self.bits <= 16):
            raise InvalidMenu(f"bits must be a whole number from 2 to 16; got {self.bits!r}")
        check_sparsity(self.sparsity)
        object.__setattr__(self, "sparsity", float(self.sparsity))

    @classmethod
    def samples(cls) -> tuple[Quantize, ...]:
        return tuple(cls(*s) for s in ((2,), (2, 0.5), (3, 0.3), (4,), (8, 0.9), (16,)))

    @classmethod
    def faithful(cls) -> tuple[Quantize, float] | None:
        return cls(16), 1e-3

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        return None if group.kind == "weight" else f"{group.kind} vectors are cast or folded, not quantized by rows"

    def encode(self, group: Group, parts: Sequence[Tensor]) -> QuantizedTensors:
        return QuantizedTensors(tuple(self._one(m, p) for m, p in zip(group.members, parts, strict=True)))

    def fit(self, stored: QuantizedTensors) -> bytes:
        return b"".join(part.scale.numpy().tobytes() for part in stored.parts)

    def encode_at(self, group: Group, parts: Sequence[Tensor], fit: bytes) -> QuantizedTensors:
        scales = scales_of(fit, [values_of(part).shape[0] for part in parts])
        found = zip(group.members, parts, scales, strict=True)
        return QuantizedTensors(tuple(self._one(m, p, s) for m, p, s in found))

    def _one(self, member: Member, part: Tensor, scale: Tensor | None = None) -> QuantizedTensor:
        values = values_of(part)
        mask = magnitude_mask(values, self.sparsity).reshape(values.shape) if self.sparsity > 0 else None
        return self.stored(member, values, mask, scale)

    def stored(
        self, member: Member, values: Tensor, mask: Tensor | None, scale: Tensor | None = None
    ) -> QuantizedTensor:
        """One member's codes under a mask.

        Args:
            member: what is stored.
            values: (rows, columns) float32.
            mask: (rows, columns) survivors, or None.
            scale: (rows, 1) float16, if already fitted.
        """
        if scale is None:
            scale = fit_scale(values, mask, self.bits)
        return QuantizedTensor(member, self.bits, scale, nearest_codes(values, mask, scale, self.bits), mask)

    def read(self, group: Group, reader: Reader) -> QuantizedTensors:
        sparse = self.sparsity > 0
        return QuantizedTensors(tuple(QuantizedTensor.read(m, self.bits, sparse, reader) for m in group.members))


offer("quantize", *(f"quantize(bits={bits})" for bits in (2, 3, 4, 6, 8)))
offer("prune", *(f"quantize(bits={bits},sparsity={share})" for bits in (2, 3, 4, 6, 8) for share in (0.5, 0.75)))

"""Vectors at a lower precision: biases, and the scale and bias of normalisations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.quantize import fit_scale, half_scale, round_to_codes
from qubo_compress.menu.storage.portable import Halves, Portable, ScaledCodes
from qubo_compress.menu.storage.row_kernels import LARGEST_SCALE
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.network.tensor_bytes import from_raw_bytes, raw_bytes

VECTOR_BITS = (8, 16, 32)


def check_vector_bits(bits: int) -> None:
    """Raise :class:`InvalidMenu` unless bits is one of 8, 16 and 32."""
    if bits not in VECTOR_BITS:
        raise InvalidMenu(f"vectors are stored in 8, 16 or 32 bits; got {bits!r}")


@dataclass(frozen=True, eq=False)
class StoredVector:
    """A float32 vector as float32, float16 or int8 codes with one float16 scale.

    Attributes:
        bits: 8, 16 or 32.
        values: float32, float16, or int8 codes.
        scale: (1, 1) float16 for 8 bits, else None.
    """

    bits: int
    values: Tensor
    scale: Tensor | None = None

    @classmethod
    def of(cls, vector: Tensor, bits: int, scale: Tensor | None = None) -> StoredVector:
        """Store a vector; ``scale`` keeps an earlier grid."""
        flat = vector.detach().cpu().float().reshape(1, -1)
        if bits == 32:
            return cls(bits, flat.reshape(-1))
        if bits == 16:
            return cls(bits, flat.reshape(-1).clamp(-LARGEST_SCALE, LARGEST_SCALE).to(torch.float16))
        scale = fit_scale(flat, None, bits) if scale is None else half_scale(scale.float())
        return cls(bits, round_to_codes(flat, scale, bits, signs_only=False).reshape(-1).to(torch.int8), scale)

    def value(self) -> Tensor:
        """The float32 vector that is stored."""
        return self.values.float() if self.scale is None else self.values.float() * self.scale.float().reshape(())

    def portable(self, shape: tuple[int, ...]) -> Portable | None:
        """The codes or the float16 numbers in a shape; None for float32."""
        if self.scale is not None:
            return ScaledCodes(self.values.reshape(shape), self.scale.float().reshape(1))
        return Halves(self.values.reshape(shape)) if self.bits == 16 else None

    def write(self, writer: Writer) -> None:
        """Scale, then values."""
        if self.scale is not None:
            writer.raw(self.scale.numpy().tobytes())
        writer.raw(raw_bytes(self.values))

    @classmethod
    def read(cls, count: int, bits: int, reader: Reader) -> StoredVector:
        """Inverse of :meth:`write`."""
        scale = None
        if bits == 8:
            scale = torch.from_numpy(np.frombuffer(reader.raw(2), dtype=np.float16).copy()).reshape(1, 1)
        dtype = {8: torch.int8, 16: torch.float16, 32: torch.float32}[bits]
        return cls(bits, from_raw_bytes(reader.raw(count * dtype.itemsize), (count,), dtype), scale)


def fits_half(vector: Tensor) -> bool:
    """Whether every value is within the range of float16."""
    return bool(vector.abs().max() <= torch.finfo(torch.float16).max)

"""Biases, and normalisations without running statistics, at a lower precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qubo_compress.menu.families import offer
from qubo_compress.menu.operator import Operator, operators
from qubo_compress.menu.storage.portable import Portable
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.menu.storage.vectors import StoredVector, check_vector_bits, fits_half
from qubo_compress.network.groups import Group, Member


@dataclass(frozen=True, eq=False)
class CastTensors(Stored):
    """One stored vector per member."""

    members: tuple[Member, ...]
    vectors: tuple[StoredVector, ...]

    @property
    def nonzeros(self) -> int:
        return sum(member.numel for member in self.members)

    @property
    def weight_bits(self) -> int:
        return self.vectors[0].bits

    def write(self, writer: Writer) -> None:
        for vector in self.vectors:
            vector.write(writer)

    def tensors(self) -> tuple[Tensor, ...]:
        """The vectors in the members' dtype and shape."""
        pairs = zip(self.members, self.vectors, strict=True)
        return tuple(vector.value().to(member.dtype).reshape(member.part_shape) for member, vector in pairs)

    def portable(self, member: int) -> Portable | None:
        return self.vectors[member].portable(self.members[member].part_shape)

    def project(self, values: Sequence[Tensor], refit: bool = False) -> CastTensors:
        """Nearest values of the same precision; an 8-bit scale moves only with ``refit``."""
        pairs = zip(values, self.vectors, strict=True)
        return CastTensors(
            self.members, tuple(StoredVector.of(new, old.bits, None if refit else old.scale) for new, old in pairs)
        )


@operators.register
@dataclass(frozen=True)
class Cast(Operator):
    """Store vectors as float32, float16, or 8-bit codes with one scale per vector.

    Args:
        bits: 32, 16 or 8.
    """

    operator_name: ClassVar[str] = "cast"
    quick: ClassVar[bool] = True
    codable: ClassVar[bool] = False
    bits: int

    def __post_init__(self) -> None:
        check_vector_bits(self.bits)

    @classmethod
    def samples(cls) -> tuple[Cast, ...]:
        return cls(8), cls(16), cls(32)

    @classmethod
    def faithful(cls) -> tuple[Cast, float] | None:
        return cls(16), 1e-3

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Suits biases, and normalisations without running statistics."""
        if group.kind == "weight" or group.epsilon is not None:
            return "only biases and normalisations without statistics are cast"
        if any(8 * member.dtype.itemsize <= self.bits for member in group.members):
            return f"its values have {self.bits} bits or fewer already"
        if self.bits == 16 and not all(fits_half(part) for part in parts):
            return "its values exceed the range of float16"
        return None

    def encode(self, group: Group, parts: Sequence[Tensor]) -> CastTensors:
        return CastTensors(group.members, tuple(StoredVector.of(part, self.bits) for part in parts))

    def read(self, group: Group, reader: Reader) -> CastTensors:
        """Read the vectors one after the other."""
        return CastTensors(group.members, tuple(StoredVector.read(m.numel, self.bits, reader) for m in group.members))


offer("vectors", "cast(bits=16)", "cast(bits=8)")

"""The choice that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qubo_compress.menu.operator import Operator, operators
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.network.groups import Group
from qubo_compress.network.tensor_bytes import from_raw_bytes, raw_bytes


@dataclass(frozen=True, eq=False)
class KeptTensors(Stored):
    """Unchanged tensors, stored in their own dtype."""

    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.values)

    @property
    def nonzeros(self) -> int:
        return sum(value.numel() for value in self.values)

    @property
    def weight_bits(self) -> int:
        """Bits of the widest floating-point dtype: counters do not multiply."""
        floating = [value for value in self.values if value.is_floating_point()]
        return max(8 * value.element_size() for value in floating or self.values)

    def write(self, writer: Writer) -> None:
        for value in self.values:
            writer.raw(raw_bytes(value))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.values

    def project(self, values: Sequence[Tensor], refit: bool = False) -> KeptTensors:
        return KeptTensors(
            tuple(
                new.detach().to("cpu", old.dtype).reshape(old.shape)
                for new, old in zip(values, self.values, strict=True)
            )
        )


@operators.register
@dataclass(frozen=True)
class Keep(Operator):
    """Store a group unchanged: zero displacement, full size. Always on the menu."""

    operator_name: ClassVar[str] = "keep"
    quick: ClassVar[bool] = True
    codable: ClassVar[bool] = False

    @classmethod
    def samples(cls) -> tuple[Keep, ...]:
        return (cls(),)

    @classmethod
    def faithful(cls) -> tuple[Keep, float] | None:
        return cls(), 0.0

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        return None

    def encode(self, group: Group, parts: Sequence[Tensor]) -> KeptTensors:
        return KeptTensors(tuple(part.detach().cpu().clone() for part in parts))

    def read(self, group: Group, reader: Reader) -> KeptTensors:
        members = group.members
        return KeptTensors(tuple(from_raw_bytes(reader.raw(m.nbytes), m.part_shape, m.dtype) for m in members))

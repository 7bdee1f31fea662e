"""The choice that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qubo_compress.menu.operator import Quick, operators
from qubo_compress.network.groups import Group, Member
from qubo_compress.network.tensor_bytes import from_raw_bytes, raw_bytes


@dataclass(frozen=True, eq=False)
class KeptTensors:
    """Tensors stored as they are."""

    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes as they are in memory."""
        return sum(value.numel() * value.element_size() for value in self.values)

    @property
    def nonzeros(self) -> int:
        """All values count."""
        return sum(value.numel() for value in self.values)

    @property
    def weight_bits(self) -> int:
        """Bits of the widest floating-point dtype: counters do not multiply."""
        floating = [value for value in self.values if value.is_floating_point()]
        return max(8 * value.element_size() for value in floating or self.values)

    def to_bytes(self) -> bytes:
        """Members one after the other."""
        return b"".join(raw_bytes(value) for value in self.values)

    def tensors(self) -> tuple[Tensor, ...]:
        """The values themselves."""
        return self.values

    def project(self, values: Sequence[Tensor], refit: bool = False) -> KeptTensors:
        """Any values can be stored."""
        return KeptTensors(
            tuple(
                new.detach().to("cpu", old.dtype).reshape(old.shape)
                for new, old in zip(values, self.values, strict=True)
            )
        )


@operators.register
@dataclass(frozen=True)
class Keep(Quick):
    """Store a group as it is: zero displacement, full size. Always on the menu."""

    operator_name: ClassVar[str] = "keep"

    @classmethod
    def samples(cls) -> tuple[Keep, ...]:
        """Settings that the conformance suite tries."""
        return (cls(),)

    @classmethod
    def faithful(cls) -> tuple[Keep, float] | None:
        """Highest fidelity, and the largest relative displacement that it leaves."""
        return cls(), 0.0

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Suits every group."""
        return None

    def encode(self, group: Group, parts: Sequence[Tensor]) -> KeptTensors:
        """Copy the values."""
        return KeptTensors(tuple(part.detach().cpu().clone() for part in parts))

    def decode(self, group: Group, data: memoryview) -> tuple[KeptTensors, int]:
        """Read the members one after the other."""
        values, used = [], 0
        for member in group.members:
            values.append(self._read(member, data[used : used + member.nbytes]))
            used += member.nbytes
        return KeptTensors(tuple(values)), used

    @staticmethod
    def _read(member: Member, data: memoryview) -> Tensor:
        return from_raw_bytes(data, member.part_shape, member.dtype)

"""All weights zero, in no bytes: a filter that is pruned as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qubo_compress.menu.operator import Operator, operators
from qubo_compress.menu.storage.portable import ScaledCodes
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.network.groups import Group, Member


@dataclass(frozen=True, eq=False)
class ZeroTensors(Stored):
    """Tensors of zeros."""

    members: tuple[Member, ...]

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def nonzeros(self) -> int:
        return 0

    @property
    def weight_bits(self) -> int:
        return 1

    def write(self, writer: Writer) -> None:
        """Write nothing: the file's list of choices says it all."""

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(member.part_shape, dtype=member.dtype) for member in self.members)

    def portable(self, member: int) -> ScaledCodes:
        """Codes that are zero."""
        codes = torch.zeros(self.members[member].part_shape, dtype=torch.int8)
        return ScaledCodes(codes, torch.ones(1))

    def project(self, values: Sequence[Tensor], refit: bool = False) -> ZeroTensors:
        return self


@operators.register
@dataclass(frozen=True)
class Zero(Operator):
    """Set every weight of a group to zero: with ``groups="filter"``, prune a whole filter.

    The group takes no bytes beyond the one that names its choice. Its bias and its normalisation have groups of their
    own and stay, so a pruned filter may still have a constant output. It is in no family of ``qc.Menu.of``: add it by
    name, as in ``qc.Menu(["zero", "quantize(bits=4)"])``.

    Example:
        >>> group = Group("w", "weight", (Member("w", (2, 2), torch.float32),), "Linear")
        >>> packed = Zero().encode(group, [torch.ones(2, 2)])
        >>> packed.tensors()[0].tolist(), packed.to_bytes()
        ([[0.0, 0.0], [0.0, 0.0]], b'')
    """

    operator_name: ClassVar[str] = "zero"
    quick: ClassVar[bool] = True
    codable: ClassVar[bool] = False

    @classmethod
    def samples(cls) -> tuple[Zero, ...]:
        return (cls(),)

    @classmethod
    def faithful(cls) -> None:
        """None: every weight is lost."""

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        return None if group.kind == "weight" else f"{group.kind} vectors are not pruned"

    def encode(self, group: Group, parts: Sequence[Tensor]) -> ZeroTensors:
        return ZeroTensors(group.members)

    def read(self, group: Group, reader: Reader) -> ZeroTensors:
        return ZeroTensors(group.members)

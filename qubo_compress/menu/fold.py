"""Batch normalisations folded into scale and bias, which is exact in eval mode.

    (x - mean) / sqrt(variance + epsilon) * weight + bias  =  x * scale + shift
    scale = weight / sqrt(variance + epsilon),   shift = bias - mean * scale

The module stays: scale and shift become its weight and bias, its mean becomes 0 and its variance 1 - epsilon. Two
vectors are stored instead of four and a counter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qubo_compress.menu.families import offer
from qubo_compress.menu.operator import Operator, operators
from qubo_compress.menu.storage.portable import Portable
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.menu.storage.vectors import StoredVector, check_vector_bits, fits_half
from qubo_compress.network.groups import Group


def attribute(name: str) -> str:
    """The attribute: the last part of a dotted name."""
    return name.rpartition(".")[2]


def scale_and_shift(named: dict[str, Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """Float64 scale and shift of a batch normalisation's four vectors."""
    values = {name: tensor.detach().cpu().double() for name, tensor in named.items()}
    scale = values["weight"] / torch.sqrt(values["running_var"] + epsilon)
    return scale, values["bias"] - values["running_mean"] * scale


@dataclass(frozen=True, eq=False)
class FoldedNormalisation(Stored):
    """Scale and shift of one batch normalisation."""

    group: Group
    scale: StoredVector
    shift: StoredVector

    @property
    def nonzeros(self) -> int:
        return self.scale.values.numel()

    @property
    def weight_bits(self) -> int:
        return self.scale.bits

    def write(self, writer: Writer) -> None:
        self.scale.write(writer)
        self.shift.write(writer)

    def tensors(self) -> tuple[Tensor, ...]:
        """Weight, bias, mean 0, variance 1 - epsilon, counter 0, in the members' order."""
        epsilon = self.group.epsilon or 0.0
        count = self.scale.values.numel()
        named = {
            "weight": self.scale.value(),
            "bias": self.shift.value(),
            "running_mean": torch.zeros(count),
            "running_var": torch.full((count,), 1.0 - epsilon),
            "num_batches_tracked": torch.zeros(()),
        }
        return tuple(named[attribute(m.name)].to(m.dtype).reshape(m.shape) for m in self.group.members)

    def portable(self, member: int) -> Portable | None:
        """Scale and shift as stored; means and variances are numbers."""
        found = self.group.members[member]
        vector = {"weight": self.scale, "bias": self.shift}.get(attribute(found.name))
        return None if vector is None else vector.portable(found.shape)

    def project(self, values: Sequence[Tensor], refit: bool = False) -> FoldedNormalisation:
        """Fold the new values and round them as before."""
        named = {attribute(m.name): v for m, v in zip(self.group.members, values, strict=True)}
        scale, shift = scale_and_shift(named, self.group.epsilon or 0.0)
        return FoldedNormalisation(
            self.group,
            StoredVector.of(scale, self.scale.bits, None if refit else self.scale.scale),
            StoredVector.of(shift, self.shift.bits, None if refit else self.shift.scale),
        )


@operators.register
@dataclass(frozen=True)
class Fold(Operator):
    """Store a batch normalisation as scale and shift.

    Args:
        bits: 32, 16 or 8 bits per value.
    """

    operator_name: ClassVar[str] = "fold"
    quick: ClassVar[bool] = True
    codable: ClassVar[bool] = False
    bits: int

    def __post_init__(self) -> None:
        check_vector_bits(self.bits)

    @classmethod
    def samples(cls) -> tuple[Fold, ...]:
        return cls(8), cls(16), cls(32)

    @classmethod
    def faithful(cls) -> None:
        """None: a folded normalisation is the same function in other values, so its displacement says nothing."""

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Suits batch normalisations with weight, bias and statistics."""
        if group.kind != "normalisation" or group.epsilon is None:
            return "only batch normalisations with statistics are folded"
        named = {attribute(m.name): p for m, p in zip(group.members, parts, strict=True)}
        if not {"weight", "bias", "running_mean", "running_var"} <= set(named):
            return "it has no weight and bias to fold into"
        strange = set(named) - {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
        if strange:
            return f"it holds {', '.join(sorted(strange))}, which folding does not know"
        if any(m.dtype.is_floating_point and 8 * m.dtype.itemsize < self.bits for m in group.members):
            return f"its values have fewer than {self.bits} bits already"
        if self.bits == 16 and not all(fits_half(v) for v in scale_and_shift(named, group.epsilon)):
            return "its folded values exceed the range of float16"
        return None

    def encode(self, group: Group, parts: Sequence[Tensor]) -> FoldedNormalisation:
        named = {attribute(m.name): p for m, p in zip(group.members, parts, strict=True)}
        scale, shift = scale_and_shift(named, group.epsilon or 0.0)
        return FoldedNormalisation(group, StoredVector.of(scale, self.bits), StoredVector.of(shift, self.bits))

    def reference(self, group: Group, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The fold without rounding, in eval mode the same function as the original."""
        return Fold(32).encode(group, parts).tensors()

    def read(self, group: Group, reader: Reader) -> FoldedNormalisation:
        count = next(member.numel for member in group.members if attribute(member.name) == "weight")
        scale, shift = (StoredVector.read(count, self.bits, reader) for _ in range(2))
        return FoldedNormalisation(group, scale, shift)


offer("vectors", "fold(bits=16)", "fold(bits=8)")

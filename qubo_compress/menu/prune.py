"""Unstructured magnitude pruning without quantization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.operator import Operator, operators
from qubo_compress.menu.storage.packing import mask_size
from qubo_compress.menu.storage.row_kernels import keep_largest
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.network.groups import Group
from qubo_compress.network.tensor_bytes import from_raw_bytes, raw_bytes


def check_sparsity(sparsity: float) -> None:
    """Raise :class:`InvalidMenu` unless 0 <= sparsity < 1."""
    if not (isinstance(sparsity, (int, float)) and math.isfinite(sparsity) and 0 <= sparsity < 1):
        raise InvalidMenu(f"sparsity is the share of weights set to zero, at least 0 and below 1; got {sparsity!r}")


def survivor_count(numel: int, sparsity: float) -> int:
    """Number of weights that remain: at least one."""
    # in floating point, 0.29 * 100 is a little below 29
    return max(1, numel - math.floor(sparsity * numel + 1e-9 * numel))


def survivors_of(weight: Tensor, sparsity: float) -> int:
    """Number of weights of a tensor that remain: at least one, and none that is already zero.

    Example:
        >>> survivors_of(torch.tensor([3.0, 0.0, 0.0, 0.5]), 0.25), survivors_of(torch.zeros(4), 0.25)
        (2, 1)
    """
    return min(survivor_count(weight.numel(), sparsity), max(1, int(torch.count_nonzero(weight))))


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Flat boolean mask of the largest magnitudes; ties go to the earlier weight.

    Example:
        >>> magnitude_mask(torch.tensor([3.0, -1.0, 2.0, 0.5]), 0.5).tolist()
        [True, False, True, False]
    """
    magnitudes = weight.detach().cpu().reshape(1, -1).abs().float().numpy()
    return torch.from_numpy(largest_of_rows(magnitudes, sparsity)[0])


def largest_of_rows(magnitudes: npt.NDArray[np.float32], sparsity: float) -> npt.NDArray[np.bool_]:
    """(R, D) mask of the largest magnitudes of each row of (R, D); ties go to the earlier weight."""
    count = survivor_count(magnitudes.shape[1], sparsity)
    place = magnitudes.shape[1] - count
    least = np.ascontiguousarray(np.partition(magnitudes, place, axis=1)[:, place])
    survivors = np.minimum(count, np.maximum(1, np.count_nonzero(magnitudes, axis=1)))
    kept = np.empty(magnitudes.shape, dtype=bool)
    keep_largest(np.ascontiguousarray(magnitudes), least, survivors.astype(np.int64), kept)
    return kept


@dataclass(frozen=True, eq=False)
class PrunedTensors(Stored):
    """Masks and the surviving values, in their own dtype."""

    masks: tuple[Tensor, ...]
    survivors: tuple[Tensor, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def nbytes(self) -> int:
        masks = sum(mask_size(mask.numpy()) for mask in self.masks)
        return masks + sum(values.numel() * values.element_size() for values in self.survivors)

    @property
    def nonzeros(self) -> int:
        return sum(values.numel() for values in self.survivors)

    @property
    def weight_bits(self) -> int:
        return max(8 * values.element_size() for values in self.survivors)

    def write(self, writer: Writer) -> None:
        for mask, values in zip(self.masks, self.survivors, strict=True):
            writer.mask(mask.numpy())
            writer.raw(raw_bytes(values))

    def tensors(self) -> tuple[Tensor, ...]:
        out = []
        for mask, values, shape in zip(self.masks, self.survivors, self.shapes, strict=True):
            dense = torch.zeros(mask.numel(), dtype=values.dtype)
            dense[mask] = values
            out.append(dense.reshape(shape))
        return tuple(out)

    def project(self, values: Sequence[Tensor], refit: bool = False) -> PrunedTensors:
        """Survivors take the new values; the masks stay."""
        survivors = tuple(
            new.detach().cpu().reshape(-1)[mask].to(old.dtype)
            for new, old, mask in zip(values, self.survivors, self.masks, strict=True)
        )
        return PrunedTensors(self.masks, survivors, self.shapes)


@operators.register
@dataclass(frozen=True)
class Prune(Operator):
    """Zero the smallest magnitudes of each tensor; survivors keep their precision.

    Args:
        sparsity: share of weights set to zero, per tensor (per row for filter groups).
    """

    operator_name: ClassVar[str] = "prune"
    quick: ClassVar[bool] = True
    sparsity: float

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        object.__setattr__(self, "sparsity", float(self.sparsity))

    @classmethod
    def samples(cls) -> tuple[Prune, ...]:
        return cls(0.0), cls(0.5), cls(0.97)

    @classmethod
    def faithful(cls) -> tuple[Prune, float] | None:
        return cls(0.0), 0.0

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        return None if group.kind == "weight" else f"{group.kind} vectors are not pruned"

    def encode(self, group: Group, parts: Sequence[Tensor]) -> PrunedTensors:
        """Mask by magnitude and keep the survivors."""
        return self.stored(parts, [magnitude_mask(part, self.sparsity) for part in parts])

    def stored(self, parts: Sequence[Tensor], masks: Sequence[Tensor]) -> PrunedTensors:
        """The survivors of flat masks."""
        survivors = tuple(part.detach().cpu().reshape(-1)[mask] for part, mask in zip(parts, masks, strict=True))
        return PrunedTensors(tuple(masks), survivors, tuple(tuple(part.shape) for part in parts))

    def read(self, group: Group, reader: Reader) -> PrunedTensors:
        """Read mask and survivors, member by member."""
        masks, survivors = [], []
        for member in group.members:
            mask = reader.mask(member.numel)
            count = int(mask.sum())
            survivors.append(from_raw_bytes(reader.raw(count * member.dtype.itemsize), (count,), member.dtype))
            masks.append(torch.from_numpy(mask))
        return PrunedTensors(tuple(masks), tuple(survivors), tuple(m.part_shape for m in group.members))

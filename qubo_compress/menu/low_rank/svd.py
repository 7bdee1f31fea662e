"""Truncated singular value decomposition of a weight seen as (rows, rest)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qubo_compress.menu.families import offer
from qubo_compress.menu.low_rank.factors import DAMPING, LowRank, checked_settings, rank_within
from qubo_compress.menu.low_rank.forms import Form
from qubo_compress.menu.low_rank.stages import Step
from qubo_compress.menu.operator import operators


@operators.register
@dataclass(frozen=True)
class Svd(LowRank):
    """W = A^T B with B (rank, inputs x kernel) and A (rank, outputs): the best of its rank (Eckart and Young, 1936).

    Args:
        rank: of the product; or
        share: rank as a share of the weight's effective rank.
        bits: of a number of a factor, 2 to 16, or None for the weight's own dtype (float32 for float64).
        whitened: least error in the layer's outputs on calibration data, instead of in the weight.
        damping: share of the mean input moment that is added to every input's, where whitened.

    Raises:
        InvalidMenu: for values out of range.

    Example:
        >>> from qubo_compress.network.groups import Group, Member
        >>> group = Group("w", "weight", (Member("w", (6, 8), torch.float32),), "Linear")
        >>> packed = Svd(rank=1).encode(group, [torch.ones(6, 8)])
        >>> packed.nbytes, bool((packed.tensors()[0] - 1).abs().max() < 0.01)
        (20, True)
    """

    operator_name: ClassVar[str] = "svd"
    rank: int | None = None
    share: float | None = None
    bits: int | None = 8
    whitened: bool = False
    damping: float = DAMPING

    def __post_init__(self) -> None:
        checked_settings(self, self.rank, self.share)

    @classmethod
    def samples(cls) -> tuple[Svd, ...]:
        plain = (cls(rank=1), cls(rank=2, bits=4), cls(share=0.4, bits=None), cls(share=0.3, bits=6))
        return *plain, cls(rank=2, whitened=True)

    def unsuitable(self, shape: tuple[int, ...]) -> str | None:
        largest = min(shape[0], torch.Size(shape[1:]).numel())
        too_high = self.rank is not None and self.rank > largest
        return f"rank {self.rank} is above the full rank, {largest}" if too_high else None

    def ranks_of(self, part: Tensor) -> tuple[int, ...]:
        """The rank, or the share of the effective rank."""
        return (rank_within(part.detach().reshape(part.shape[0], -1), self.rank, self.share),)

    def rank_count(self, shape: tuple[int, ...]) -> int:
        return 1

    def form(self, shape: tuple[int, ...], ranks: tuple[int, ...]) -> Form:
        view = (shape[0], torch.Size(shape[1:]).numel())
        steps = (Step(tuple(range(len(shape) - 2)), tuple(shape[2:])), Step())
        return Form("ri,ro->oi", view, ((ranks[0], view[1]), (ranks[0], view[0])), steps)

    def decomposed(self, target: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
        """Singular vectors, each side times the root of the singular values."""
        left, values, right = torch.linalg.svd(target, full_matrices=False)
        root = values[: ranks[0]].sqrt()[:, None]
        return [root * right[: ranks[0]], root * left.T[: ranks[0]]]


# Least output error loses several times less than least weight error; an embedding has no moments to whiten with.
offer(
    "low-rank", *(f"svd(share={share}{bits},whitened=True)" for bits in ("", ",bits=4") for share in (0.25, 0.4, 0.55))
)
offer("low-rank", "svd(share=0.4)")

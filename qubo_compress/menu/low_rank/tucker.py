"""Tucker-2 decomposition of convolutions: a smaller convolution between two of kernel 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qubo_compress.menu.families import offer
from qubo_compress.menu.low_rank.factors import DAMPING, LowRank, checked_settings, rank_within, tensorly_decompositions
from qubo_compress.menu.low_rank.forms import Form
from qubo_compress.menu.low_rank.stages import Step
from qubo_compress.menu.operator import operators


@operators.register
@dataclass(frozen=True)
class Tucker(LowRank):
    """W[o, i, k] = sum_ab O[a, o] C[a, b, k] I[b, i] (Tucker-2; Kim et al., ICLR 2016), by higher-order iteration.

    Args:
        ranks: (output rank, input rank); or
        share: both as a share of the effective ranks of the two unfoldings.
        bits: of a number of a factor, 2 to 16, or None for the weight's own dtype (float32 for float64).
        whitened: least error in the layer's outputs on calibration data, instead of in the weight.
        damping: share of the mean input moment that is added to every input's, where whitened.

    Raises:
        InvalidMenu: for values out of range.

    Example:
        >>> Tucker(ranks=(4, 3)).form((8, 6, 3, 3), (4, 3)).numel
        158
    """

    operator_name: ClassVar[str] = "tucker"
    ranks: tuple[int, int] | None = None
    share: float | None = None
    bits: int | None = 8
    whitened: bool = False
    damping: float = DAMPING

    def __post_init__(self) -> None:
        checked_settings(self, self.ranks, self.share)

    @classmethod
    def samples(cls) -> tuple[Tucker, ...]:
        plain = (cls(ranks=(2, 1)), cls(ranks=(3, 2), bits=4), cls(share=0.5, bits=None), cls(share=0.4, bits=6))
        return *plain, cls(ranks=(3, 2), whitened=True)

    def unsuitable(self, shape: tuple[int, ...]) -> str | None:
        """Only convolutions have a kernel between two channel modes."""
        if len(shape) < 3 or torch.Size(shape[2:]).numel() == 1:
            return "it has no kernel: svd is the same with fewer factors"
        if shape[1] == 1:
            return "it has one input channel per filter, so there is no input mode to shorten; use svd"
        if self.ranks is not None and (self.ranks[0] > shape[0] or self.ranks[1] > shape[1]):
            return f"ranks {self.ranks} are above its channels, {shape[:2]}"
        return None

    def ranks_of(self, part: Tensor) -> tuple[int, ...]:
        """The ranks, or the share of the effective ranks of the unfoldings."""
        given = self.ranks or (None, None)
        unfolded = (part.detach().flatten(1), part.detach().transpose(0, 1).flatten(1))
        return tuple(rank_within(matrix, rank, self.share) for matrix, rank in zip(unfolded, given, strict=True))

    def rank_count(self, shape: tuple[int, ...]) -> int:
        return 2

    def form(self, shape: tuple[int, ...], ranks: tuple[int, ...]) -> Form:
        kernel = torch.Size(shape[2:]).numel()
        shapes = ((ranks[1], shape[1]), (ranks[0], ranks[1], kernel), (ranks[0], shape[0]))
        steps = (Step(), Step(tuple(range(len(shape) - 2)), tuple(shape[2:])), Step())
        return Form("bi,abk,ao->oik", (*shape[:2], kernel), shapes, steps)

    def decomposed(self, target: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
        """Alternating singular value decompositions of both unfoldings."""
        with tensorly_decompositions() as decomposition:
            (core, (left, right)), _ = decomposition.partial_tucker(
                target.numpy(), rank=list(ranks), modes=[0, 1], n_iter_max=50, tol=1e-8
            )
        return [torch.from_numpy(array.copy()).double() for array in (right.T, core, left.T)]


offer("low-rank", *(f"tucker(share={share},whitened=True)" for share in (0.4, 0.55, 0.7)))

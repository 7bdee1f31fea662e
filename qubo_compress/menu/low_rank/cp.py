"""Canonical polyadic decomposition of convolutions: a depthwise one along each axis, between two of kernel 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.families import offer
from qubo_compress.menu.low_rank.factors import (
    DAMPING,
    LowRank,
    checked_settings,
    effective_rank,
    tensorly_decompositions,
)
from qubo_compress.menu.low_rank.forms import Form
from qubo_compress.menu.low_rank.stages import Step, separable_steps
from qubo_compress.menu.operator import operators

AXES = "xyz"

SMALLEST_PENALTY = 1e-8
"""Least penalty: without it, components that cancel make the systems of the sweeps singular."""


@operators.register
@dataclass(frozen=True)
class Canonical(LowRank):
    """W[o, i, x, y] = sum_r O[r, o] I[r, i] X[r, x] Y[r, y] (Lebedev et al., ICLR 2015), by alternating least squares.

    The squared norm of the factors is penalised: otherwise components grow that nearly cancel (Phan et al., ECCV 2020),
    which codes of few bits cannot store.

    Args:
        rank: number of components; or
        share: as a share of the effective rank of the weight seen as (outputs, rest); it may be above 1.
        bits: of a number of a factor, 2 to 16, or None for the weight's own dtype (float32 for float64).
        whitened: least error in the layer's outputs on calibration data, instead of in the weight.
        damping: share of the mean input moment that is added to every input's, where whitened.
        iterations: sweeps of alternating least squares.
        penalty: of the factors' squared norm, for a weight of mean square one.
        seed: of components beyond the size of a mode, which singular vectors cannot initialise.

    Raises:
        InvalidMenu: for values out of range.

    Example:
        >>> Canonical(rank=4).form((8, 6, 3, 3), (4,)).numel
        80
    """

    operator_name: ClassVar[str] = "cp"
    rank: int | None = None
    share: float | None = None
    bits: int | None = 8
    whitened: bool = False
    damping: float = DAMPING
    iterations: int = 50
    penalty: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        checked_settings(self, self.rank, self.share)
        if not (isinstance(self.iterations, int) and self.iterations >= 1):
            raise InvalidMenu(f"iterations must be a whole number from 1; got {self.iterations!r}")
        if not (isinstance(self.penalty, (int, float)) and SMALLEST_PENALTY <= self.penalty < float("inf")):
            raise InvalidMenu(f"penalty must be {SMALLEST_PENALTY} or above; got {self.penalty!r}")

    @classmethod
    def samples(cls) -> tuple[Canonical, ...]:
        plain = (cls(rank=1), cls(rank=3, bits=4, iterations=5), cls(share=0.6, bits=None, iterations=5))
        return *plain, cls(rank=2, whitened=True)

    def unsuitable(self, shape: tuple[int, ...]) -> str | None:
        """Only convolutions have a kernel between two channel modes."""
        if len(shape) < 3 or torch.Size(shape[2:]).numel() == 1:
            return "it has no kernel: svd is the same with fewer factors"
        if shape[1] == 1:
            return "it has one input channel per filter, so there is no input mode to shorten; use svd"
        return None

    def ranks_of(self, part: Tensor) -> tuple[int, ...]:
        """The rank, or the share of the effective rank."""
        if self.share is None:
            return (self.rank or 1,)
        return (max(1, round(self.share * effective_rank(part.detach().flatten(1)))),)

    def rank_count(self, shape: tuple[int, ...]) -> int:
        return 1

    def form(self, shape: tuple[int, ...], ranks: tuple[int, ...]) -> Form:
        """Input side, one factor along each axis of the kernel, output side."""
        lengths = tuple(length for length in shape[2:] if length > 1)
        names = AXES[: len(lengths)]
        equation = ",".join(["ri", *(f"r{name}" for name in names), "ro"]) + f"->oi{names}"
        modes = (shape[1], *lengths, shape[0])
        steps = (Step(), *separable_steps(shape[2:], depthwise=True), Step())
        return Form(equation, (shape[0], shape[1], *lengths), tuple((ranks[0], mode) for mode in modes), steps)

    def decomposed(self, target: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
        with tensorly_decompositions() as decomposition:
            scales, (outputs, *others) = decomposition.parafac(
                target.numpy(), rank=ranks[0], n_iter_max=self.iterations, init="svd", tol=0,
                l2_reg=self.penalty * target.numel() ** 0.5, random_state=self.seed,
            )  # fmt: skip
        return [torch.from_numpy(array.copy()).double() for array in (*(f.T for f in others), (outputs * scales).T)]


offer("low-rank", *(f"cp(share={share},whitened=True)" for share in (0.6, 1.0, 1.6)))

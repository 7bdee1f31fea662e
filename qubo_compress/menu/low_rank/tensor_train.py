"""Tensor trains of convolutions: one convolution along each axis of the kernel, between two of kernel 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qubo_compress.menu.low_rank.factors import DAMPING, LowRank, checked_settings, rank_within, tensorly_decompositions
from qubo_compress.menu.low_rank.forms import Form
from qubo_compress.menu.low_rank.stages import Step, separable_steps
from qubo_compress.menu.operator import operators

RANKS = "abcd"
AXES = "xyz"


def train_modes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Lengths of the train's modes: inputs, axes along which the kernel is longer than 1, outputs."""
    return (shape[1], *(length for length in shape[2:] if length > 1), shape[0])


@operators.register
@dataclass(frozen=True)
class TensorTrain(LowRank):
    """W[o, i, x, y] = sum_abc I[a, i] X[b, a, x] Y[c, b, y] O[c, o] (Oseledets, 2011), by successive truncations.

    Args:
        ranks: between inputs and first axis, between axes, between last axis and outputs; or
        share: all as a share of the effective ranks of these unfoldings.
        bits: of a number of a factor, 2 to 16, or None for the weight's own dtype (float32 for float64).
        whitened: least error in the layer's outputs on calibration data, instead of in the weight.
        damping: share of the mean input moment that is added to every input's, where whitened.

    Raises:
        InvalidMenu: for values out of range.

    Example:
        >>> TensorTrain(ranks=(3, 4, 4)).form((8, 6, 3, 3), (3, 4, 4)).numel
        134
    """

    operator_name: ClassVar[str] = "tensor_train"
    ranks: tuple[int, ...] | None = None
    share: float | None = None
    bits: int | None = 8
    whitened: bool = False
    damping: float = DAMPING

    def __post_init__(self) -> None:
        checked_settings(self, self.ranks, self.share)

    @classmethod
    def samples(cls) -> tuple[TensorTrain, ...]:
        plain = (cls(ranks=(2, 3, 3)), cls(ranks=(2, 3, 3, 2), bits=4), cls(share=0.5, bits=None))
        return *plain, cls(share=0.4, whitened=True)

    def unsuitable(self, shape: tuple[int, ...]) -> str | None:
        """Suits kernels along two or more axes; along one axis the form equals tucker's."""
        modes = train_modes(shape)
        if len(shape) < 3 or len(modes) == 2:
            return "it has no kernel: svd is the same with fewer factors"
        if len(modes) == 3:
            return "its kernel is along one axis: tucker is the same"
        if self.ranks is None:
            return None
        if len(self.ranks) != len(modes) - 1:
            return f"it takes {len(modes) - 1} ranks; got {self.ranks}"
        if self.ranks != _reachable(self.ranks, modes):
            return f"ranks {self.ranks} are above those of its unfoldings, {_reachable(self.ranks, modes)}"
        return None

    def ranks_of(self, part: Tensor) -> tuple[int, ...]:
        """The ranks, or the share of the effective ranks of the unfoldings."""
        if self.ranks is not None:
            return self.ranks
        modes = train_modes(tuple(part.shape))
        train = part.detach().movedim(0, -1)
        unfolded = [train.reshape(math.prod(modes[: cut + 1]), -1) for cut in range(len(modes) - 1)]
        return _reachable(tuple(rank_within(matrix, None, self.share) for matrix in unfolded), modes)

    def rank_count(self, shape: tuple[int, ...]) -> int:
        return len(train_modes(shape)) - 1

    def form(self, shape: tuple[int, ...], ranks: tuple[int, ...]) -> Form:
        """Input side, one core along each axis of the kernel, output side."""
        lengths = train_modes(shape)[1:-1]
        count = len(lengths)
        cores = [f"{RANKS[n + 1]}{RANKS[n]}{AXES[n]}" for n in range(count)]
        equation = ",".join([f"{RANKS[0]}i", *cores, f"{RANKS[count]}o"]) + f"->oi{AXES[:count]}"
        middle = tuple((ranks[n + 1], ranks[n], lengths[n]) for n in range(count))
        shapes = ((ranks[0], shape[1]), *middle, (ranks[count], shape[0]))
        steps = (Step(), *separable_steps(shape[2:], depthwise=False), Step())
        return Form(equation, (shape[0], shape[1], *lengths), shapes, steps)

    def decomposed(self, target: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
        """Singular value decompositions of one unfolding after the other."""
        with tensorly_decompositions() as decomposition:
            train = decomposition.tensor_train(target.movedim(0, -1).contiguous().numpy(), rank=[1, *ranks, 1])
            first, *cores, last = (torch.from_numpy(core.copy()).double() for core in train)
        return [first[0].T, *(core.permute(2, 0, 1) for core in cores), last[..., 0]]


def _reachable(ranks: tuple[int, ...], modes: tuple[int, ...]) -> tuple[int, ...]:
    """The ranks, each limited by the modes on both sides and the previous rank."""
    found, before = [], 1
    for cut, rank in enumerate(ranks):
        before = min(rank, before * modes[cut], math.prod(modes[cut + 1 :]))
        found.append(before)
    return tuple(found)

"""How far the moments of a layer's inputs can be trusted: the damping that does best on examples not seen.

Where one weight is rounded, others compensate for inputs that go together. Few examples go together by chance: with 32
images, the 1,280 inputs of a classifier span 32 directions, and errors in all others look free. Damping, a share of
the mean moment added to every input's, holds compensation back, and too little of it destroys the network.

With U^T U = (S + damping)^-1, rounding weight j by one unit moves the later ones by U_j / U_jj. On inputs with moments
T, unit errors of all weights therefore cost

    sum_j  (U_j / U_jj) T (U_j / U_jj)^T.

S is taken of one half of the examples and T of the other, both ways, and the damping with the least cost is halved for
all examples together: in ridge regression, the best penalty falls as one over the number of examples.

What errors cost on T, over what they cost on S, also tells by how much a choice is worse on other examples than on
those that it was made from. A measurement on the same examples is corrected by this factor; see
:mod:`qubo_compress.sensitivity.optimism`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_DAMPING = 0.01
"""What GPTQ (Frantar et al., ICLR 2023) uses for any number of examples."""

STEPS = (LEAST_DAMPING, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Dampings that are compared; the search ends where the cost rises."""

BLOCKS = 64
"""Most blocks that are looked at: all blocks of a layer get the same damping."""

ROWS = 512
"""Most inputs whose errors are weighed, evenly spread. All of 4,000 would take longer than storing the choices."""


@dataclass(frozen=True)
class Validation:
    """What one half of the examples says about choices that were made with the other half.

    Attributes:
        damping: for choices made with all examples.
        optimism: how many times errors cost more on examples that they were not compensated for; at least 1.
    """

    damping: float
    optimism: float = 1.0


def validated(halves: Sequence[Tensor], blocks: Sequence[Tensor], least: float) -> Validation:
    """The damping for all examples, at least ``least``, and the optimism of choices made with half of them.

    Args:
        halves: (D, D) moments of one half of the examples, one matrix per block; none if halves are not known.
        blocks: moments of all examples.
        least: the smallest damping, also where the halves hold no inputs.

    Example:
        >>> inputs = torch.randn(8, 40, generator=torch.Generator().manual_seed(0)).double()
        >>> half = inputs[::2].T @ inputs[::2]
        >>> found = validated([half], [inputs.T @ inputs], least=0.01)
        >>> found.damping > 1, found.optimism > 1, validated([], [half], least=0.01)
        (True, True, Validation(damping=0.01, optimism=1.0))
    """
    if not halves:
        return Validation(least)
    every = slice(None, None, -(-len(halves) // BLOCKS))
    one, whole = torch.stack(list(halves[every])), torch.stack(list(blocks[every]))
    other = whole - one
    alive = (_strength(one) > 0) & (_strength(other) > 0)
    if not bool(alive.any()) or not bool(torch.isfinite(whole[alive]).all()):
        return Validation(least)
    one, other = one[alive], other[alive]

    def cost(damping: float) -> float:
        """On unseen inputs."""
        return _cost(one, other, damping) + _cost(other, one, damping)

    best = least_costly(cost, least)
    seen = _cost(one, one, best) + _cost(other, other, best)
    return Validation(max(least, best / 2), max(1.0, cost(best) / seen) if seen > 0 else 1.0)


def least_costly(cost: Callable[[float], float], least: float) -> float:
    """The damping of the least cost, where the search for it ends.

    Args:
        cost: of a damping.
        least: the first one tried.
    """
    best, lowest = least, float("inf")
    for damping in (least, *(step for step in STEPS if step > least)):
        found = cost(damping)
        if found < lowest:
            best, lowest = damping, found
        elif lowest < float("inf"):  # until then, moments could not be factored with so little damping
            break
    return best


def _strength(moments: Tensor) -> Tensor:
    """(B,) the mean moment of an input."""
    return moments.diagonal(dim1=-2, dim2=-1).mean(-1)


def _cost(seen: Tensor, unseen: Tensor, damping: float) -> float:
    """The cost of unit errors of some weights on other inputs than those that they are compensated for."""
    size = seen.shape[-1]
    damped = seen + damping * _strength(seen)[:, None, None] * torch.eye(size, dtype=seen.dtype)
    # With the order reversed, damped = R R^T for an upper triangular R, so U = R^-1.
    lower, failed = torch.linalg.cholesky_ex(damped.flip(-2, -1))
    if bool(failed.any()):
        return float("inf")
    upper = lower.flip(-2, -1)
    picked = torch.linspace(0, size - 1, min(size, ROWS)).round().long()
    unit = torch.nn.functional.one_hot(picked, size).to(seen.dtype)
    moved = torch.linalg.solve_triangular(upper, unit.expand(len(upper), -1, -1), upper=True, left=False)
    moved = moved * upper.diagonal(dim1=-2, dim2=-1)[:, picked, None]
    return float(((moved @ unseen) * moved).sum())

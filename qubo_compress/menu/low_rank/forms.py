"""Products of factors, and least-squares solutions for one factor given the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from qubo_compress.calibration.statistics.input_moments import Moments
from qubo_compress.menu.low_rank.stages import Step

GRADIENT_STEPS = 12
"""Conjugate-gradient steps for any factor except the last; each step lowers the error."""

RIDGE = 1e-10


@dataclass(frozen=True)
class Form:
    """How a weight is composed from its factors.

    Attributes:
        equation: Einstein sum, such as ``"ri,ro->oi"``.
        view: shape in which the weight is decomposed, output channels first.
        shapes: of the factors, rank first; the last one is (rank, output channels).
        steps: the map of every factor when the layer runs.
    """

    equation: str
    view: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]

    @property
    def numel(self) -> int:
        """The number of stored numbers, over all factors."""
        return sum(math.prod(shape) for shape in self.shapes)

    def assembled(self, factors: Sequence[Tensor]) -> Tensor:
        """The weight in the shape of the view, in the factors' dtype."""
        left, whole = self.equation.split("->")
        return contracted(left.split(","), factors, whole)

    def adjoint(self, factors: Sequence[Tensor], number: int, values: Tensor) -> Tensor:
        """The transpose of ``factor -> weight``, applied to values of the view's shape."""
        left, whole = self.equation.split("->")
        names = left.split(",")
        # From both ends towards the factor, so that intermediate results stay small.
        others = [*reversed(range(number + 1, len(names))), *range(number)]
        return contracted([whole, *(names[n] for n in others)], [values, *(factors[n] for n in others)], names[number])


def contracted(names: Sequence[str], operands: Sequence[Tensor], result: str) -> Tensor:
    """An Einstein sum from left to right, two operands at a time: einsum's own order may need far more memory.

    Example:
        >>> contracted(["ab", "bc", "cd"], [torch.ones(2, 3), torch.ones(3, 4), torch.ones(4, 5)], "ad").shape
        torch.Size([2, 5])
    """
    known, found = names[0], operands[0]
    for number in range(1, len(names)):
        later = set(result).union(*names[number + 1 :])
        kept = "".join(name for name in dict.fromkeys(known + names[number]) if name in later)
        kept = result if number == len(names) - 1 else kept
        found = torch.einsum(f"{known},{names[number]}->{kept}", found, operands[number])
        known = kept
    return found


class Weighing:
    """Squared errors of a weight as those of the layer's outputs: sum over rows of e S e^T, S the input moments.

    Args:
        moments: of the weight's inputs.
        rows: of the weight.
        damping: share of the mean input moment that is added to every input's.
    """

    def __init__(self, moments: Moments, rows: int, damping: float) -> None:
        spans = moments.spans(rows)
        blocks = {block: moments.damped(block, damping) for block, _, _ in spans}
        self.mean = cast(Tensor, sum(blocks[block] * ((last - first) / rows) for block, first, last in spans))
        scale = float(self.mean.diagonal().mean())
        self.mean = self.mean / scale
        self.spans = tuple((blocks[block] / scale, first, last) for block, first, last in spans)

    def __call__(self, values: Tensor) -> Tensor:
        """(rows, ...) errors times S, in their shape."""
        flat = values.flatten(1)
        return torch.cat([flat[first:last] @ moments for moments, first, last in self.spans]).reshape(values.shape)

    def root(self, inputs: int) -> Tensor:
        """(inputs, inputs) lower triangular root of the mean moments, traced over the kernel if D > inputs."""
        kernel = len(self.mean) // inputs
        traced = torch.einsum("ikjk->ij", self.mean.reshape(inputs, kernel, inputs, kernel)) / kernel
        return cast(Tensor, torch.linalg.cholesky((traced + traced.T) / 2))


def solved(form: Form, factors: Sequence[Tensor], number: int, target: Tensor, weigh: Weighing | None = None) -> Tensor:
    """One factor of least (weighted) squared error given the others: exact for the last, else conjugate gradients."""
    if number == len(factors) - 1:
        return _last(form, factors, target, weigh)
    found = list(factors)

    def weighed(values: Tensor) -> Tensor:
        return values if weigh is None else weigh(values)

    residual = form.adjoint(found, number, weighed(target - form.assembled(found)))
    direction, size = residual, float((residual**2).sum())
    for _ in range(GRADIENT_STEPS):
        moved = form.assembled([*found[:number], direction, *found[number + 1 :]])
        turned = weighed(moved)
        curvature = float((moved * turned).sum())
        if not (size > 0 and curvature > 0):
            break
        step = size / curvature
        found[number] = found[number] + step * direction
        residual = residual - step * form.adjoint(found, number, turned)
        fresh = float((residual**2).sum())
        direction, size = residual + (fresh / size) * direction, fresh
    return found[number]


def _last(form: Form, factors: Sequence[Tensor], target: Tensor, weigh: Weighing | None) -> Tensor:
    """(rank, outputs): each output is a regression on the same rows, with the moments of its own inputs."""
    basis = torch.eye(form.shapes[-1][0], dtype=target.dtype)
    rows = form.assembled([*factors[:-1], basis]).flatten(1)
    flat = target.flatten(1)
    spans = ((None, 0, len(flat)),) if weigh is None else weigh.spans
    parts = []
    for moments, first, last in spans:
        turned = rows if moments is None else rows @ moments
        gram = turned @ rows.T
        ridge = RIDGE * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
        damped = (gram + gram.T) / 2 + ridge * torch.eye(len(gram), dtype=gram.dtype)
        parts.append(torch.linalg.solve(damped, turned @ flat[first:last].T))
    return torch.cat(parts, dim=1)


def balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same product from factors of equal root-mean-square size: float16 scales have a narrow range."""
    sizes = [float(f.square().mean().sqrt()) for f in factors]
    if min(sizes) <= 0:
        return [torch.zeros_like(f) for f in factors]
    common = math.exp(sum(math.log(size) for size in sizes) / len(sizes))
    return [f * (common / size) for f, size in zip(factors, sizes, strict=True)]

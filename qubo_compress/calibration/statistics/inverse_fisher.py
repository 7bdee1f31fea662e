"""The inverse of the damped empirical Fisher, block by block (Singh & Alistarh, NeurIPS 2020).

With gradients G (N, d) of one block of d consecutive weights and damping L,

    F = L I + G^T G / N                                                                       (d, d)

    recursion:  F_0^-1 = I / L;   v = F^-1 g_i;   F^-1 <- F^-1 - v v^T / (N + g_i^T v)        N d^2 steps, d^2 numbers
    N x N form: F^-1 = (I - G^T (N L I + G G^T)^-1 G) / L                                     N^2 d steps, N d numbers

The second does all steps at once (Woodbury), and is used for fewer gradients than weights: it never forms the d x d
inverse. All in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu

Form = Literal["auto", "recursion", "gram"]


@dataclass(frozen=True, eq=False)
class InverseFisher:
    """F^-1 of one block.

    Attributes:
        gradients: (N, d) float64.
        damping: L.
        inverse: (d, d), or None in the N x N form.
        root: (N, d) R with F^-1 = (I - R^T R) / L in the N x N form, else None.
    """

    gradients: Tensor
    damping: float
    inverse: Tensor | None
    root: Tensor | None

    @classmethod
    def of(cls, gradients: Tensor, damping: float, form: Form = "auto") -> InverseFisher:
        """Invert one block.

        Args:
            gradients: (N, d).
            damping: L > 0.
            form: ``"auto"``: the cheaper of the two.

        Raises:
            InvalidMenu: for a damping that is not positive, or an unknown form.

        Example:
            >>> rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
            >>> InverseFisher.of(rows, 0.5).dense().round(decimals=6).tolist()
            [[1.0, 0.0], [0.0, 0.4]]
        """
        if not damping > 0:
            raise InvalidMenu(f"the damping of the Fisher must be above zero; got {damping!r}")
        if form not in ("auto", "recursion", "gram"):
            raise InvalidMenu(f"form must be 'auto', 'recursion' or 'gram'; got {form!r}")
        rows = gradients.double()
        if form == "recursion" or (form == "auto" and rows.shape[0] >= rows.shape[1]):
            return cls(rows, damping, _recursion(rows, damping), None)
        lower = _cholesky(rows @ rows.T, rows.shape[0] * damping)
        return cls(rows, damping, None, torch.linalg.solve_triangular(lower, rows, upper=False))

    @property
    def diagonal(self) -> Tensor:
        """(d,) of F^-1, never below 1 / F_qq, which bounds it from below in exact arithmetic."""
        least = 1.0 / (self.damping + self.gradients.square().mean(0))
        if self.inverse is not None:
            return torch.maximum(self.inverse.diagonal(), least)
        return torch.maximum((1.0 - self._root.square().sum(0)) / self.damping, least)

    @property
    def _root(self) -> Tensor:
        if self.root is None:
            raise ValueError("this block holds the dense inverse")
        return self.root

    def times(self, vectors: Tensor) -> Tensor:
        """F^-1 times a vector (d,) or the columns of (d, k)."""
        if self.inverse is not None:
            return self.inverse @ vectors
        return (vectors - self._root.T @ (self._root @ vectors)) / self.damping

    def dense(self) -> Tensor:
        """(d, d) F^-1 as a dense array."""
        return self.times(torch.eye(self.gradients.shape[1], dtype=torch.float64))


def inverse_fisher_blocks(
    gradients: Tensor, damping: float, block: int = 2000, form: Form = "auto"
) -> Iterator[tuple[slice, InverseFisher]]:
    """Blocks of consecutive weights and their inverses, computed one by one: only one is in memory at a time.

    Args:
        gradients: (N, n).
        damping: L > 0.
        block: weights per block.
        form: see :meth:`InverseFisher.of`.
    """
    for where in block_slices(gradients.shape[1], block):
        yield where, InverseFisher.of(gradients[:, where], damping, form)


def block_slices(count: int, block: int) -> list[slice]:
    """Consecutive ranges of at most ``block`` weights.

    Example:
        >>> block_slices(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + block, count)) for start in range(0, count, block)]


def survivors_answer(gradients: Tensor, damping: float, pruned: Tensor, target: Tensor) -> Tensor:
    """The joint update of a block's survivors that minimises the change of the loss exactly.

    With survivors S the stationary point of 1/2 d^T F d over d_S is that of a ridge regression of the pruned
    weights' share in every gradient, t = G_Q w_Q, on the survivors' gradients:

        d_S = G_S^T (N L I + G_S G_S^T)^-1 t = (N L I + G_S^T G_S)^-1 G_S^T t

    which equals -[F^-1]_SQ ([F^-1]_QQ)^-1 w_Q without an inverse of that size. Subtracting the roots of the example
    weights from t takes the gradient itself into account (WoodTaylor).

    Args:
        gradients: (N, d) float64.
        damping: L.
        pruned: (d,) boolean, True for Q.
        target: (N,) t.

    Returns:
        (d,) float64, zero for pruned weights.
    """
    answer = torch.zeros(gradients.shape[1], dtype=torch.float64)
    kept = gradients[:, ~pruned]
    if kept.shape[1] == 0:
        return answer
    ridge = gradients.shape[0] * damping
    if kept.shape[0] <= kept.shape[1]:
        dual = torch.cholesky_solve(target.unsqueeze(1), _cholesky(kept @ kept.T, ridge))
        answer[~pruned] = kept.T @ dual.squeeze(1)
    else:
        right = (kept.T @ target).unsqueeze(1)
        answer[~pruned] = torch.cholesky_solve(right, _cholesky(kept.T @ kept, ridge)).squeeze(1)
    return answer


def survivors_answers(gradients: Tensor, dampings: Sequence[float], pruned: Tensor, target: Tensor) -> Tensor:
    """:func:`survivors_answer` for several dampings, from one eigendecomposition.

    Returns:
        (dampings, d) float64.
    """
    count = gradients.shape[0]
    answers = torch.zeros(len(dampings), gradients.shape[1], dtype=torch.float64)
    kept = gradients[:, ~pruned]
    if kept.shape[1] == 0:
        return answers
    dual = count <= kept.shape[1]
    values, vectors = torch.linalg.eigh(kept @ kept.T if dual else kept.T @ kept)
    # Eigenvalues at rounding level are noise that a small damping would amplify.
    least = torch.finfo(values.dtype).eps * values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
    ridges = count * torch.tensor(list(dampings), dtype=torch.float64).unsqueeze(1)
    shares = (vectors.T @ (target if dual else kept.T @ target)) / (values.clamp(min=0.0) + ridges.clamp(min=least))
    solved = shares @ vectors.T
    answers[:, ~pruned] = solved @ kept if dual else solved
    return answers


def _recursion(rows: Tensor, damping: float) -> Tensor:
    count, size = rows.shape
    inverse = torch.eye(size, dtype=torch.float64) / damping
    for row in rows:
        column = inverse @ row
        inverse.addr_(column, column, alpha=-1.0 / (count + float(row @ column)))
    return inverse


def _cholesky(gram: Tensor, ridge: float) -> Tensor:
    """Lower factor of gram + ridge I; a ridge below rounding is raised until the factor exists.

    Raises:
        InvalidMenu: for gradients that are NaN or infinite, which have no factor.
    """
    if not bool(torch.isfinite(gram).all()):
        raise InvalidMenu("the gradients are NaN or infinite, so their Fisher has no inverse; give finite ones")
    eye = torch.eye(gram.shape[0], dtype=gram.dtype)
    added = ridge
    lower: Tensor
    while True:
        lower, failed = torch.linalg.cholesky_ex(gram + added * eye)
        if not bool(failed) and bool(torch.isfinite(lower).all()):
            return lower
        added = max(2.0 * added, torch.finfo(gram.dtype).eps * float(gram.diagonal().max()))

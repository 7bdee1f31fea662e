"""A caller's loss: derivatives by automatic differentiation, and roots of its output Hessian.

Rows do not depend on each other, so one Hessian-vector product of the summed loss contains the product of every row's
own Hessian with its own vector. With few outputs, the root is computed from the Hessian. With many, the Hessian is
never formed: the Lanczos process started at a vector e gives H V = V T + ... with orthonormal columns V and tridiagonal
T, and

    H^(1/2) e  ~=  |e| V T^(1/2) e_1

(Saad 1992, SIAM J. Numer. Anal. 29), which is exact after as many steps as e has components in different eigenspaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from qubo_compress.errors import InvalidModel
from qubo_compress.network.losses.loss import Loss

CustomLoss = Callable[[Tensor, Tensor | None], Tensor]

MOST_ROOT_COLUMNS = 64
"""Up to this many outputs, probes use the root of the whole Hessian; beyond, the Lanczos process."""

LANCZOS_STEPS = 16

ROOT_MEMORY = 500_000_000
"""Limit in bytes on the Hessian roots of one slice, and on all roots in memory."""

NEGLIGIBLE = 1e-6
"""A Lanczos vector shorter than this share of the Hessian's scale is rounding noise: that row's process has ended."""


@dataclass(frozen=True)
class CallableLoss(Loss):
    """A caller's loss (outputs, targets) -> (N,), its output Hessian clipped to positive semidefinite.

    Args:
        function: the loss; rows must not depend on each other.
    """

    function: CustomLoss
    needs_targets: bool = False
    #: Outputs, targets and roots of earlier slices, as long as their outputs are alive elsewhere.
    _roots: list[tuple[ReferenceType[Tensor], Tensor | None, Tensor]] = field(
        default_factory=list, compare=False, repr=False
    )

    def values(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """The caller's values, checked for their shape."""
        values = self.function(outputs, targets)
        if not isinstance(values, Tensor) or values.shape != (outputs.shape[0],):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InvalidModel(f"the loss must return one value per example, shape ({outputs.shape[0]},); got {shape}")
        return values.float()

    def gradient(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """The gradient of each row's value, by automatic differentiation."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_(True)
            found: Tensor = torch.autograd.grad(self.values(leaf, targets, reference).sum(), leaf)[0]
            return found

    def divergence(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Half the quadratic form of the Hessian at the reference, if that is positive.

        For a loss without curvature there, such as the absolute error, the change of its values.
        """
        change = (outputs - reference).detach()
        form = 0.5 * (change * self._product(reference, targets)(change)).sum(-1)
        if bool((form != 0).any()):
            return form.clamp(min=0)
        return (self.values(outputs, targets, reference) - self.values(reference, targets, reference)).abs().detach()

    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Eigenvectors of each row's Hessian, scaled by the roots of its positive eigenvalues.

        Raises:
            InvalidModel: when the roots of one slice would take more than :data:`ROOT_MEMORY`.
        """
        return torch.einsum("mkc,...mc->...mk", self._root(outputs, targets), change)

    def has_features(self, outputs: Tensor) -> bool:
        """Whether the roots of these output rows fit in the memory of :meth:`features`."""
        return _root_bytes(*outputs.shape) <= ROOT_MEMORY

    def probe(self, outputs: Tensor, targets: Tensor | None, signs: Tensor) -> Tensor:
        """A root of each row's Hessian times that row's signs; with many outputs, by the Lanczos process."""
        if outputs.shape[1] <= MOST_ROOT_COLUMNS and self.has_features(outputs):
            return torch.einsum("mkc,mk->mc", self._root(outputs, targets), signs)
        return lanczos_root(self._product(outputs, targets), signs, LANCZOS_STEPS)

    def _root(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """(M, C, C) roots R with R^T R = H, computed once for every slice."""
        for known, labels, root in self._roots:
            if known() is outputs and labels is targets:
                return root
        rows, columns = outputs.shape
        if not self.has_features(outputs):
            raise InvalidModel(
                f"the Hessian roots of this loss take {_root_bytes(rows, columns) / 1e9:.1f} GB for a slice of {rows} "
                f"output rows of {columns} numbers; use metric='products', which never forms them, a built-in loss, "
                "or batches in smaller slices"
            )
        root = self._computed_root(outputs, targets)
        self._roots[:] = [kept for kept in self._roots if kept[0]() is not None]
        held = sum(4 * kept.numel() for _, _, kept in self._roots)
        if held + _root_bytes(rows, columns) <= ROOT_MEMORY:
            self._roots.append((ref(outputs), targets, root))
        return root

    def _computed_root(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        product = self._product(outputs, targets)
        units = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
        hessian = torch.stack([product(unit.expand_as(outputs)) for unit in units], dim=1)
        values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.transpose(1, 2)))
        root: Tensor = values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.transpose(1, 2)
        return root

    def _product(self, outputs: Tensor, targets: Tensor | None) -> Callable[[Tensor], Tensor]:
        """(M, C) vectors -> (M, C) products of each row's Hessian with its own vector."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_(True)
            first = torch.autograd.grad(self.function(leaf, targets).sum(), leaf, create_graph=True)[0]
        if not first.requires_grad:  # linear in the outputs
            return torch.zeros_like

        def product(vectors: Tensor) -> Tensor:
            with torch.enable_grad():
                found = torch.autograd.grad(first, leaf, vectors, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(outputs) if found is None else found.detach()

        return product


def _root_bytes(rows: int, columns: int) -> int:
    return 4 * rows * columns * columns


def lanczos_root(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """(M, C) approximate H^(1/2) e for every row's own symmetric H, with negative eigenvalues set to zero.

    Args:
        product: (M, C) vectors -> (M, C), each row's H times its vector.
        start: (M, C) vectors e.
        steps: of the Lanczos process, at most C; each costs one product and one more (M, C) array in memory.

    Example:
        >>> diagonal = torch.tensor([[4.0, 9.0, -1.0]])
        >>> (lanczos_root(lambda v: diagonal * v, torch.ones(1, 3), 3).abs() + 0.0005).floor().tolist()
        [[2.0, 3.0, 0.0]]
    """
    steps = min(steps, start.shape[-1])
    length = start.norm(dim=-1, keepdim=True)
    vector = start / length.clamp(min=torch.finfo(start.dtype).tiny)
    basis: list[Tensor] = []
    tridiagonal = torch.zeros(start.shape[0], steps, steps, dtype=start.dtype, device=start.device)
    scale = torch.zeros_like(length)
    for step in range(steps):
        basis.append(vector)
        following = product(vector)
        scale = torch.maximum(scale, following.norm(dim=-1, keepdim=True))
        tridiagonal[:, step, step] = (vector * following).sum(-1)
        # Orthogonalised twice against all earlier vectors: once is not enough in float32.
        for _ in range(2):
            for earlier in basis:
                following = following - (earlier * following).sum(-1, keepdim=True) * earlier
        size = following.norm(dim=-1, keepdim=True)
        alive = size > NEGLIGIBLE * scale
        vector = torch.where(alive, following / torch.where(alive, size, 1.0), 0.0)
        if step + 1 < steps:
            tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = torch.where(alive, size, 0.0)[:, 0]
    values, vectors = torch.linalg.eigh(tridiagonal)
    # f(T) e_1 = sum_k sqrt(t_k) s_k (s_k . e_1)
    weights = torch.einsum("mik,mk->mi", vectors, values.clamp(min=0).sqrt() * vectors[:, 0])
    found: Tensor = length * torch.einsum("imc,mi->mc", torch.stack(basis), weights)
    return found

"""Losses on the network's outputs: values, output gradients, and square roots of the output Hessian.

Outputs are (N, C) or (N, C, ...); further axes count as examples. With softmax p the cross-entropy and
the Kullback-Leibler divergence share the output Hessian H = diag(p) - p p^T, and

    dz^T H dz = sum_c p_c (dz_c - sum_k p_k dz_k)^2,

so sqrt(p_c) (dz_c - p . dz) is a feature row whose squared norm is the quadratic form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from qubo_compress.errors import InvalidBatches, InvalidModel, unknown_name

CustomLoss = Callable[[Tensor, Tensor | None], Tensor]
LossLike = str | CustomLoss


def rows_of(outputs: Tensor) -> Tensor:
    """(M, C) float32 outputs with all axes but the classes joined.

    Raises:
        InvalidModel: when the network did not return one floating-point tensor of two or more axes.
    """
    if not isinstance(outputs, Tensor):
        raise InvalidModel(
            f"the model returned {type(outputs).__name__}; "
            "wrap it so that forward returns one tensor (examples, classes)"
        )
    if outputs.ndim < 2 or not outputs.is_floating_point():
        raise InvalidModel(
            f"outputs must be floating-point of shape (N, C, ...); got {tuple(outputs.shape)} {outputs.dtype}"
        )
    moved = outputs.movedim(1, -1) if outputs.ndim > 2 else outputs
    return moved.reshape(-1, outputs.shape[1]).float()


class Loss(Protocol):
    """What sensitivity asks of a loss. ``reference`` are the uncompressed network's output rows."""

    @property
    def needs_targets(self) -> bool:
        """Whether the batches must bring targets."""
        ...

    def values(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """(M,) loss per output row."""
        ...

    def gradient(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """(M, C) gradient of each row's loss with respect to its outputs."""
        ...

    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """(..., M, C) rows whose squared norm is change^T H change, H taken at ``outputs``."""
        ...


def softmax_features(change: Tensor, outputs: Tensor) -> Tensor:
    """Square root of the softmax Hessian at ``outputs`` applied to ``change``."""
    share = outputs.softmax(-1)
    centred = change - (share * change).sum(-1, keepdim=True)
    return share.sqrt() * centred


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with class indices or class probabilities as targets."""

    needs_targets: bool = True

    def values(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Cross-entropy per row."""
        return functional.cross_entropy(outputs, target_rows(targets, outputs), reduction="none")

    def gradient(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Softmax minus target."""
        goal = target_rows(targets, outputs)
        if goal.ndim == 1:
            known = (goal >= 0).unsqueeze(-1)
            goal = functional.one_hot(goal.clamp(min=0), outputs.shape[-1]).to(outputs.dtype)
            return (outputs.softmax(-1) - goal) * known
        return outputs.softmax(-1) - goal

    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Softmax features; zero where the target is to be ignored."""
        rows = softmax_features(change, outputs)
        goal = target_rows(targets, outputs)
        return rows if goal.ndim > 1 else rows * (goal >= 0).unsqueeze(-1)


@dataclass(frozen=True)
class KullbackLeibler:
    """KL(softmax of the reference || softmax of the outputs); needs no targets."""

    needs_targets: bool = False

    def values(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Divergence per row."""
        goal = reference.log_softmax(-1)
        return (goal.exp() * (goal - outputs.log_softmax(-1))).sum(-1)

    def gradient(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Difference of the softmaxes: zero at the reference."""
        return outputs.softmax(-1) - reference.softmax(-1)

    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Softmax features."""
        return softmax_features(change, outputs)


@dataclass(frozen=True)
class CallableLoss:
    """A caller's loss (outputs, targets) -> (N,), its output Hessian clipped to positive semidefinite."""

    function: CustomLoss
    needs_targets: bool = False

    def values(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """The caller's values, checked for their shape."""
        values = self.function(outputs, targets)
        if not isinstance(values, Tensor) or values.shape != (outputs.shape[0],):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InvalidModel(f"the loss must return one value per example, shape ({outputs.shape[0]},); got {shape}")
        return values.float()

    def gradient(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """By automatic differentiation; rows must not depend on each other."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_(True)
            found: Tensor = torch.autograd.grad(self.values(leaf, targets, reference).sum(), leaf)[0]
            return found

    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Eigenvectors of each row's Hessian, scaled by the roots of its positive eigenvalues."""
        root = self._root(outputs, targets)
        return torch.einsum("mkc,...mc->...mk", root, change)

    def _root(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_(True)
            first = torch.autograd.grad(self.function(leaf, targets).sum(), leaf, create_graph=True)[0]
            columns = []
            for c in range(outputs.shape[-1]):
                if first.requires_grad:
                    column = torch.autograd.grad(first[:, c].sum(), leaf, retain_graph=True, allow_unused=True)[0]
                else:
                    column = None
                columns.append(torch.zeros_like(outputs) if column is None else column)
        hessian = torch.stack(columns, dim=1).detach()
        values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.transpose(1, 2)))
        root: Tensor = values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.transpose(1, 2)
        return root


def target_rows(targets: Tensor | None, outputs: Tensor) -> Tensor:
    """Targets aligned with output rows: (M,) class indices or (M, C) probabilities.

    Raises:
        InvalidBatches: when there are none, or they do not fit the outputs.
    """
    if targets is None:
        raise InvalidBatches("this loss needs targets; give (inputs, targets) batches or loss='kl'")
    rows, classes = outputs.shape
    if targets.is_floating_point():
        moved = targets.movedim(1, -1) if targets.ndim > 2 else targets
        if moved.numel() == rows * classes:
            return moved.reshape(rows, classes).to(outputs.dtype)
    elif targets.numel() == rows:
        flat = targets.reshape(-1).long()
        if bool((flat >= classes).any()) or bool(((flat < 0) & (flat != -100)).any()):
            raise InvalidBatches(
                f"targets must be class indices from 0 to {classes - 1}; got {int(flat.min())} to {int(flat.max())}"
            )
        return flat
    raise InvalidBatches(
        f"targets of shape {tuple(targets.shape)} {targets.dtype} do not fit outputs of shape {(rows, classes)}"
    )


def make_loss(loss: LossLike) -> Loss:
    """``"cross-entropy"``, ``"kl"`` or a callable.

    Raises:
        UnknownName: for another name.

    Example:
        >>> make_loss("kl").values(torch.zeros(1, 2), None, torch.zeros(1, 2)).item()
        0.0
    """
    if callable(loss):
        return CallableLoss(loss)
    known: dict[str, Loss] = {"cross-entropy": CrossEntropy(), "kl": KullbackLeibler()}
    if loss not in known:
        raise unknown_name("loss", loss, known)
    return known[loss]

"""Losses on the network's outputs: values, output gradients, and square roots of the output Hessian.

Outputs are (N, C) or (N, C, ...); further axes count as examples. With softmax p the cross-entropy and
the Kullback-Leibler divergence share the output Hessian H = diag(p) - p p^T, and

    dz^T H dz = sum_c p_c (dz_c - sum_k p_k dz_k)^2,

so sqrt(p_c) (dz_c - p . dz) is a feature row whose squared norm is the quadratic form. The transpose of that root,
B = diag(sqrt p) - p sqrt(p)^T, turns random signs e into probes: B B^T = H, so E[(B e)(B e)^T] = H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from qubo_compress.errors import InvalidBatches, InvalidModel, unknown_name
from qubo_compress.network.losses.custom import CallableLoss, CustomLoss
from qubo_compress.network.losses.loss import Loss
from qubo_compress.network.losses.regression import BinaryCrossEntropy, SquaredError

LossLike = str | CustomLoss

AUTO = "auto"
"""Name of the loss that suits the network's outputs and the examples' targets."""

__all__ = [
    "AUTO", "BinaryCrossEntropy", "CallableLoss", "CrossEntropy", "CustomLoss", "KullbackLeibler", "Loss", "LossLike",
    "SquaredError", "class_targets", "make_loss", "rows_of", "softmax_features", "target_rows",
]  # fmt: skip


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


def softmax_features(change: Tensor, outputs: Tensor) -> Tensor:
    """Square root of the softmax Hessian at ``outputs`` applied to ``change``."""
    share = outputs.softmax(-1)
    centred = change - (share * change).sum(-1, keepdim=True)
    return share.sqrt() * centred


def softmax_probe(outputs: Tensor, signs: Tensor) -> Tensor:
    """The other root of the softmax Hessian, sqrt(p) e - p (sqrt(p) . e), for random signs e."""
    share = outputs.softmax(-1)
    signed = share.sqrt() * signs
    return signed - share * signed.sum(-1, keepdim=True)


def softmax_divergence(outputs: Tensor, reference: Tensor) -> Tensor:
    """(M,) KL(softmax of the reference || softmax of the outputs)."""
    goal = reference.log_softmax(-1)
    return (goal.exp() * (goal - outputs.log_softmax(-1))).sum(-1)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy with class indices or class probabilities as targets."""

    needs_targets: bool = True
    of_classes: ClassVar[bool] = True

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
        """Softmax features; zero for ignored targets."""
        return _where_counted(softmax_features(change, outputs), targets, outputs)

    def probe(self, outputs: Tensor, targets: Tensor | None, signs: Tensor) -> Tensor:
        """Softmax probes; zero for ignored targets."""
        return _where_counted(softmax_probe(outputs, signs), targets, outputs)

    def divergence(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """KL divergence from the reference."""
        return softmax_divergence(outputs, reference)


@dataclass(frozen=True)
class KullbackLeibler(Loss):
    """KL(softmax of the reference || softmax of the outputs); needs no targets."""

    needs_targets: bool = False
    of_classes: ClassVar[bool] = True

    def values(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Divergence per row."""
        return softmax_divergence(outputs, reference)

    def gradient(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Difference of the softmaxes: zero at the reference."""
        return outputs.softmax(-1) - reference.softmax(-1)

    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Softmax features."""
        return softmax_features(change, outputs)

    def probe(self, outputs: Tensor, targets: Tensor | None, signs: Tensor) -> Tensor:
        """Softmax probes."""
        return softmax_probe(outputs, signs)

    def divergence(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """The loss itself."""
        return softmax_divergence(outputs, reference)


def _where_counted(rows: Tensor, targets: Tensor | None, outputs: Tensor) -> Tensor:
    goal = target_rows(targets, outputs)
    return rows if goal.ndim > 1 else rows * (goal >= 0).unsqueeze(-1)


def target_rows(targets: Tensor | None, outputs: Tensor) -> Tensor:
    """Targets aligned with output rows: (M,) class indices or (M, C) probabilities.

    A single output is the logit of class 1 of two.

    Raises:
        InvalidBatches: when targets are missing, or do not fit the outputs.
    """
    if targets is None:
        raise InvalidBatches("this loss needs targets; give (inputs, targets) batches or loss='kl'")
    rows, columns = outputs.shape
    classes = max(columns, 2)
    if targets.is_floating_point() or (columns > 1 and targets.numel() == rows * columns):
        moved = targets.movedim(1, -1) if targets.ndim > 2 else targets
        if moved.numel() == rows * columns:
            return moved.reshape(rows, columns).to(outputs.dtype)
    elif targets.numel() == rows:
        flat = targets.reshape(-1).long()
        if bool((flat >= classes).any()) or bool(((flat < 0) & (flat != -100)).any()):
            raise InvalidBatches(
                f"targets must be class indices from 0 to {classes - 1}; got {int(flat.min())} to {int(flat.max())}"
            )
        return flat
    raise InvalidBatches(
        f"targets of shape {tuple(targets.shape)} {targets.dtype} do not fit outputs of shape {(rows, columns)}"
    )


def class_targets(loss: LossLike | Loss) -> bool:
    """Whether integer targets of this loss are classes, so that answers are right or wrong."""
    found = loss if isinstance(loss, Loss) else make_loss(loss)
    return not found.of_numbers


def make_loss(loss: LossLike) -> Loss:
    """``"cross-entropy"``, ``"kl"``, ``"binary-cross-entropy"``, ``"squared-error"`` or a callable.

    ``"auto"`` is refused: its meaning depends on the examples, see
    :func:`qubo_compress.calibration.fitting_loss.fitting_loss`.

    Raises:
        UnknownName: for another name.

    Example:
        >>> import torch
        >>> make_loss("kl").values(torch.zeros(1, 2), None, torch.zeros(1, 2)).item()
        0.0
    """
    if callable(loss):
        return CallableLoss(loss)
    known: dict[str, Loss] = {
        "cross-entropy": CrossEntropy(),
        "kl": KullbackLeibler(),
        "binary-cross-entropy": BinaryCrossEntropy(),
        "squared-error": SquaredError(),
    }
    if loss not in known:
        if loss == AUTO:
            raise InvalidBatches("loss='auto' stands for one of the others, depending on the examples; name one")
        raise unknown_name("loss", loss, known)
    return known[loss]

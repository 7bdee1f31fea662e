"""Losses of single numbers: squared error, and binary cross-entropy with logits.

Both are means over the C outputs of a row, like torch's ``MSELoss`` and ``BCEWithLogitsLoss``, and outputs do not
interact, so the output Hessian of a row is diagonal: 2 / C, and p (1 - p) / C with p = sigmoid(z).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from qubo_compress.errors import InvalidBatches
from qubo_compress.network.inputs import IGNORED
from qubo_compress.network.losses.loss import Loss


@dataclass(frozen=True)
class SquaredError(Loss):
    """Mean squared difference from the targets, or from the uncompressed network's outputs without targets."""

    needs_targets: bool = False
    of_numbers: ClassVar[bool] = True

    def values(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """(M,) mean squared error of each row."""
        goal, counted = (reference, None) if targets is None else value_rows(targets, outputs)
        found: Tensor = _counted((outputs - goal).square(), counted).mean(-1)
        return found

    def gradient(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Twice the difference, over the number of outputs."""
        goal, counted = (reference, None) if targets is None else value_rows(targets, outputs)
        found: Tensor = _counted(outputs - goal, counted) * (2.0 / outputs.shape[-1])
        return found

    def divergence(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """(M,) mean squared difference from the reference."""
        found: Tensor = (outputs - reference).square().mean(-1)
        return found

    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """The change times the root of 2 / C; zero for ignored targets."""
        counted = None if targets is None else value_rows(targets, outputs)[1]
        root: float = (2.0 / outputs.shape[-1]) ** 0.5
        return _counted(change, counted) * root

    def probe(self, outputs: Tensor, targets: Tensor | None, signs: Tensor) -> Tensor:
        """The signs times the root of 2 / C."""
        return self.features(signs, outputs, targets)


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Mean binary cross-entropy of logits with targets between 0 and 1."""

    needs_targets: bool = True

    def values(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """(M,) mean binary cross-entropy of each row."""
        goal, counted = _shares(targets, outputs)
        found = functional.binary_cross_entropy_with_logits(outputs, goal, reduction="none")
        return _counted(found, counted).mean(-1)

    def gradient(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Sigmoid minus target, over the number of outputs."""
        goal, counted = _shares(targets, outputs)
        return _counted(outputs.sigmoid() - goal, counted) / outputs.shape[-1]

    def divergence(self, outputs: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Mean KL divergence of the two-class distributions, from the reference to the outputs."""
        share = reference.sigmoid()
        yes = share * (functional.logsigmoid(reference) - functional.logsigmoid(outputs))
        no = (1.0 - share) * (functional.logsigmoid(-reference) - functional.logsigmoid(-outputs))
        return (yes + no).mean(-1)

    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """The change times the root of p (1 - p) / C; zero for ignored targets."""
        share = outputs.sigmoid()
        root = (share * (1.0 - share) / outputs.shape[-1]).sqrt()
        return _counted(root * change, None if targets is None else value_rows(targets, outputs)[1])

    def probe(self, outputs: Tensor, targets: Tensor | None, signs: Tensor) -> Tensor:
        """The signs times the root of p (1 - p) / C."""
        return self.features(signs, outputs, targets)


def value_rows(targets: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """(M, C) targets aligned with output rows, and (M, C) which of them count, or None if all do.

    Raises:
        InvalidBatches: when targets do not fit the outputs.
    """
    rows, columns = outputs.shape
    if targets.numel() != rows * columns or targets.is_complex():
        raise InvalidBatches(
            f"targets of shape {tuple(targets.shape)} do not fit outputs of shape {(rows, columns)}: give one number "
            "for every output"
        )
    moved = targets.movedim(1, -1) if targets.ndim > 2 and columns > 1 else targets
    goal = moved.reshape(rows, columns)
    if goal.is_floating_point() or goal.dtype == torch.bool:
        return goal.to(outputs.dtype), None
    counted = goal != IGNORED
    return torch.where(counted, goal, 0).to(outputs.dtype), counted


def binary_labels(targets: Tensor | None, outputs: Tensor) -> Tensor | None:
    """(M C,) labels 0 and 1, and -100 for ignored ones, one for every output; None for other targets."""
    if targets is None or targets.numel() != outputs.numel():
        return None
    goal, counted = value_rows(targets, outputs)
    if bool(((goal != 0) & (goal != 1)).any()):
        return None
    labels = goal.long() if counted is None else torch.where(counted, goal.long(), IGNORED)
    return labels.reshape(-1)


def _shares(targets: Tensor | None, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
    if targets is None:
        raise InvalidBatches("this loss needs targets; give (inputs, targets) batches or loss='squared-error'")
    goal, counted = value_rows(targets, outputs)
    if bool(((goal < 0) | (goal > 1)).any()):
        raise InvalidBatches(
            f"targets of the binary cross-entropy must be between 0 and 1; got {float(goal.min()):g} to "
            f"{float(goal.max()):g}; use loss='squared-error' for other numbers"
        )
    return goal, counted


def _counted(rows: Tensor, counted: Tensor | None) -> Tensor:
    return rows if counted is None else rows * counted

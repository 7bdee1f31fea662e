"""Chooses the loss that fits a network's outputs and targets, and refuses one that does not."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from qubo_compress.calibration.examples import Examples
from qubo_compress.errors import InvalidBatches, InvalidModel
from qubo_compress.network.inputs import IGNORED
from qubo_compress.network.losses.classification import AUTO, LossLike, make_loss
from qubo_compress.network.scores import sums_to_one

logger = logging.getLogger(__name__)


def fitting_loss(loss: LossLike, examples: Examples, repeats: int, columns: int) -> LossLike:
    """The given loss, or the one that ``"auto"`` stands for.

    ========================= ===================================== ==========================
    outputs of a row          targets                               ``"auto"``
    ========================= ===================================== ==========================
    one                       none                                  ``"squared-error"`` from the original's outputs
    one                       0 and 1 only                          ``"binary-cross-entropy"``
    one                       other numbers                         ``"squared-error"``
    several                   none                                  ``"kl"``
    several                   classes, or shares that sum to one    ``"cross-entropy"``
    several                   as many numbers, 0 and 1 only         ``"binary-cross-entropy"``
    several                   as many numbers                       ``"squared-error"``
    ========================= ===================================== ==========================

    Args:
        loss: a name, ``"auto"`` or a function, which is returned unchanged.
        examples: with targets whose classes are on axis 1.
        repeats: output rows of one example, of the first slice.
        columns: outputs in a row.

    Raises:
        UnknownName: for a name that no loss has.
        InvalidModel: for a loss between classes, and a single output.
        InvalidBatches: for targets that are not probabilities under the cross-entropy, and if all labels are ignored.
    """
    if callable(loss):
        return loss
    if loss != AUTO:
        make_loss(loss)
    targets = [part.targets for part in examples.slices if part.targets is not None]
    _refuse_all_ignored(targets)
    fitting = _fitting(columns, targets, _as_many(examples, repeats * columns))
    if loss == AUTO:
        logger.info("loss='auto': %d output(s) in a row%s, so %s", columns, _described(targets), fitting)
        return fitting
    if columns == 1 and loss in ("cross-entropy", "kl"):
        raise InvalidModel(
            f"loss={loss!r} compares classes, and this network has one output in a row, whose softmax is constant; use "
            f"loss={fitting!r}, or 'auto'"
        )
    if loss == "cross-entropy" and fitting in ("squared-error", "binary-cross-entropy") and targets:
        raise InvalidBatches(
            "the cross-entropy needs classes, or probabilities that are not negative and sum to one; these targets are "
            f"neither: use loss={fitting!r}, or 'auto'"
        )
    return loss


def _refuse_all_ignored(targets: list[Tensor]) -> None:
    whole = [t for t in targets if not t.is_floating_point() and t.dtype != torch.bool]
    if whole and len(whole) == len(targets) and not any(bool((t != IGNORED).any()) for t in whole):
        raise InvalidBatches(
            f"every label is {IGNORED}, which means ignored, so no example says anything; give examples with labels, "
            "or batches without targets"
        )


def _as_many(examples: Examples, outputs: int) -> bool:
    """Whether there is one target for every output of an example, not one for every row."""
    part = examples.slices[0]
    return part.targets is not None and part.targets.numel() == outputs * len(part)


def _fitting(columns: int, targets: list[Tensor], as_many: bool) -> str:
    if not targets:
        return "squared-error" if columns == 1 else "kl"
    zero_or_one = all(bool(((t == 0) | (t == 1) | (t == IGNORED)).all()) for t in targets)
    if columns == 1:
        return "binary-cross-entropy" if zero_or_one else "squared-error"
    floating = all(t.is_floating_point() for t in targets)
    if not as_many:
        return "cross-entropy"
    if all(sums_to_one(t.double(), 1) for t in targets):
        return "cross-entropy"
    if not floating and not zero_or_one:
        return "cross-entropy"
    return "binary-cross-entropy" if zero_or_one else "squared-error"


def _described(targets: list[Tensor]) -> str:
    return f" and targets {tuple(targets[0].shape[1:])} {targets[0].dtype}" if targets else ", no targets"

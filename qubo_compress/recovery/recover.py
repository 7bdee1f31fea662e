"""The recovery of a compressed network: statistics and biases always, fine-tuning on request."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress._internal.checks import whole
from qubo_compress.calibration.evaluation import outputs_of, settle
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.errors import InvalidBudget, InvalidObjective, NonFiniteLoss, WrongModel
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import state_entries
from qubo_compress.network.losses.classification import AUTO, CrossEntropy, KullbackLeibler, Loss, LossLike, make_loss
from qubo_compress.network.private import CARRIED, differentiable, independent_copy, private_copy
from qubo_compress.network.scores import OutputLike, OutputReading
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.plan import Compression, compression_of, fill
from qubo_compress.recovery.objectives import RecoveryObjective, apart, make_objective, needs_labels
from qubo_compress.recovery.reading import disturbance
from qubo_compress.recovery.splicing import Splicing
from qubo_compress.recovery.statistics import METHODS, matched_statistics
from qubo_compress.recovery.training import LEARNING_RATE, Objective, fine_tuned

logger = logging.getLogger(__name__)


@torch.inference_mode(False)  # in which no gradients can be taken, nor writes be noticed
def recover(
    small: nn.Module,
    batches: Iterable[Any] | Examples,
    teacher: nn.Module,
    epochs: int = 0,
    seed: int = 0,
    *,
    max_examples: int = 2048,
    learning_rate: float = LEARNING_RATE,
    splicing: bool = False,
    progress: bool = True,
    noise: bool = False,
    objective: str | RecoveryObjective | Objective = "distillation",
    loss: LossLike = AUTO,
    output: OutputLike = None,
    class_axis: int | None = None,
    batch_size: int | None = None,
) -> nn.Module:
    """Repair a compressed network within its plan: the same choices, the same bytes.

    With ``epochs=0`` normalisation statistics and biases are matched to the teacher's outputs. With
    ``epochs > 0`` all stored values are then fine-tuned with masks fixed (except under ``splicing``) and
    straight-through quantization, for what ``objective`` asks. A repair of the statistics that moves the outputs
    further from the teacher's on the calibration examples is not kept; what was fine-tuned is always returned.
    Nothing is written, so that a recovery that is interrupted begins anew.

    Args:
        small: made by ``plan.apply`` or ``load``; left as it is.
        batches: calibration batches.
        teacher: the original network; left as it is.
        epochs: passes over the examples; 0: statistics and biases only.
        seed: of the order of the examples.
        max_examples: reading the batches stops there.
        learning_rate: of Adam, after a short warm-up; it falls to zero along a cosine.
        splicing: while fine-tuning, let pruned weights and coefficients return in place of others: see
            :class:`~qubo_compress.recovery.splicing.Splicing`. Bytes stay within the plan.
        progress: show a progress bar.
        noise: draw new read errors of weights in unreliable cells at every step of fine-tuning.
        objective: what fine-tuning minimises: ``"distillation"`` (labels and the teacher's probabilities), ``"plain"``
            (labels alone), ``"label-preserving"`` (above all, answer as the teacher does), settings such as
            :class:`qubo_compress.recovery.LabelPreserving`, or a function of (rows, teacher's rows, labels).
        loss: what the network is for; see :func:`qubo_compress.measure`. Repairs are judged by its divergence from
            the teacher, the KL divergence between classes and the squared difference of numbers, and ``"plain"`` and
            ``"distillation"`` minimise it.
        output: which part of what the networks return; see :func:`qubo_compress.measure`.
        class_axis: see :func:`qubo_compress.measure`.
        batch_size: examples that the networks are given at once; see :func:`qubo_compress.measure`. Steps of
            fine-tuning stay as large as they are: the gradients of several runs are added up.

    Returns:
        A new module in eval mode that carries the same plan.

    Raises:
        InvalidOption: for epochs or a seed below zero.
        InvalidBudget: for noise or splicing without epochs.
        WrongModel: when ``small`` carries no plan, or the teacher is another network.
        UnknownName, InvalidObjective: when there is no such objective, or it needs labels and there are none.
        NonFiniteLoss: when fine-tuning diverges.
    """
    epochs, seed = whole("epochs", epochs), whole("seed", seed)
    if noise and not epochs:
        raise InvalidBudget("noise=True concerns fine-tuning; give epochs of at least 1")
    if splicing and epochs == 0:
        raise InvalidBudget("splicing moves masks while the network is fine-tuned; give epochs of at least 1")
    small, teacher = unwrapped(small), private_copy(unwrapped(teacher))
    compression = compression_of(small)
    _refuse_other_network(small, teacher)
    make_objective(objective)  # a misspelt name must not be noticed only after the networks have run
    device = next((t.device for t in (*small.parameters(), *small.buffers())), torch.device("cpu"))
    examples = read_examples(batches, max_examples, batch_size, OutputReading(output, class_axis)).to(device)
    if epochs:
        refuse_missing_labels(objective, examples)
    examples, loss = settle(teacher, examples, loss)
    task = make_loss(loss)
    asked = make_objective(objective, task if epochs else None)
    reference = outputs_of(teacher, examples)
    best, least = small, _distance(small, examples, task, reference)
    for method in METHODS:
        candidate = independent_copy(small)
        stored = matched_statistics(candidate, compression, teacher, examples, method)
        repaired = _rebuilt(small, compression, stored)
        distance = _distance(repaired, examples, task, reference)
        logger.info("recovery by %s: divergence %.4g, before %.4g", method, distance, least)
        if distance < least:
            best, least = repaired, distance
    if epochs:
        best = _tuned(
            best, teacher, examples, epochs=epochs, seed=seed, learning_rate=learning_rate, progress=progress,
            objective=asked, align=None if _of_classes(task) else _as_they_came,
            disturb=disturbance(seed) if noise else None,
            afterwards=Splicing(teacher, seed) if splicing else None,
        )  # fmt: skip
    return independent_copy(best).eval()


def _refuse_other_network(small: nn.Module, teacher: nn.Module) -> None:
    """Raise :class:`WrongModel` for a teacher whose tensors are not those of the compressed network."""
    ours, theirs = (
        {name: entry.tensor.shape for name, entry in state_entries(model)[0].items()} for model in (small, teacher)
    )
    different = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if different:
        raise WrongModel(
            f"the teacher is another network than the one that was compressed: they differ in {different[0]} "
            f"({_shape(ours.get(different[0]))} and {_shape(theirs.get(different[0]))}); give the original network"
        )


def _shape(shape: torch.Size | None) -> str:
    return "not there" if shape is None else " x ".join(map(str, shape)) or "one number"


def _distance(model: nn.Module, examples: Examples, loss: Loss, reference: list[Tensor]) -> float:
    """Mean divergence from the teacher's outputs, in the geometry of the loss."""
    total = 0.0
    for part, rows, goal in zip(examples.slices, outputs_of(model, examples), reference, strict=True):
        weights = examples.row_weights(part, rows.shape[0]).to(rows.device)
        total += float((apart(loss, rows, part.targets, goal).double() * weights).sum())
    return total


def _of_classes(loss: Loss) -> bool:
    return isinstance(loss, (CrossEntropy, KullbackLeibler))


def _as_they_came(targets: Tensor | None, _: Tensor) -> Tensor | None:
    return targets


def refuse_unfit_objective(objective: str | RecoveryObjective | Objective, loss: LossLike) -> None:
    """Raise :class:`InvalidObjective` where an objective compares classes and the loss does not."""
    make_objective(objective, make_loss(loss))


def refuse_missing_labels(objective: str | RecoveryObjective | Objective, examples: Examples) -> None:
    """Raise :class:`InvalidObjective` where an objective needs labels and there are none."""
    if needs_labels(objective) and not examples.labelled:
        raise InvalidObjective(
            f"the objective {objective!r} needs labels and the batches have none; give (inputs, targets) batches, "
            "or an objective that does without: 'distillation' or 'label-preserving'"
        )


def _tuned(
    start: nn.Module, teacher: nn.Module, examples: Examples, *, learning_rate: float, **options: Any
) -> nn.Module:
    compression = compression_of(start)
    stored = fine_tuned(
        differentiable(independent_copy(start)), compression, teacher, examples, learning_rate=learning_rate, **options
    )
    tuned = _rebuilt(start, compression, stored)
    if not all(bool(torch.isfinite(t).all()) for t in compression_of(tuned).tensors().values()):
        raise NonFiniteLoss(f"fine-tuning diverged at learning rate {learning_rate}; use a smaller one")
    return tuned


def _rebuilt(small: nn.Module, compression: Compression, stored: Mapping[str, Stored]) -> nn.Module:
    """A copy of ``small`` that holds other stored values and carries them."""
    changed = compression.with_stored(stored)
    made = independent_copy(small)
    fill(made, changed.tensors())
    setattr(made, CARRIED, changed)
    return made

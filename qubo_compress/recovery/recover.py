"""The recovery of a compressed network: statistics and biases always, fine-tuning on request."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from qubo_compress._internal.checks import refuse_unknown, whole
from qubo_compress.calibration.evaluation import EvaluationOptions, outputs_of, settle
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.errors import (
    InvalidBatches,
    InvalidBudget,
    InvalidObjective,
    InvalidOption,
    WrongModel,
    unknown_name,
)
from qubo_compress.network.channels.removal import removals_of
from qubo_compress.network.losses.classification import AUTO, Loss, LossLike, make_loss
from qubo_compress.network.private import differentiable, independent_copy, private_copy
from qubo_compress.network.scores import OutputLike, OutputReading
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.plan import compression_of, filled
from qubo_compress.recovery.objectives import RecoveryObjective, apart, make_objective, needs_labels
from qubo_compress.recovery.reading import disturbance
from qubo_compress.recovery.reconstruction import SEGMENTS, can_be_reconstructed, reconstructed
from qubo_compress.recovery.splicing import Splicing
from qubo_compress.recovery.statistics import METHODS, matched_statistics
from qubo_compress.recovery.training import (
    LEARNING_RATE,
    Augmentation,
    Objective,
    Training,
    diverged,
    fine_tuned,
    objective_of,
)
from qubo_compress.recovery.trellis_steps import has_trained_steps
from qubo_compress.sensitivity.progress import progress_bar

logger = logging.getLogger(__name__)

HELD_OUT = 0.2
"""Share of the examples that judge a fine-tuning of codes and take no part in it."""

RATES = (1.0, 0.25, 1 / 16)
"""Shares of the learning rate that are tried until fine-tuning lowers its objective."""


class RecoveryOptions(EvaluationOptions, total=False):
    """Keyword arguments of :func:`recover`: how to run networks, read their outputs, and fine-tune."""

    learning_rate: float
    splicing: bool
    noise: bool
    objective: str | RecoveryObjective | Objective
    augment: Augmentation | None
    frozen: Iterable[str]
    reconstruct: bool


@dataclass(frozen=True)
class _Settings:
    """The options of :func:`recover` with defaults filled in."""

    learning_rate: float = LEARNING_RATE
    splicing: bool = False
    noise: bool = False
    objective: str | RecoveryObjective | Objective = "distillation"
    augment: Augmentation | None = None
    frozen: Iterable[str] = ()
    reconstruct: bool = False
    loss: LossLike = AUTO
    output: OutputLike = None
    class_axis: int | None = None
    batch_size: int | None = None

    def refuse_without_epochs(self) -> None:
        """Raise :class:`InvalidBudget` for options that only affect fine-tuning."""
        if self.noise:
            raise InvalidBudget("noise=True concerns fine-tuning; give epochs of at least 1")
        if self.augment is not None:
            raise InvalidBudget("augment changes the examples of fine-tuning; give epochs of at least 1")
        if self.splicing:
            raise InvalidBudget("splicing moves masks while the network is fine-tuned; give epochs of at least 1")

    def training(self, epochs: int, seed: int, teacher: nn.Module, task: Loss, frozen: frozenset[str]) -> Training:
        """The settings of fine-tuning."""
        return Training(
            epochs, seed, self.learning_rate, make_objective(self.objective, task),
            align=None if task.of_classes else _as_they_came,
            disturb=disturbance(seed) if self.noise else None,
            afterwards=Splicing(teacher, seed) if self.splicing else None, augment=self.augment,
            frozen=frozen,
        )  # fmt: skip


@torch.inference_mode(False)  # inference mode allows no gradients and hides writes
def recover(
    small: nn.Module,
    batches: Iterable[Any] | Examples,
    teacher: nn.Module,
    epochs: int = 0,
    seed: int = 0,
    *,
    max_examples: int = 2048,
    progress: bool = True,
    **options: Unpack[RecoveryOptions],
) -> nn.Module:
    """Repair a compressed network within its plan: the same choices, the same bytes.

    With ``epochs=0``, normalisation statistics and biases are matched to the teacher's outputs. With
    ``epochs > 0``, all stored values are then fine-tuned for the ``objective``, with straight-through quantization and
    fixed masks (except with ``splicing``). A repair of the statistics that moves the outputs
    further from the teacher's on the calibration examples is not kept. Neither is a fine-tuning that raises its
    objective on them: a quarter and a sixteenth of the learning rate are tried instead (not with ``splicing`` or
    ``noise``, whose objectives are others). Codes of ``trellis`` stay, and their steps are trained (see
    :mod:`qubo_compress.recovery.trellis_steps`); a fifth of the examples then only judges.
    Nothing is written, so an interrupted recovery starts over.

    Args:
        small: made by ``plan.apply`` or ``load``; not changed.
        batches: calibration batches.
        teacher: the original network; not changed.
        epochs: passes over the examples; 0: statistics and biases only.
        seed: of the order of the examples.
        max_examples: most examples read from the batches.
        progress: show progress bars; where output is piped, a line every few seconds.
        options: further settings of fine-tuning, and how the networks are run.

            - ``learning_rate``: of Adam, after a short warm-up; it falls to zero along a cosine.
            - ``splicing``: while fine-tuning, let pruned weights and coefficients replace others: see
              :class:`~qubo_compress.recovery.splicing.Splicing`. Bytes stay within the plan.
            - ``noise``: draw new read errors of weights in unreliable cells at every step of fine-tuning.
            - ``objective``: what fine-tuning minimises: ``"distillation"`` (labels and the teacher's probabilities),
              ``"plain"`` (labels alone), ``"label-preserving"`` (above all, the teacher's answers), settings such
              as :class:`qubo_compress.recovery.LabelPreserving` or
              :class:`qubo_compress.recovery.Distillation`, or a function of (rows, teacher's rows, labels).
            - ``augment``: a function of a batch's inputs that returns as many others, such as a ``Compose`` of
              ``torchvision.transforms.v2``: moved and mirrored images, for example. Both networks see them. What it
              draws from torch's generator is repeated with the seed.
            - ``frozen``: groups that stay as they are stored, by name or by a regular expression that fits all of it,
              such as ``["classifier.weight", "embeddings.*"]``. Everything else is repaired and fine-tuned, what
              ``table.leave_alone`` kept included. Not with ``splicing``.
            - ``reconstruct``: also store compensated choices again, layer after layer, for the inputs that the
              compressed network gives them: see :mod:`qubo_compress.recovery.reconstruction`. Kept if the outputs are
              then nearer to the teacher's on the calibration examples.
            - ``loss``: the network's task loss; see :func:`qubo_compress.measure`. Repairs are judged by the divergence
              from the teacher, the KL divergence for classes and the squared difference for numbers;
              ``"plain"`` and ``"distillation"`` minimise the loss.
            - ``output``, ``class_axis``: how outputs are read; see :func:`qubo_compress.measure`.
            - ``batch_size``: examples per run of the networks; see :func:`qubo_compress.measure`. It does not change
              the steps of fine-tuning: the gradients of several runs are added up.

    Returns:
        A new module in eval mode that carries the same plan.

    Raises:
        InvalidOption: for epochs or a seed below zero, or when everything is frozen.
        InvalidBudget: for noise, splicing or augment without epochs.
        WrongModel: if ``small`` carries no plan, or the teacher is another network.
        UnknownName, InvalidObjective: if there is no such objective or frozen group, or it needs labels and there are
            none.
        NonFiniteLoss: if fine-tuning diverges.
    """
    refuse_unknown(recover, options, RecoveryOptions.__annotations__)
    epochs, seed = whole("epochs", epochs), whole("seed", seed)
    settings = _Settings(**options)
    if not epochs:
        settings.refuse_without_epochs()
    small, teacher = unwrapped(small), private_copy(unwrapped(teacher))
    compression = compression_of(small)
    _refuse_other_network(small, teacher)
    make_objective(settings.objective)  # refuses a misspelt name before the networks run
    frozen = _named(settings.frozen, [group.name for group in compression.layout.groups])
    if frozen and settings.splicing:
        raise InvalidOption("splicing moves the masks of all groups; give either it or frozen")
    if len(frozen) == len(compression.layout.groups):
        raise InvalidOption(f"frozen names all {len(frozen)} groups, so nothing is left to recover; name fewer")
    reading = OutputReading(settings.output, settings.class_axis)
    examples = read_examples(batches, max_examples, settings.batch_size, reading)
    examples = examples.to(NetworkTensors(small).device)
    if epochs:
        refuse_missing_labels(settings.objective, examples)
    examples, loss = settle(teacher, examples, settings.loss)
    task = make_loss(loss)
    training = settings.training(epochs, seed, teacher, task, frozen) if epochs else None
    best = _repaired(small, teacher, examples, task, frozen, progress)
    if settings.reconstruct and can_be_reconstructed(compression):
        best = _reconstructed(best, teacher, examples, task, frozen, progress)
    if training is not None:
        best = _tuned(best, teacher, examples, training, progress)
    return independent_copy(best).eval()


def _named(patterns: Iterable[str], names: Sequence[str]) -> frozenset[str]:
    """The groups that names and regular expressions fit.

    Raises:
        UnknownName: when one fits none.
    """
    found: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        fitting = [name for name in names if name == pattern or re.fullmatch(pattern, name)]
        if not fitting:
            raise unknown_name("group", pattern, names)
        found.update(fitting)
    return frozenset(found)


def _repaired(
    small: nn.Module, teacher: nn.Module, examples: Examples, task: Loss, frozen: frozenset[str], progress: bool
) -> nn.Module:
    """The network with matched statistics and biases, by the method that is best; itself if none helps."""
    compression = compression_of(small)
    passes = 2 + 2 * len(METHODS)
    with progress_bar(progress, "repairing", passes * examples.count) as advance:
        reference = outputs_of(teacher, examples, advance)
        best, least = small, _distance(outputs_of(small, examples, advance), examples, task, reference)
        for method in METHODS:
            candidate = independent_copy(small)
            stored = matched_statistics(candidate, compression, teacher, examples, method, frozen)
            advance(examples.count)
            repaired = filled(small, compression.with_stored(stored))
            distance = _distance(outputs_of(repaired, examples, advance), examples, task, reference)
            logger.info("repair by %s: divergence %.4g, before %.4g", method, distance, least)
            if distance < least:
                best, least = repaired, distance
    return best


def _reconstructed(
    start: nn.Module, teacher: nn.Module, examples: Examples, task: Loss, frozen: frozenset[str], progress: bool
) -> nn.Module:
    """The network with layers stored again for their own inputs, and repaired; itself if that is no better."""
    compression = compression_of(start)
    with progress_bar(progress, "reconstructing", (1 + SEGMENTS) * examples.count) as advance:
        reference = outputs_of(teacher, examples, advance)
        stored = reconstructed(independent_copy(start), compression, teacher, examples, frozen, advance)
    if not stored:
        return start
    found = _repaired(filled(start, compression.with_stored(stored)), teacher, examples, task, frozen, progress)
    before, after = (_distance(outputs_of(net, examples), examples, task, reference) for net in (start, found))
    logger.info("%d groups were stored again: divergence %.4g, before %.4g", len(stored), after, before)
    return found if after < before else start


def _refuse_other_network(small: nn.Module, teacher: nn.Module) -> None:
    """Raise :class:`WrongModel` for a teacher whose tensors are not those of the compressed network."""
    for removal in removals_of(small)[len(removals_of(teacher)) :]:
        teacher = removal.applied(teacher)  # only for its shapes
    ours, theirs = ({n: tensor.shape for n, tensor in NetworkTensors(net).items()} for net in (small, teacher))
    different = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if different:
        raise WrongModel(
            f"the teacher is another network than the one that was compressed: they differ in {different[0]} "
            f"({_shape(ours.get(different[0]))} and {_shape(theirs.get(different[0]))}); give the original network"
        )


def _shape(shape: torch.Size | None) -> str:
    return "not there" if shape is None else " x ".join(map(str, shape)) or "one number"


def _distance(outputs: list[Tensor], examples: Examples, loss: Loss, reference: list[Tensor]) -> float:
    """Mean divergence from the teacher's outputs, in the geometry of the loss."""
    rows = zip(examples.slices, outputs, reference, strict=True)
    return examples.mean(apart(loss, found, part.targets, goal) for part, found, goal in rows)


def _as_they_came(targets: Tensor | None, _: Tensor) -> Tensor | None:
    return targets


def refuse_unfit_objective(objective: str | RecoveryObjective | Objective, loss: LossLike) -> None:
    """Raise :class:`InvalidObjective` if an objective compares classes and the loss does not."""
    make_objective(objective, make_loss(loss))


def refuse_missing_labels(objective: str | RecoveryObjective | Objective, examples: Examples) -> None:
    """Raise :class:`InvalidObjective` if an objective needs labels and there are none."""
    if needs_labels(objective) and not examples.labelled:
        raise InvalidObjective(
            f"the objective {objective!r} needs labels and the batches have none; give (inputs, targets) batches, "
            "or an objective that does without: 'distillation' or 'label-preserving'"
        )


def _tuned(start: nn.Module, teacher: nn.Module, examples: Examples, training: Training, progress: bool) -> nn.Module:
    """The network after fine-tuning; at a smaller rate, or as it was, if the objective rose on its own examples.

    Adam's first steps are as large for a gradient of noise as for any other. In a ResNet of 56 layers that nothing had
    compressed, eight of them at the usual rate took the accuracy from 91.6 to 30.4 %. In networks with codes of a
    trellis, where an error of the weights is large already, some examples are held out, and the objective must not rise
    on these either.
    """
    compression = compression_of(start)
    divided = training.comparable and any(map(has_trained_steps, compression.stored.values()))
    learned, judging = _divided(examples) if divided else (examples, [examples])
    before = [objective_of(start, teacher, part, training, progress) for part in judging]
    for share in RATES if training.comparable else RATES[:1]:
        slower = replace(training, learning_rate=share * training.learning_rate)
        network = differentiable(independent_copy(start))
        stored = fine_tuned(network, compression, teacher, learned, slower, progress)
        if not all(bool(torch.isfinite(tensor).all()) for packed in stored.values() for tensor in packed.tensors()):
            raise diverged(slower)
        tuned = filled(start, compression.with_stored(stored))
        after = [objective_of(tuned, teacher, part, training, progress) for part in judging]
        logger.info(
            "fine-tuned at rate %.2g: objective %s, before %s", slower.learning_rate, _told(after), _told(before)
        )
        if not training.comparable or all(new <= old for new, old in zip(after, before, strict=True)):
            return tuned
    logger.warning("fine-tuning raised its own objective at every rate tried; the network stays as it was before")
    return start


def _divided(examples: Examples) -> tuple[Examples, list[Examples]]:
    """The examples to learn, and the sets that judge: these, and those held out, if there are enough."""
    try:
        learned, others = examples.split(HELD_OUT)
    except InvalidBatches:
        return examples, [examples]
    return learned, [learned, others]


def _told(values: Sequence[float]) -> str:
    return ", on others ".join(f"{value:.4g}" for value in values)

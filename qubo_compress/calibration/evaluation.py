"""Loss and accuracy of a network on examples."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.calibration.fitting_loss import fitting_loss
from qubo_compress.calibration.passes import shown
from qubo_compress.errors import InvalidBatches
from qubo_compress.network.inputs import map_tensors, tensors_of
from qubo_compress.network.losses.classification import (
    AUTO,
    BinaryCrossEntropy,
    LossLike,
    class_targets,
    make_loss,
    target_rows,
)
from qubo_compress.network.losses.regression import binary_labels
from qubo_compress.network.private import private_copy
from qubo_compress.network.replay import run_model
from qubo_compress.network.scores import OutputLike, OutputReading, predicted
from qubo_compress.network.tensors import NetworkTensors

logger = logging.getLogger(__name__)

ALL_EXAMPLES = 1 << 62


class OutputOptions(TypedDict, total=False):
    """Keyword arguments that determine how a network's outputs are read; see :func:`qubo_compress.measure`."""

    output: OutputLike
    class_axis: int | None


class EvaluationOptions(OutputOptions, total=False):
    """Keyword arguments that determine how a network is evaluated on batches; see :func:`qubo_compress.measure`."""

    loss: LossLike
    batch_size: int | None


@dataclass(frozen=True)
class Score:
    """Loss and accuracy of a network on some examples.

    Attributes:
        loss: weighted mean loss.
        accuracy: share of rows whose largest output is the target, in 0 to 1; NaN without class targets.
        examples: how many there were.
    """

    loss: float
    accuracy: float
    examples: int


def outputs_of(model: nn.Module, examples: Examples, advance: Callable[[float], None] | None = None) -> list[Tensor]:
    """Output rows of a model in eval mode, slice by slice, on its own device.

    Args:
        model: the network, unchanged.
        examples: to run it on.
        advance: called with the number of examples just run, for a progress bar.
    """
    device = NetworkTensors(model).device
    reading, found, network = examples.reading, [], private_copy(model)
    with torch.no_grad():
        # Slice by slice: all examples together may not fit on the device.
        for part in examples.slices:
            answer = run_model(network, map_tensors(part.inputs, lambda t: t.to(device)))
            reading = reading.settled_on(answer, len(part), tensors_of(part.inputs), part.targets)
            found.append(reading.rows(answer))
            if advance is not None:
                advance(len(part))
    return found


def settle(model: nn.Module, examples: Examples, loss: LossLike = AUTO) -> tuple[Examples, LossLike]:
    """Examples that record how this network's outputs are read, and the loss that fits them, checked.

    So everything that runs the network on these examples reads its outputs in the same way, and runs it on the batches
    as given, or joined and split if that changes nothing: see :mod:`qubo_compress.calibration.passes`. Class
    probabilities among the targets get torch's layout, with the classes along axis 1. Settled examples are returned
    unchanged.

    Args:
        model: the network, which is shown the first examples; unchanged.
        examples: as read.
        loss: a name, ``"auto"`` or a function.

    Raises:
        InvalidModel: when the output or the class axis is ambiguous, or the loss does not fit.
        InvalidBatches, UnknownName: see :func:`qubo_compress.calibration.fitting_loss.fitting_loss`.
    """
    if isinstance(loss, str) and loss != AUTO:
        make_loss(loss)  # a misspelt name must fail before the network runs
    known = examples.reading
    if known.settled and loss != AUTO:
        return examples, loss
    seen = shown(model, examples)
    reading, count = seen.reading, len(seen.part)
    tensor, rows = reading.tensor(seen.answer), reading.rows(seen.answer)
    if reading.output is not None and known.output is None:
        logger.info("the network returns %s; its output %r is taken", type(seen.answer).__name__, reading.output)
    if tensor.ndim > 2 and known.class_axis is None:
        logger.info("outputs of shape %s: classes along axis %s", tuple(tensor.shape), reading.class_axis)
    settled = seen.examples if known.settled else _laid_out(replace(seen.examples, reading=reading), tensor, loss)
    return settled, fitting_loss(loss, settled, rows.shape[0] // count, rows.shape[1])


def read_settled(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossLike = AUTO,
    output: OutputLike = None,
    class_axis: int | None = None,
    batch_size: int | None = None,
) -> tuple[Examples, LossLike]:
    """All examples of some batches, settled on a network's outputs, and the loss that fits them; see :func:`settle`."""
    read = read_examples(batches, ALL_EXAMPLES, batch_size, OutputReading(output, class_axis))
    return settle(model, read, loss)


def _laid_out(examples: Examples, outputs: Tensor, loss: LossLike) -> Examples:
    """Targets of the outputs' own shape with the classes along axis 1; a caller's loss gets them unchanged."""
    axis, shape = examples.reading.class_axis, tuple(outputs.shape)
    if axis is None or callable(loss):
        return examples
    placed = axis % outputs.ndim

    def moved(targets: Tensor | None) -> Tensor | None:
        same = targets is not None and targets.ndim == len(shape) > 2 and targets.shape[placed] == shape[placed]
        return targets.movedim(placed, 1) if targets is not None and same and placed != 1 else targets

    return replace(examples, slices=tuple(replace(part, targets=moved(part.targets)) for part in examples.slices))


def score_examples(
    model: nn.Module, examples: Examples, loss: LossLike = AUTO, reference: list[Tensor] | None = None
) -> Score:
    """Score a model on examples already read; ``reference`` are the original's outputs, for ``"kl"``."""
    given = examples.slices
    examples, loss = settle(model, examples, loss)
    if reference is not None and len(examples.slices) != len(given):
        # The examples were joined or split meanwhile, which happens only if all have equally many rows.
        each = sum(len(rows) for rows in reference) // examples.count
        reference = list(torch.split(torch.cat(reference), [each * len(part) for part in examples.slices]))
    checked = make_loss(loss)
    values: list[Tensor] = []
    right = rows = 0
    outputs = outputs_of(model, examples)
    for number, (part, found) in enumerate(zip(examples.slices, outputs, strict=True)):
        goal = None if part.targets is None else part.targets.to(found.device)
        against = found if reference is None else reference[number]
        values.append(checked.values(found, goal, against))
        if isinstance(checked, BinaryCrossEntropy):
            labels = binary_labels(goal, found)
            found = found.reshape(-1, 1)
        else:
            labels = _labels(goal, found) if class_targets(checked) else None
        if labels is not None:
            right += int(((predicted(found) == labels) & (labels >= 0)).sum())
            rows += int((labels >= 0).sum())
    return Score(examples.mean(values), right / rows if rows else math.nan, examples.count)


def _labels(targets: Tensor | None, rows: Tensor) -> Tensor | None:
    """(M,) class indices, if the targets are class indices."""
    if targets is None or targets.is_floating_point():
        return None
    found = target_rows(targets, rows)
    return found if found.ndim == 1 else None


def score(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossLike = AUTO,
    *,
    output: OutputLike = None,
    class_axis: int | None = None,
    batch_size: int | None = None,
) -> Score:
    """Loss and accuracy of a model on all examples of the batches.

    The loss is the mean over examples. If class labels are ignored (-100), or examples have different numbers of
    labels, it is the mean over all rows with a label, as in torch's ``CrossEntropyLoss``.

    Args:
        model: unchanged.
        batches: see :func:`qubo_compress.calibration.examples.read_examples`.
        loss: see :func:`qubo_compress.measure`.
        output: which part of the model's return value; see :func:`qubo_compress.measure`.
        class_axis: see :func:`qubo_compress.measure`.
        batch_size: examples run at once; see :func:`qubo_compress.measure`.

    Raises:
        InvalidBatches, InvalidModel, UnknownName.

    Example:
        >>> net = nn.Linear(2, 2); _ = net.weight.data.copy_(torch.eye(2))
        >>> score(net, [(torch.tensor([[5.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 1]))]).accuracy
        1.0
    """
    examples, loss = read_settled(model, batches, loss, output, class_axis, batch_size)
    if not examples.labelled and not callable(loss):
        raise InvalidBatches(
            "a score needs targets: without any, outputs could only be compared with another network's; give (inputs, "
            "targets) batches, or compare two networks by qubo_compress.audit"
        )
    return score_examples(model, examples, loss)

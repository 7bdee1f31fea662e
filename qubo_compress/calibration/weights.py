"""Example weights that make the long tail count when choices are measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qubo_compress.calibration.evaluation import ALL_EXAMPLES, outputs_of
from qubo_compress.calibration.examples import Examples, Slice, read_examples
from qubo_compress.errors import InvalidBatches, unknown_name
from qubo_compress.network.losses.classification import target_rows
from qubo_compress.network.scores import OutputLike, OutputReading, two_columns

CLASS_RANGE = 4.0
"""A class's loss changes its weight by at most this factor: few examples say little about a class."""


@dataclass(frozen=True)
class TailWeights:
    """How much more the tail counts.

    With m the margin (logit of the label minus the largest other one; without labels the largest minus the second), an
    example of class c has the weight

        (1 + margin exp(-max(m, 0) / s)) (L_c / L)^weak (N / (C n_c))^rare,   at most ``most`` times the mean

    with s the lower quartile of the positive margins, L_c the mean loss of the class, L the mean of these over the
    classes (L_c / L kept between 1/4 and 4), and n_c of N examples in C classes. All of these are computed from the
    examples. Margins are a proxy for memorization scores, which take very many trainings.

    Args:
        margin: how much examples near the decision boundary gain; None: 0 with labels, 1 without, when nothing else is
            known. On ResNet-20 at 12x a margin of 1 cost half a point to a
            point of accuracy, and weak classes alone raised the worst class at little cost
            (``benchmarks.studies.long_tail``).
        weak: exponent of the class's relative loss; 0: it has no effect.
        rare: exponent of the class's inverse share; 1: every class has the same total weight.
        most: largest weight, in multiples of the mean.

    Raises:
        InvalidBatches: when a value is negative, or ``most`` below 1.
    """

    margin: float | None = None
    weak: float = 1.0
    rare: float = 0.5
    most: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("margin", 0.0), ("weak", 0.0), ("rare", 0.0), ("most", 1.0)):
            value = getattr(self, name)
            if value is None and name == "margin":
                continue
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= least):
                raise InvalidBatches(f"{name} of the tail weights must be finite and at least {least:g}; got {value}")


Numbers = Sequence[float] | npt.NDArray[np.floating] | Tensor
ExampleWeights = str | TailWeights | Numbers


def tail_weights(
    model: nn.Module,
    batches: Iterable[Any],
    settings: TailWeights | None = None,
    *,
    max_examples: int = ALL_EXAMPLES,
    output: OutputLike = None,
    class_axis: int | None = None,
) -> Tensor:
    """(N,) float64 weights with mean one: more for weak and rare classes, and for small margins if asked or unlabelled.

    Args:
        model: the original network; unchanged.
        batches: see :func:`qubo_compress.calibration.examples.read_examples`. Without class labels only margins count.
        settings: how much the tail counts; default: ``TailWeights()``.
        max_examples: reading the batches stops there.
        output: which part of what forward returns holds the outputs; see :func:`qubo_compress.measure`.
        class_axis: of outputs with three or more axes; see :func:`qubo_compress.measure`.

    Example:
        >>> net = nn.Linear(2, 2, bias=False); _ = net.weight.data.copy_(torch.eye(2))
        >>> data = [(torch.tensor([[4.0, 0.0], [0.1, 0.0], [0.0, 4.0]]), torch.tensor([0, 0, 1]))]
        >>> weights = tail_weights(net, data, TailWeights(margin=1.0))
        >>> int(weights.argmax()), round(float(weights.mean()), 6)
        (1, 1.0)
    """
    examples = read_examples(batches, max_examples, reading=OutputReading(output, class_axis))
    return _tail(model, examples, settings or TailWeights())


def check_example_weights(given: ExampleWeights | None) -> None:
    """Raise :class:`UnknownName` for any name but ``"tail"``, before the network runs."""
    if isinstance(given, str) and given != "tail":
        raise unknown_name("example weights", given, ("tail",))


def with_example_weights(model: nn.Module, examples: Examples, given: ExampleWeights | None) -> Examples:
    """The examples with their weights multiplied by the given or computed ones.

    Raises:
        InvalidBatches: when numbers are not valid weights, or not one per example.
        UnknownName: for any name but ``"tail"``.
    """
    if given is None:
        return examples
    check_example_weights(given)
    if isinstance(given, str):
        given = TailWeights()
    factors = _tail(model, examples, given) if isinstance(given, TailWeights) else _numbers(given, examples.count)
    parts, start = [], 0
    for part in examples.slices:
        stop = start + len(part)
        parts.append(replace(part, weights=part.weights * factors[start:stop].to(part.weights.device)))
        start = stop
    total = float(sum(float(part.weights.sum()) for part in parts))
    if not total > 0:
        raise InvalidBatches("the example weights sum to zero; give at least one positive weight")
    slices = tuple(replace(part, weights=part.weights / total) for part in parts)
    return replace(examples, slices=slices)


def _numbers(given: Numbers, count: int) -> Tensor:
    try:
        found = torch.as_tensor(given).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as cause:
        raise InvalidBatches(f"example_weights must be numbers or 'tail'; got {type(given).__name__}") from cause
    if found.shape != (count,):
        raise InvalidBatches(
            f"example_weights must be one number for each of the {count} examples read; got shape {tuple(found.shape)}"
        )
    if not bool(torch.isfinite(found).all()) or bool((found < 0).any()):
        raise InvalidBatches("example_weights must be finite and not negative")
    return found


def _tail(model: nn.Module, examples: Examples, settings: TailWeights) -> Tensor:
    outputs = outputs_of(model, examples)
    margins, losses, classes = [], [], []
    for part, rows in zip(examples.slices, outputs, strict=True):
        margin, loss, label = _rows_of_slice(part, two_columns(rows.double().cpu()))
        # Outputs with further axes have several rows per example: the least sure row and the first label count.
        label = label.reshape(len(part), -1)
        known = label >= 0
        margins.append(margin.reshape(len(part), -1).amin(1))
        losses.append((loss.reshape(len(part), -1) * known).sum(1) / known.sum(1).clamp(min=1))
        classes.append(label.gather(1, known.int().argmax(1, keepdim=True))[:, 0])
    margin, loss, label = torch.cat(margins), torch.cat(losses), torch.cat(classes)
    positive = margin[(margin > 0) & torch.isfinite(margin)]
    scale = float(positive.quantile(0.25)) if positive.numel() else 1.0
    known = label >= 0
    near = settings.margin if settings.margin is not None else float(not bool(known.any()))
    weights = 1.0 + near * torch.exp(-margin.clamp(min=0) / max(scale, 1e-12))
    if bool(known.any()):
        found, number, counts = torch.unique(label[known], return_inverse=True, return_counts=True)
        sums = torch.zeros(len(found), dtype=torch.float64).index_add_(0, number, loss[known])
        class_loss = sums / counts
        relative = (class_loss / class_loss.mean().clamp(min=1e-12)).clamp(1 / CLASS_RANGE, CLASS_RANGE)
        share = counts.double() * len(found) / known.sum()
        weights[known] *= (relative**settings.weak * share**-settings.rare)[number]
    return _capped(weights, settings.most)


def _rows_of_slice(part: Slice, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M,) margin, loss and class of every output row; ignored rows have class -1, zero loss and an infinite margin."""
    goal = None
    if part.targets is not None and not (part.targets.is_floating_point() and part.targets.numel() == len(rows)):
        goal = target_rows(part.targets.cpu(), rows)
    if goal is None or goal.ndim > 1:
        first, second = rows.topk(2, dim=-1).values.unbind(-1) if rows.shape[-1] > 1 else (rows[:, 0], rows[:, 0])
        return first - second, torch.zeros(len(rows), dtype=torch.float64), torch.full((len(rows),), -1)
    known = goal.clamp(min=0)[:, None]
    own = rows.gather(1, known)[:, 0]
    others = rows.scatter(1, known, -math.inf).amax(1)
    margin = torch.where(torch.isfinite(others), own - others, torch.zeros_like(own))
    ignored = goal < 0
    loss = -rows.log_softmax(-1).gather(1, known)[:, 0]
    return margin.masked_fill(ignored, math.inf), loss.masked_fill(ignored, 0.0), goal.masked_fill(ignored, -1)


def _capped(weights: Tensor, most: float) -> Tensor:
    """Weights with mean one and none above ``most``, to the accuracy of a few rounds of clipping."""
    weights = weights / weights.mean()
    for _ in range(20):
        if float(weights.max()) <= most * (1 + 1e-9):
            break
        weights = weights.clamp(max=most)
        weights = weights / weights.mean()
    return weights

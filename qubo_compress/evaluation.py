"""Loss and accuracy of a network on examples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.examples import Examples, map_tensors, read_examples
from qubo_compress.sensitivity.losses import LossLike, make_loss, rows_of, target_rows
from qubo_compress.sensitivity.replay import run_model
from qubo_compress.substitution import evaluating

ALL_EXAMPLES = 1 << 62


@dataclass(frozen=True)
class Score:
    """How a network does on some examples.

    Attributes:
        loss: weighted mean loss.
        accuracy: share of rows whose largest output is the target, in 0 to 1; NaN without class targets.
        examples: how many there were.
    """

    loss: float
    accuracy: float
    examples: int


def outputs_of(model: nn.Module, examples: Examples) -> list[Tensor]:
    """Output rows of a model in eval mode, slice by slice, on its own device."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    with evaluating(model), torch.no_grad():
        # Slice by slice: all examples at once need not fit the device.
        return [rows_of(run_model(model, map_tensors(part.inputs, lambda t: t.to(device)))) for part in examples.slices]


def score_examples(
    model: nn.Module, examples: Examples, loss: LossLike = "cross-entropy", reference: list[Tensor] | None = None
) -> Score:
    """Score a model on examples already read; ``reference`` are the original's outputs, for ``"kl"``."""
    checked = make_loss(loss)
    total, right, rows = 0.0, 0, 0
    outputs = outputs_of(model, examples)
    for number, (part, found) in enumerate(zip(examples.slices, outputs, strict=True)):
        goal = None if part.targets is None else part.targets.to(found.device)
        against = found if reference is None else reference[number]
        values = checked.values(found, goal, against).double()
        repeats = found.shape[0] // len(part)
        weights = (part.weights / repeats).repeat_interleave(repeats).to(found.device)
        total += float((values * weights).sum())
        if goal is not None and not goal.is_floating_point():
            labels = target_rows(goal, found)
            right += int(((found.argmax(-1) == labels) & (labels >= 0)).sum())
            rows += int((labels >= 0).sum())
    return Score(total, right / rows if rows else math.nan, examples.count)


def score(model: nn.Module, batches: Iterable[Any], loss: LossLike = "cross-entropy") -> Score:
    """Loss and accuracy of a model on batches, all of them.

    Example:
        >>> net = nn.Linear(2, 2); _ = net.weight.data.copy_(torch.eye(2))
        >>> score(net, [(torch.tensor([[5.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 1]))]).accuracy
        1.0
    """
    return score_examples(model, read_examples(batches, ALL_EXAMPLES), loss)

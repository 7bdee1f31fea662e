"""The answers of two networks to the same examples, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.calibration.evaluation import ALL_EXAMPLES, outputs_of
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.calibration.intervals import NORMAL_95, paired_change, wilson
from qubo_compress.errors import InvalidBatches
from qubo_compress.network.losses.classification import target_rows
from qubo_compress.network.scores import predicted, two_columns


@dataclass(frozen=True, eq=False)
class Answers:
    """Both networks' answers, row by row: one row per example, or per position for outputs with further axes.

    Attributes:
        before, after: (M,) classes predicted.
        margin: (M,) the original's largest logit minus its second.
        confidence: (M,) the original's largest probability.
        labels: (M,) classes, -100 for rows to be ignored; or None.
    """

    before: Tensor
    after: Tensor
    margin: Tensor
    confidence: Tensor
    labels: Tensor | None

    @property
    def differ(self) -> Tensor:
        """(M,) whether the two answers differ."""
        return self.before != self.after

    @property
    def counted(self) -> Tensor:
        """(M,) whether a row has a label that counts."""
        if self.labels is None:
            return torch.zeros_like(self.before, dtype=torch.bool)
        return self.labels >= 0

    @property
    def right(self) -> Tensor:
        """(M,) whether the original is right."""
        return torch.zeros_like(self.counted) if self.labels is None else (self.before == self.labels) & self.counted

    @property
    def right_after(self) -> Tensor:
        """(M,) whether the compressed network is right."""
        return torch.zeros_like(self.counted) if self.labels is None else (self.after == self.labels) & self.counted

    @property
    def harmful(self) -> Tensor:
        """(M,) mismatches where the original was right."""
        return self.differ & self.right

    @property
    def repaired(self) -> Tensor:
        """(M,) mismatches where the compressed network is right."""
        return self.differ & self.right_after


@dataclass(frozen=True)
class Mismatches:
    """Mismatches by kind. Without labels, only ``total`` is known.

    Attributes:
        rows: predictions compared.
        total: answers that differ.
        interval: 95 % Wilson interval of their share.
        harmful: the original was right.
        repaired: the compressed network is right.
        both_wrong: both are wrong, each in its own way; ignored rows are in none of the three.
    """

    rows: int
    total: int
    interval: tuple[float, float]
    harmful: int | None = None
    repaired: int | None = None
    both_wrong: int | None = None

    @property
    def share(self) -> float:
        """Share of answers that differ."""
        return self.total / max(1, self.rows)


def count_mismatches(answers: Answers) -> Mismatches:
    """Count the harmful, repaired and other mismatches."""
    rows, total = answers.before.numel(), int(answers.differ.sum())
    found = Mismatches(rows, total, wilson(total, rows))
    if answers.labels is None:
        return found
    harmful, repaired = int(answers.harmful.sum()), int(answers.repaired.sum())
    both = int((answers.differ & answers.counted).sum()) - harmful - repaired
    return Mismatches(rows, total, found.interval, harmful, repaired, both)


def change_interval(answers: Answers, examples: Examples, rows: Sequence[int]) -> tuple[float, float]:
    """95 % interval of the change of the accuracy, from pairs of answers.

    Bonett and Price's for one answer per example. Answers within one example depend on each other: where there are
    several, the interval is normal, from the right answers that every example lost or gained.

    Args:
        answers: of both networks.
        examples: that they answer.
        rows: answers of every slice.
    """
    if answers.before.numel() == examples.count:
        return paired_change(int(answers.harmful.sum()), int(answers.repaired.sum()), int(answers.counted.sum()))
    moved, counted = answers.right_after.double() - answers.right.double(), answers.counted.double()
    columns = (torch.split(values, list(rows)) for values in (moved, counted))
    parts = zip(*columns, map(len, examples.slices), strict=True)
    sums = [(m.reshape(n, -1).sum(1), c.reshape(n, -1).sum(1)) for m, c, n in parts]
    moved, counted = (torch.cat(column) for column in zip(*sums, strict=True))
    total, used = float(counted.sum()), int((counted > 0).sum())
    change = float(moved.sum()) / max(1.0, total)
    if used < 2:
        return -1.0, 1.0
    # The standard error of a ratio of sums over examples.
    spread = float(((moved - change * counted) ** 2).sum()) * used / (used - 1)
    half = NORMAL_95 * math.sqrt(spread) / total
    return max(-1.0, change - half), min(1.0, change + half)


def answers_of(examples: Examples, before: list[Tensor], after: list[Tensor]) -> Answers:
    """Answers from the output rows of both networks, slice by slice."""
    rows = two_columns(torch.cat([part.cpu() for part in before]))
    best = rows.topk(min(2, rows.shape[-1]), dim=-1).values
    return Answers(
        before=rows.argmax(-1),
        after=torch.cat([predicted(part).cpu() for part in after]),
        margin=best[:, 0] - best[:, -1],
        confidence=rows.softmax(-1).amax(-1),
        labels=labels_of(examples, before),
    )


def labels_of(examples: Examples, outputs: list[Tensor]) -> Tensor | None:
    """(M,) class indices, or None if the batches have none."""
    found = []
    for part, rows in zip(examples.slices, outputs, strict=True):
        if part.targets is None or part.targets.is_floating_point():
            return None
        labels = target_rows(part.targets.cpu(), rows.cpu())
        if labels.ndim > 1:
            return None
        found.append(labels)
    return torch.cat(found)


def predictions(model: nn.Module, batches: Iterable[Any] | Examples) -> tuple[Tensor, Tensor | None]:
    """(M,) classes predicted on all batches, or on examples already read, and (M,) labels or None.

    Example:
        >>> net = nn.Linear(2, 2, bias=False); _ = net.weight.data.copy_(torch.eye(2))
        >>> predictions(net, [(torch.eye(2), torch.tensor([0, 0]))])
        (tensor([0, 1]), tensor([0, 0]))
    """
    examples = read_once(batches)
    outputs = outputs_of(model, examples)
    return torch.cat([predicted(rows).cpu() for rows in outputs]), labels_of(examples, outputs)


def read_once(batches: Iterable[Any] | Examples) -> Examples:
    """All examples of the batches; examples already read are returned as they are."""
    return batches if isinstance(batches, Examples) else read_examples(batches, ALL_EXAMPLES)


def population(models: Iterable[nn.Module], batches: Iterable[Any] | Examples) -> tuple[Tensor, Tensor | None]:
    """(K, M) classes that each of several networks predicts, and (M,) labels or None.

    Args:
        models: the K networks.
        batches: read once for all networks. To compare several populations, read them with
            :func:`qubo_compress.calibration.examples.read_examples` and pass these examples to each call: a loader that
            shuffles or augments returns other rows on every pass.

    Raises:
        InvalidBatches: when there is no network, or the batches cannot be used.
    """
    examples = read_once(batches)
    found: list[Tensor] = []
    labels: Tensor | None = None
    for model in models:
        outputs = outputs_of(model, examples)
        found.append(torch.cat([predicted(rows).cpu() for rows in outputs]))
        labels = labels_of(examples, outputs) if labels is None else labels
    if not found:
        raise InvalidBatches("no network was given; give at least one")
    return torch.stack(found), labels

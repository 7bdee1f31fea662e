"""A compressed network against the original, example by example: mean changes and their standard errors.

Both networks see the same examples, so differences are taken per example first. With weights w_i that sum to one and
differences d_i, the mean is m = sum_i w_i d_i, and its standard error the root of

    n / (n - 1) sum_i w_i^2 (d_i - m)^2,    n = 1 / sum_i w_i^2,

which is s / sqrt(N) for N examples of equal weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qubo_compress.calibration.evaluation import Score, outputs_of, score_examples
from qubo_compress.calibration.examples import Examples, Slice
from qubo_compress.network.losses.classification import LossLike, make_loss, target_rows
from qubo_compress.network.losses.regression import binary_labels
from qubo_compress.network.scores import predicted


@dataclass(frozen=True)
class Estimate:
    """A weighted mean over examples.

    Attributes:
        mean: of the per-example values.
        standard_error: of the mean; infinite for a single example.
    """

    mean: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The mean minus and plus two standard errors."""
        return self.mean - 2 * self.standard_error, self.mean + 2 * self.standard_error


@dataclass(frozen=True)
class Comparison:
    """Changes from the original network to another one on the same examples.

    Attributes:
        loss: weighted mean loss of the other network.
        change: of the loss, other minus original.
        divergence: of the other's outputs from the original's in the geometry of the loss, never below zero: the KL
            divergence for losses on class outputs.
        by_divergence: whether plans are chosen by it, as they are for losses on class outputs.
        lost, gained: labelled output rows that only the original, or only the other, gets right.
        accuracy: change of the share of right rows per example, unweighted, in -1 to 1.
        rows: labelled output rows; one per example, except for outputs with further axes.
        examples: number of examples.
    """

    loss: float
    change: Estimate
    divergence: Estimate
    by_divergence: bool
    lost: int
    gained: int
    accuracy: Estimate
    rows: int
    examples: int

    @property
    def measure(self) -> float:
        """The criterion for plans: the divergence for losses on class outputs, else the loss; infinite if not finite.

        A calibrated network's expected cross-entropy rises by just the divergence. The divergence takes the
        expectation over labels instead of drawing them (Rao and Blackwell), so its estimate has far less noise.
        """
        value = self.divergence.mean if self.by_divergence else self.loss
        return value if math.isfinite(value) and math.isfinite(self.loss) else math.inf

    def held_against(self, shrinkage: float) -> Estimate:
        """The measured counterpart of a prediction: the divergence, or the change of the loss if that was predicted.

        Args:
            shrinkage: of the table, the share of divergences in its linear terms.
        """
        return self.divergence if self.by_divergence or shrinkage >= 0.5 else self.change


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Examples to judge plans by, with the original network's outputs on them.

    Attributes:
        model: the original network.
        examples: none of them measured or trained on, unless there is a single one.
        loss: resolved name, or a function.
        reference: output rows of the original network, slice by slice.
    """

    model: nn.Module
    examples: Examples
    loss: LossLike
    reference: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module, examples: Examples, loss: LossLike) -> HeldOut:
        """Run the original network once, for its reference outputs."""
        return cls(model, examples, loss, outputs_of(model, examples))

    def score(self, network: nn.Module) -> Score:
        """Loss and accuracy of a network on the examples."""
        return score_examples(network, self.examples, self.loss, self.reference)

    def compare(self, network: nn.Module) -> Comparison:
        """Run another network on the examples and compare its outputs with the original's."""
        parts = zip(self.examples.slices, self.reference, outputs_of(network, self.examples), strict=True)
        columns = [example_values(part, reference, outputs, self.loss) for part, reference, outputs in parts]
        after, before, apart, lost, gained, labelled, weights = (
            torch.cat(column) for column in zip(*columns, strict=True)
        )
        share = ((gained - lost) / labelled.clamp(min=1))[labelled > 0]
        even = torch.full_like(share, 1.0 / max(1, share.numel()))
        return Comparison(
            loss=float((after * weights).sum()),
            change=estimate(after - before, weights),
            divergence=estimate(apart, weights),
            by_divergence=judges_classes(self.loss),
            lost=int(lost.sum()),
            gained=int(gained.sum()),
            accuracy=estimate(share, even) if share.numel() else Estimate(math.nan, math.inf),
            rows=int(labelled.sum()),
            examples=self.examples.count,
        )

    def lead(self, first: nn.Module, second: nn.Module) -> Estimate:
        """By how much the criterion for plans is lower for the second network, from differences per example."""
        column = 2 if judges_classes(self.loss) else 0  # divergences, or losses
        found, weights = [], []
        ran = zip(*(outputs_of(network, self.examples) for network in (first, second)), strict=True)
        for part, reference, outputs in zip(self.examples.slices, self.reference, ran, strict=True):
            columns = [example_values(part, reference, of_one, self.loss) for of_one in outputs]
            found.append(columns[0][column] - columns[1][column])
            weights.append(columns[0][-1])
        return estimate(torch.cat(found), torch.cat(weights))


def estimate(values: Tensor, weights: Tensor) -> Estimate:
    """Mean and standard error of (N,) values with weights that sum to one.

    Example:
        >>> found = estimate(torch.tensor([1.0, 3.0]).double(), torch.tensor([0.5, 0.5]).double())
        >>> found.mean, round(found.standard_error, 6)
        (2.0, 1.0)
    """
    mean = float((values * weights).sum())
    effective = 1.0 / float((weights**2).sum())
    if effective <= 1.0 + 1e-9 or not math.isfinite(mean):
        return Estimate(mean, math.inf)
    spread = float((weights**2 * (values - mean) ** 2).sum())
    return Estimate(mean, math.sqrt(spread * effective / (effective - 1.0)))


def judges_classes(loss: LossLike) -> bool:
    """Whether a loss reads the outputs as class probabilities, so that its divergence can replace it."""
    return isinstance(loss, str) and loss in ("cross-entropy", "kl", "binary-cross-entropy")


def measures(part: Slice, reference: Tensor, outputs: Tensor, loss: LossLike) -> Tensor:
    """(n,) what :attr:`Comparison.measure` is the weighted mean of."""
    after, _, apart, *_ = example_values(part, reference, outputs, loss)
    return apart if judges_classes(loss) else after


def example_values(part: Slice, reference: Tensor, outputs: Tensor, loss: LossLike) -> tuple[Tensor, ...]:
    """(n,) each: losses after and before, divergences, rows lost, gained and labelled, weights."""
    checked, count = make_loss(loss), len(part)
    goal = None if part.targets is None else part.targets.to(outputs.device)

    def per_example(values: Tensor) -> Tensor:
        return values.double().reshape(count, -1).mean(1).cpu()

    after, before = (per_example(checked.values(rows, goal, reference)) for rows in (outputs, reference))
    apart = checked.divergence(outputs, goal, reference)
    labels, answers = None, (reference, outputs)
    if loss == "binary-cross-entropy":
        # Every output is a separate answer, right or wrong by its sign.
        labels, answers = binary_labels(goal, outputs), (reference.reshape(-1, 1), outputs.reshape(-1, 1))
    elif goal is not None and not goal.is_floating_point() and outputs.shape[-1] > 1:
        labels = target_rows(goal, outputs)
        # Rows with an ignored label do not count in the cross-entropy either.
        apart = apart * (labels >= 0) if loss == "cross-entropy" else apart
    apart = per_example(apart)
    counts = [torch.zeros(count, dtype=torch.float64)] * 3
    if labels is not None:
        right, still = ((predicted(rows) == labels) & (labels >= 0) for rows in answers)
        counts = [of.double().reshape(count, -1).sum(1).cpu() for of in (right & ~still, still & ~right, labels >= 0)]
    return after, before, apart, *counts, part.weights.double().cpu()

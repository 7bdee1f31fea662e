"""Assignments with their losses, example by example."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.problem.network_loss import ExampleLoss
from qubo_compress.solvers.surrogate.correction import Observations

MOST_OBSERVED = 400
"""Of all assignments, at most this many of the least losses are observed; far worse ones say little about them."""

TRUSTED_EXAMPLES = 32
"""The variance of a difference on few examples counts as much as this many of all other assignments' variance."""


@dataclass(eq=False)
class Record:
    """One assignment.

    Attributes:
        assignment: (G,) local choices.
        values: (n,) losses on the first n examples.
    """

    assignment: IntArray
    values: FloatArray = field(default_factory=lambda: np.zeros(0))

    @property
    def count(self) -> int:
        """The number of examples that it was measured on."""
        return int(self.values.size)

    @property
    def finite(self) -> bool:
        """Whether all its losses are finite numbers."""
        return bool(np.isfinite(self.values).all())


class Records:
    """Everything that was measured.

    Args:
        loss: measures.
    """

    def __init__(self, loss: ExampleLoss) -> None:
        self.loss, self.weights = loss, loss.weights
        self.known: dict[bytes, Record] = {}

    def of(self, assignment: IntArray) -> Record:
        """The record of an assignment; a new one has no values."""
        return self.known.setdefault(assignment.tobytes(), Record(assignment))

    def price(self, record: Record, count: int) -> int:
        """Examples to be forwarded until it is measured on the first ``count``."""
        return max(0, count - record.count)

    def measure(self, record: Record, count: int) -> None:
        """Measure it on the first ``count`` examples; those that are known are not run again."""
        if record.count < count:
            values = self.loss.values(record.assignment, record.count, count)
            record.values = np.concatenate([record.values, values])

    def mean(self, record: Record) -> float:
        """Mean loss on the examples that it was measured on."""
        weights = self.weights[: record.count]
        return float((record.values * weights).sum() / weights.sum()) if record.finite else np.inf

    def difference(self, record: Record, other: Record) -> tuple[float, float, int]:
        """Mean difference of losses on the examples of both, the variance of one difference, and their number."""
        count = min(record.count, other.count)
        weights = self.weights[:count] / max(float(self.weights[:count].sum()), 1e-300)
        each = record.values[:count] - other.values[:count]
        mean = float((weights * each).sum())
        return mean, float((weights * (each - mean) ** 2).sum()), count

    def observations(self, baseline: Record) -> tuple[list[Record], Observations]:
        """Finite records except the baseline, the best where there are many, and their differences to it."""
        found = [r for r in self.known.values() if r is not baseline and r.count and r.finite]
        table = np.array([self.difference(record, baseline) for record in found]).reshape(-1, 3)
        index = np.sort(np.argsort(table[:, 0], kind="stable")[:MOST_OBSERVED])
        found, table = [found[number] for number in index], table[index]
        means, each, counts = table.T
        # Losses have long tails: what few examples say of the variance is joined with what all assignments say of it,
        # in units of the losses' own size.
        sizes = np.array([abs(self.mean(record)) for record in found]) + abs(self.mean(baseline))
        ratios = each / np.maximum(sizes**2, 1e-300)
        typical = float(np.average(ratios, weights=counts)) * sizes**2 if found else each
        smooth = (counts * each + TRUSTED_EXAMPLES * typical) / (counts + TRUSTED_EXAMPLES)
        # A difference of zero variance is that of two assignments whose networks are the same.
        variances = smooth / np.maximum(counts, 1) + 1e-18
        assignments = np.array([record.assignment for record in found]).reshape(-1, baseline.assignment.size)
        # Half of the variance of a typical difference is the baseline's own, and common to all.
        luck = 0.5 * float(np.median(smooth)) / baseline.count if found else 0.0
        return found, Observations(baseline.assignment, assignments, means, variances, luck)

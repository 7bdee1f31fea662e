"""Flips by how sure the original was."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qubo_compress.audits.mismatches import Answers
from qubo_compress.calibration.intervals import wilson

BINS = 10


@dataclass(frozen=True)
class MarginBin:
    """Examples of similar margin: the original's largest logit minus its second.

    Bins hold equally many rows, so rows of equal margin may be split between two bins, in the order of the examples.

    Attributes:
        low, high: smallest and largest margin in the bin.
        rows: how many.
        mismatches: how many answers differ.
        harmful: how many of these the original got right; None without labels.
        interval: 95 % Wilson interval of the share of mismatches.
    """

    low: float
    high: float
    rows: int
    mismatches: int
    harmful: int | None
    interval: tuple[float, float]

    @property
    def share(self) -> float:
        """Share of answers that differ."""
        return self.mismatches / max(1, self.rows)


def margin_bins(answers: Answers, bins: int = BINS) -> tuple[MarginBin, ...]:
    """Rows in bins of equal size by rising margin: ten, or fewer if there are fewer rows."""
    order = torch.argsort(answers.margin, stable=True)
    found = []
    for rows in torch.tensor_split(order, min(bins, max(1, order.numel()))):
        differ = int(answers.differ[rows].sum())
        harmful = None if answers.labels is None else int(answers.harmful[rows].sum())
        ends = float(answers.margin[rows[0]]), float(answers.margin[rows[-1]])
        found.append(MarginBin(*ends, rows.numel(), differ, harmful, wilson(differ, rows.numel())))
    return tuple(found)

"""Recall before and after, class by class, and whether the change may be chance."""

from __future__ import annotations

from dataclasses import dataclass

from qubo_compress.audits.mismatches import Answers
from qubo_compress.calibration.intervals import Correction, corrected, mcnemar, paired_change, wilson

LEVEL = 0.05
"""Classes with a corrected p-value below this are called changed."""


@dataclass(frozen=True)
class ClassChange:
    """One class: how often it was recognised, before and after.

    Attributes:
        label: class index.
        examples: how many examples carry it.
        before, after: share recognised, 0 to 1.
        interval: 95 % Wilson interval of the share after.
        lost, gained: examples recognised by the original only, and by the compressed network only.
        change_interval: 95 % interval of the change, from the pairs (Bonett and Price 2012).
        p_value: mid-p McNemar test that losses and gains are equally likely.
        corrected_p_value: the p-value corrected for the number of classes.
    """

    label: int
    examples: int
    before: float
    after: float
    interval: tuple[float, float]
    lost: int = 0
    gained: int = 0
    change_interval: tuple[float, float] = (-1.0, 1.0)
    p_value: float = 1.0
    corrected_p_value: float = 1.0

    @property
    def change(self) -> float:
        """Change of the share recognised, -1 to 1."""
        return self.after - self.before

    @property
    def changed(self) -> bool:
        """Whether the change is significant at 5 % over all classes together."""
        return self.corrected_p_value < LEVEL


def class_changes(answers: Answers, correction: Correction = "holm") -> tuple[ClassChange, ...]:
    """The change of every class that occurs, by rising index."""
    if answers.labels is None:
        return ()
    rows: list[tuple[int, int, int, int, int, int]] = []
    for label in sorted(set(answers.labels[answers.counted].tolist())):
        members = answers.labels == label
        found = (members, answers.right, answers.right_after, answers.harmful, answers.repaired)
        total, *counts = (int((rows_found & members).sum()) for rows_found in found)
        right, right_after, lost, gained = counts
        rows.append((label, total, right, right_after, lost, gained))
    p_values = [mcnemar(lost, gained) for *_, lost, gained in rows]
    return tuple(
        ClassChange(
            label, total, right / total, right_after / total, wilson(right_after, total), lost, gained,
            paired_change(lost, gained, total), p_value, raised,
        )
        for (label, total, right, right_after, lost, gained), p_value, raised in zip(
            rows, p_values, corrected(p_values, correction), strict=True
        )
    )  # fmt: skip

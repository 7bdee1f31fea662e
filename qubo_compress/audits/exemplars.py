"""Compression-identified exemplars: examples that compression changes whatever the calibration seed.

After Hooker et al. (2019), "What Do Compressed Deep Neural Networks Forget?", arXiv 1911.05248: an example is
identified when the most frequent answer of a population of compressed networks differs from that of a population of
originals. Their populations are 30 trainings each; here the compressed networks may be plans from several calibration
draws of one trained network. That is far cheaper, and shows what *choosing and compressing* changes, not what
retraining would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from qubo_compress.audits.mismatches import population, read_once
from qubo_compress.calibration.examples import Examples
from qubo_compress.calibration.intervals import Correction, corrected
from qubo_compress.errors import InvalidBatches

FEWEST_TESTED = 3
"""Shifts of classes are tested with at least this many compressed networks."""

ROUNDING = 1e-12
"""Shares that differ by less are equal: true differences are at least 1 / (examples x examples of the class)."""


@dataclass(frozen=True)
class ClassShift:
    """One class: does compression move its recall more than the accuracy of all classes?

    The test compares the shift with how much the compressed networks differ among themselves. Two or three seeds cannot
    support it: so small a sample often has zero or tiny variance by chance, and then any shift looks certain. So there
    is no test with fewer than :data:`FEWEST_TESTED` compressed networks, nor where they have the same value up to
    rounding; with three, a small p-value is a hint at most.

    Attributes:
        label: class index.
        before, after: mean over the population of the class's recall minus the network's accuracy.
        p_value: Welch's test that both are equal; with one original, a one-sample test against it. 1 without a test.
        corrected_p_value: the p-value corrected for the number of classes tested.
        testable: whether there was a test.
    """

    label: int
    before: float
    after: float
    p_value: float
    corrected_p_value: float
    testable: bool = True

    @property
    def shift(self) -> float:
        """Change of the recall beyond the change of the accuracy."""
        return self.after - self.before


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Two populations of networks on the same examples.

    Attributes:
        originals, compressed: how many networks.
        rows: (E,) numbers of the identified examples, rising.
        before, after: (M,) most frequent answers of each population; in a tie, the smallest class.
        agreement: (M,) share of the compressed population that gives its most frequent answer.
        labels: (M,) or None.
        mismatch_counts: (M,) how many compressed networks differ from the originals' most frequent answer.
        accuracy_before, accuracy_after: means over the populations; None without labels.
        accuracy_before_on_exemplars, accuracy_after_on_exemplars: the same on the identified examples only.
        classes: shifts of every class, adjusted for the mean; empty without labels or with fewer than two compressed.
    """

    originals: int
    compressed: int
    rows: npt.NDArray[np.int64]
    before: Tensor
    after: Tensor
    agreement: Tensor
    labels: Tensor | None
    mismatch_counts: Tensor
    accuracy_before: float | None
    accuracy_after: float | None
    accuracy_before_on_exemplars: float | None
    accuracy_after_on_exemplars: float | None
    classes: tuple[ClassShift, ...]

    @property
    def untested(self) -> int:
        """How many classes were not testable; see :class:`ClassShift`."""
        return sum(not item.testable for item in self.classes)

    @property
    def share(self) -> float:
        """Share of examples identified."""
        return self.rows.size / max(1, self.before.numel())

    def to_dict(self) -> dict[str, Any]:
        """The fields and shares as plain numbers, lists and dicts, ready for JSON."""
        names = (
            "originals", "compressed", "share", "accuracy_before", "accuracy_after", "accuracy_before_on_exemplars",
            "accuracy_after_on_exemplars",
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "exemplars": self.rows.tolist(),
            "classes": [{**vars(item), "shift": item.shift} for item in self.classes],
        }


def find_exemplars(
    originals: Sequence[nn.Module],
    compressed: Sequence[nn.Module],
    batches: Iterable[Any] | Examples,
    correction: Correction = "holm",
) -> Exemplars:
    """Examples on which two populations of networks most often answer differently.

    Args:
        originals: the network, or several trained independently.
        compressed: several, such as plans from different calibration seeds.
        batches: all of them are read, once; or the result of :func:`qubo_compress.calibration.examples.read_examples`.
        correction: for the classes' p-values.

    Raises:
        InvalidBatches: when a population is empty, or the batches cannot be used.
    """
    if not originals or not compressed:
        raise InvalidBatches("give at least one original and one compressed network")
    examples = read_once(batches)
    first, labels = population(originals, examples)
    second, _ = population(compressed, examples)
    return exemplars_of(first, second, labels, correction)


def exemplars_of(
    originals: Tensor, compressed: Tensor, labels: Tensor | None, correction: Correction = "holm"
) -> Exemplars:
    """Exemplars from the (K, M) predictions of both populations."""
    before, after = modal(originals), modal(compressed)
    differ = before != after
    agreement = (compressed == after).double().mean(0)
    counts = (compressed != before).sum(0)
    rows = differ.nonzero()[:, 0].numpy().astype(np.int64)
    accuracies: list[float | None] = [None] * 4
    classes: tuple[ClassShift, ...] = ()
    if labels is not None and bool((labels >= 0).any()):
        counted = labels >= 0
        accuracies = [
            _share(predicted, labels, chosen)
            for chosen in (counted, counted & differ)
            for predicted in (originals, compressed)
        ]
        classes = _shifts(originals, compressed, labels, correction) if len(compressed) > 1 else ()
    return Exemplars(
        len(originals), len(compressed), rows, before, after, agreement, labels, counts, accuracies[0], accuracies[1],
        accuracies[2], accuracies[3], classes,
    )  # fmt: skip


def modal(predicted: Tensor) -> Tensor:
    """(M,) most frequent answer of (K, M) predictions; in a tie, the smallest class.

    Example:
        >>> modal(torch.tensor([[0, 2], [1, 2], [1, 0]])).tolist()
        [1, 2]
    """
    votes = torch.zeros(predicted.shape[1], int(predicted.max()) + 1, dtype=torch.int64)
    votes.scatter_add_(1, predicted.T, torch.ones_like(predicted.T))
    return votes.argmax(1)


def _share(predicted: Tensor, labels: Tensor, chosen: Tensor) -> float | None:
    if not bool(chosen.any()):
        return None
    return float((predicted[:, chosen] == labels[chosen]).double().mean())


def _shifts(originals: Tensor, compressed: Tensor, labels: Tensor, correction: Correction) -> tuple[ClassShift, ...]:
    """Welch's test on recall minus accuracy: no class is blamed for the overall loss of accuracy."""
    names = sorted(set(labels[labels >= 0].tolist()))
    rows: list[tuple[int, float, float, float | None]] = []
    for label in names:
        first, second = (_adjusted_recall(found, labels, label) for found in (originals, compressed))
        rows.append((label, float(first.mean()), float(second.mean()), _welch(first, second)))
    # Untested classes must not make the correction of the others stricter.
    raised = iter(corrected([p for *_, p in rows if p is not None], correction))
    return tuple(
        ClassShift(label, before, after, 1.0 if p is None else p, 1.0 if p is None else next(raised), p is not None)
        for label, before, after, p in rows
    )


def _adjusted_recall(predicted: Tensor, labels: Tensor, label: int) -> npt.NDArray[np.float64]:
    counted = labels >= 0
    right = (predicted == labels).double()
    found: npt.NDArray[np.float64] = (right[:, labels == label].mean(1) - right[:, counted].mean(1)).numpy()
    return found


def _welch(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> float | None:
    """Two-sided p-value, or None if there are too few networks or no variance."""
    if after.size < FEWEST_TESTED or np.ptp(after) < ROUNDING:
        return None
    if np.ptp(before) < ROUNDING:  # one original, or several that agree
        return float(stats.ttest_1samp(after, float(before.mean())).pvalue)
    return float(stats.ttest_ind(before, after, equal_var=False).pvalue)

"""The examples that compression made the network forget, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.audits.mismatches import Answers
from qubo_compress.calibration.examples import Examples
from qubo_compress.calibration.weights import TailWeights, tail_weights

__all__ = ["Forgotten", "Images", "TailWeights", "forgotten", "images_of", "tail_weights"]

Images = npt.NDArray[np.float32]
"""(K, H, W) or (K, H, W, 3), each picture scaled to 0 to 1 by its own range."""


@dataclass(frozen=True)
class Forgotten:
    """A row that the original gets right and the compressed network gets wrong.

    Attributes:
        row: its number.
        label: its class, which is the original's answer.
        answer: the compressed network's.
        confidence: the original's probability of its answer.
        margin: the original's largest logit minus its second.
    """

    row: int
    label: int
    answer: int
    confidence: float
    margin: float


def forgotten(answers: Answers, most: int) -> tuple[Forgotten, ...]:
    """Harmful mismatches; those that the original was surest of come first."""
    rows = answers.harmful.nonzero()[:, 0]
    order = torch.argsort(answers.margin[rows], descending=True, stable=True)[: max(0, most)]
    return tuple(
        Forgotten(
            int(row), int(answers.before[row]), int(answers.after[row]), float(answers.confidence[row]),
            float(answers.margin[row]),
        )
        for row in rows[order].tolist()
    )  # fmt: skip


def images_of(examples: Examples, rows: Sequence[int]) -> Images | None:
    """The inputs of some examples as pictures; None if they are not images of one or three channels."""
    found: list[Tensor] = []
    starts = np.cumsum([0, *(len(part) for part in examples.slices)])
    for row in rows:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        inputs = examples.slices[number].inputs
        if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
            return None
        found.append(inputs[row - int(starts[number])].float().cpu())
    if not found or len({tuple(image.shape) for image in found}) > 1:
        return None
    stacked = torch.stack(found)
    low, high = stacked.amin((1, 2, 3), keepdim=True), stacked.amax((1, 2, 3), keepdim=True)
    scaled = ((stacked - low) / (high - low).clamp(min=1e-12)).permute(0, 2, 3, 1).numpy().astype(np.float32)
    return scaled[..., 0] if scaled.shape[-1] == 1 else scaled

"""Memorization and influence by training on random subsets (Feldman and Zhang, NeurIPS 2020).

With S the training set and A the training,

    mem(i)     = Pr_{h ~ A(S)}[h(x_i) = y_i] - Pr_{h ~ A(S without i)}[h(x_i) = y_i]
    infl(i, j) = the same with test example j in place of i.

Both are estimated from T networks, each trained on a random share of S: the mean over those whose subset contains i
minus the mean over the others. A high score means that the network knows the example only because it was trained on it:
a member of the long tail, or a wrong label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qubo_compress._internal.live import tracked
from qubo_compress.calibration.evaluation import outputs_of
from qubo_compress.calibration.examples import read_examples
from qubo_compress.errors import InvalidBatches
from qubo_compress.network.scores import OutputReading

Trainer = Callable[[npt.NDArray[np.int64], int], nn.Module]
"""(numbers of the training examples to use, rising; seed) -> a network trained on them alone."""


@dataclass(frozen=True, eq=False)
class Memorization:
    """Scores of every training example.

    Attributes:
        scores: (N,) memorization, -1 to 1; NaN for examples in all subsets or in none.
        errors: (N,) standard errors.
        share_with, share_without: (N,) share recognised by networks trained with, and without, the example.
        masks: (T, N) which examples each network was trained on.
        right: (T, N) which examples it recognises.
    """

    scores: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64]
    share_with: npt.NDArray[np.float64]
    share_without: npt.NDArray[np.float64]
    masks: npt.NDArray[np.bool_]
    right: npt.NDArray[np.bool_]

    @property
    def networks(self) -> int:
        """How many were trained."""
        return len(self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON: None where a score is unknown.

        The share of high scores is among the known ones; None if there are none.
        """
        known = self.scores[~np.isnan(self.scores)]
        return {
            "networks": self.networks, "scores": _plain(self.scores), "errors": _plain(self.errors),
            "known": known.size, "share_above_0.25": float((known >= 0.25).mean()) if known.size else None,
        }  # fmt: skip


def memorization(
    train: Trainer,
    inputs: Tensor,
    labels: Tensor,
    *,
    networks: int = 40,
    share: float = 0.7,
    seed: int = 0,
    progress: bool = True,
) -> Memorization:
    """Train on random subsets and score every training example. That takes many trainings: use a small network.

    Args:
        train: trains on a subset.
        inputs: (N, ...) training inputs, as the network takes them.
        labels: (N,) classes.
        networks: T; the standard error of a score is about sqrt(p (1 - p) / (share (1 - share) T)).
        share: of the examples in each subset.
        seed: of the subsets, and of each training's random draws.
        progress: show a progress bar.

    Raises:
        InvalidBatches: when an argument is out of range, the labels do not fit, or a trained network does not return
            one row of scores per example.
    """
    count = len(inputs)
    if networks < 2 or not 0 < share < 1 or not 1 <= round(share * count) < count:
        raise InvalidBatches(
            f"give at least 2 networks and a share between 0 and 1 that leaves some of the {count} examples in and "
            f"some out; got {networks} and {share}"
        )
    if labels.shape != (count,) or labels.is_floating_point():
        raise InvalidBatches(f"labels must be {count} class indices; got {tuple(labels.shape)} {labels.dtype}")
    generator = np.random.default_rng(seed)
    masks = np.zeros((networks, count), dtype=bool)
    right = np.zeros((networks, count), dtype=bool)
    examples = read_examples([(inputs, labels)], count, reading=OutputReading(class_axis=1))
    for number in tracked(networks, "training on subsets", progress):
        chosen = np.sort(generator.permutation(count)[: round(share * count)]).astype(np.int64)
        masks[number, chosen] = True
        model = train(chosen, int(generator.integers(2**31)))
        answers = torch.cat([rows.argmax(-1).cpu() for rows in outputs_of(model, examples)])
        if answers.shape != (count,):
            raise InvalidBatches(
                f"the trained network gave {answers.numel()} rows of scores for {count} examples; memorization needs "
                "outputs (examples, classes): wrap the network so that it answers once per example"
            )
        right[number] = (answers == labels.cpu()).numpy()
    return memorization_of(masks, right)


def memorization_of(masks: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> Memorization:
    """Scores from (T, N) subsets and (T, N) correct answers on the training examples.

    Example:
        >>> masks = np.array([[True, False], [False, True], [True, False]])
        >>> memorization_of(masks, np.array([[True, True], [False, True], [True, True]])).scores.tolist()
        [1.0, 0.0]
    """
    inside, outside = masks.sum(0), (~masks).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share_with = (right & masks).sum(0) / inside
        share_without = (right & ~masks).sum(0) / outside
        # Agresti-Coull: a share of exactly 0 or 1 from a few networks still has an error.
        spread = [_smoothed_variance(right & chosen, chosen) for chosen in (masks, ~masks)]
        errors = np.sqrt(spread[0] + spread[1])
    return Memorization(share_with - share_without, errors, share_with, share_without, masks, right)


def influence(masks: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(N, M) influence of each training example on each test example.

    Args:
        masks: (T, N) which training examples each network was trained on.
        right: (T, M) which test examples it recognises.

    Raises:
        InvalidBatches: when the two have different numbers of networks.
    """
    if masks.ndim != 2 or right.ndim != 2 or len(masks) != len(right):
        raise InvalidBatches(f"masks and right need one row per network; got {masks.shape} and {right.shape}")
    inside, answers = masks.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        with_it = inside.T @ answers / inside.sum(0)[:, None]
        without = (1 - inside).T @ answers / (1 - inside).sum(0)[:, None]
    return np.asarray(with_it - without)


def _plain(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def _smoothed_variance(right: npt.NDArray[np.bool_], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    total = chosen.sum(0) + 4.0
    share = (right.sum(0) + 2.0) / total
    return np.asarray(share * (1 - share) / total)

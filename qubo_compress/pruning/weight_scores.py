"""Ranks weights across the layers of a network, and chooses the damping: see :mod:`qubo_compress.pruning`."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from qubo_compress.calibration.evaluation import outputs_of, score_examples
from qubo_compress.calibration.examples import Examples
from qubo_compress.calibration.statistics.gradients import GradientRows, Gradients
from qubo_compress.errors import InvalidMenu, unknown_name
from qubo_compress.menu.prune import PrunedTensors, survivor_count
from qubo_compress.menu.woodfisher import (
    FEWEST,
    FisherSettings,
    Update,
    best_damping,
    check_damping,
    compensated,
    damping_candidates,
    held_out_errors,
    largest,
    saliencies,
    squared_norm,
    unseen_changes,
    without_zeros,
)
from qubo_compress.network.groups import Group
from qubo_compress.network.losses.classification import LossLike, make_loss
from qubo_compress.network.private import independent_copy
from qubo_compress.network.tensors import NetworkTensors

logger = logging.getLogger(__name__)

METHODS = ("magnitude", "diagonal-fisher", "woodtaylor", "woodfisher")
SCOPES = ("layer", "global")

NEAR = 2.0
"""Dampings with a held-out prediction error within this factor of the least are measured."""

MOST_TRIED = 5
"""Most dampings to measure, largest first: small ones move the survivors farthest from the measured point."""

JUDGING = 500
"""Most unseen examples for measuring dampings."""

FEWEST_JUDGING = 50
"""With fewer unseen examples the loss does not decide."""

Judge = Callable[[Mapping[str, Tensor]], float]
"""The loss of the network with these tensors substituted."""


@dataclass(frozen=True)
class Pruning:
    """How weights are ranked and what happens to the survivors.

    Args:
        method: ``"magnitude"``, ``"diagonal-fisher"`` (w^2 F_qq / 2), ``"woodtaylor"`` or ``"woodfisher"``.
        scope: ``"layer"``: the same share of every tensor; ``"global"``: one threshold over all of them.
        update: ``"joint"``, ``"independent"`` or ``"none"``; the first two methods move nothing.
        damping: added to the Fisher's diagonal; None: chosen on examples without gradients, one for all tensors:
            separate dampings would put the tensors' saliencies on different scales. Those with a held-out
            prediction error within twice the least are tried, and the loss on unseen examples decides; if nearly
            all examples give gradients, the prediction error decides alone.
        block: weights per block of the Fisher.
        gradients: how many per-example gradients.
        batch: number of examples averaged in each gradient.

    Raises:
        InvalidMenu: for an unknown method, scope or update, or numbers out of range.
    """

    method: str = "woodfisher"
    scope: str = "global"
    update: str = "joint"
    damping: float | None = None
    block: int = 2000
    gradients: int = 400
    batch: int = 1

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("method", self.method, METHODS),
            ("scope", self.scope, SCOPES),
            ("update", self.update, ("joint", "independent", "none")),
        ):
            if value not in allowed:
                raise InvalidMenu(str(unknown_name(name, value, allowed)))
        check_damping(self.damping)
        Gradients(self.gradients, self.batch)
        if not (isinstance(self.block, int) and self.block >= 1):
            raise InvalidMenu(f"block must be a whole number of at least 1; got {self.block!r}")


@dataclass(frozen=True)
class Damping:
    """A damping that was tried, its held-out prediction error, and its measured loss, if any."""

    value: float
    error: float
    loss: float | None = None


@dataclass(frozen=True, eq=False)
class Ranked:
    """One tensor, flat: its weights, their scores, and the data to move the survivors."""

    group: Group
    values: Tensor
    scores: Tensor
    rows: GradientRows | None = None
    settings: FisherSettings | None = None
    choice: Damping | None = None


def unseen_examples(examples: Examples, how: Pruning, seed: int) -> Examples | None:
    """Examples without gradients, at most :data:`JUDGING`; None if there are hardly any."""
    used = Gradients(how.gradients, how.batch).example_numbers(examples.count, seed)
    left = np.setdiff1d(np.arange(examples.count), used)
    if left.size < FEWEST_JUDGING:
        return None
    return examples.select(np.sort(np.random.default_rng(seed).permutation(left)[:JUDGING]))


def loss_judge(model: nn.Module, examples: Examples | None, loss: LossLike) -> Judge | None:
    """A function that measures the loss of the network with some fixed tensors substituted."""
    if examples is None:
        return None
    reference = outputs_of(model, examples)
    # Without labels the original's answers replace them, as for the gradients.
    loss = loss if examples.labelled or not make_loss(loss).needs_targets else "kl"

    trial = NetworkTensors(independent_copy(model))

    def measured(changed: Mapping[str, Tensor]) -> float:
        trial.fill(changed)
        found = score_examples(trial.model, examples, loss, reference).loss
        return found if math.isfinite(found) else math.inf

    return measured


def ranked_tensors(
    picked: list[Group],
    flat: list[Tensor],
    gradients: Mapping[str, GradientRows],
    sparsity: float,
    how: Pruning,
    judge: Judge | None,
) -> list[Ranked]:
    """The weights of every tensor with their scores by the method."""
    if how.method == "magnitude":
        return [Ranked(group, values, values.double().abs()) for group, values in zip(picked, flat, strict=True)]
    missing = [group.name for group in picked if group.name not in gradients]
    if missing:
        raise InvalidMenu(f"there are no gradients of {missing[0]}; gather them with gradients_of for the same layers")
    if how.method == "diagonal-fisher":
        return [
            Ranked(g, values, 0.5 * values.double() ** 2 * _mean_square(gradients[g.name].values))
            for g, values in zip(picked, flat, strict=True)
        ]
    rows = [without_zeros(values, gradients[group.name]) for group, values in zip(picked, flat, strict=True)]
    settings = FisherSettings(how.damping or 1.0, how.block, cast(Update, how.update), how.method == "woodtaylor")
    if how.damping is not None:
        return _scored(picked, flat, rows, settings, None)
    tried = _tried_dampings(flat, rows, sparsity, settings)
    if judge is None or len(tried) == 1:
        best, error = best_damping([t.value for t in tried], torch.tensor([t.error for t in tried]))
        return _scored(picked, flat, rows, settings, Damping(best, error))
    members = {group.name: group.members[0] for group in picked}
    ranked: list[Ranked] = []
    least = math.inf
    for damping in tried:
        found = _scored(picked, flat, rows, settings, damping)
        made = stored_tensors(found, sparsity, how.scope)
        measured = judge({n: members[n].in_network_order(item.tensors()[0]) for n, item in made.items()})
        logger.info("damping %.3g: held-out error %.3f, loss %.4g", damping.value, damping.error, measured)
        if measured < least or not ranked:
            least = measured
            ranked = [replace(item, choice=replace(damping, loss=measured)) for item in found]
    return ranked


def _scored(
    picked: list[Group], flat: list[Tensor], rows: list[GradientRows], settings: FisherSettings, choice: Damping | None
) -> list[Ranked]:
    used = settings if choice is None else replace(settings, damping=choice.value)
    return [
        Ranked(group, values, saliencies(values, part, used), part, used, choice)
        for group, values, part in zip(picked, flat, rows, strict=True)
    ]


def _mean_square(rows: Tensor) -> Tensor:
    """(n,) float64 mean squares over (N, n) rows, without a float64 copy."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=0, dtype=torch.float64)
    return norms**2 / rows.shape[0]


def _tried_dampings(
    values: list[Tensor], rows: list[GradientRows], sparsity: float, settings: FisherSettings
) -> list[Damping]:
    """The dampings, largest first, that best predict the change by all updates together on unseen gradients."""
    squares = sum(squared_norm(item.values) for item in rows)
    dampings = damping_candidates(squares / max(1, sum(item.values.numel() for item in rows)))
    if rows[0].values.shape[0] < FEWEST or len(dampings) == 1:
        return [Damping(dampings[len(dampings) // 2], 1.0)]
    changes = torch.zeros(len(dampings) + 1, rows[0].values.shape[0], dtype=torch.float64)
    for flat, gradients in zip(values, rows, strict=True):
        changes += unseen_changes(flat, gradients, sparsity, dampings, settings)
    errors = held_out_errors(changes, rows[0].roots, settings.with_gradient)
    near = [
        Damping(value, float(error))
        for value, error in zip(dampings, errors, strict=True)
        if float(error) <= NEAR * float(errors.min())
    ]
    return sorted(near, key=lambda damping: -damping.value)[:MOST_TRIED]


def survivor_counts(ranked: list[Ranked], sparsity: float, scope: str) -> list[int]:
    """How many weights of each tensor remain: at least one."""
    if scope == "layer":
        return [survivor_count(item.values.numel(), sparsity) for item in ranked]
    scores = torch.cat([item.scores for item in ranked])
    mask = largest(scores, survivor_count(scores.numel(), sparsity))
    ends = list(itertools.accumulate(item.values.numel() for item in ranked))
    return [max(1, int(mask[a:b].sum())) for a, b in itertools.pairwise([0, *ends])]


def _stored(item: Ranked, count: int) -> PrunedTensors:
    mask = largest(item.scores, count)
    left = item.values
    if item.rows is not None and item.settings is not None and item.settings.update != "none":
        moved = compensated(item.values, mask, item.rows, item.settings)
        limit = torch.finfo(item.values.dtype).max
        left = moved.clamp(-limit, limit).to(item.values.dtype) if bool(torch.isfinite(moved).all()) else left
    return PrunedTensors((mask,), (left[mask],), (item.group.members[0].part_shape,))


def stored_tensors(ranked: list[Ranked], sparsity: float, scope: str) -> dict[str, PrunedTensors]:
    """Group name -> mask and survivors."""
    counts = survivor_counts(ranked, sparsity, scope)
    return {item.group.name: _stored(item, count) for item, count in zip(ranked, counts, strict=True)}

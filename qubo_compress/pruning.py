"""Pruning a whole network at once or step by step, by magnitude or by second-order saliency.

Thresholds are per layer (the same share everywhere) or global (one threshold on the saliency over all layers). What
comes out carries a plan like every compressed network: it is saved, loaded, recovered and audited alike. To let the
solver decide layer by layer instead, put ``woodfisher`` on a menu.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from qubo_compress.errors import InvalidBudget, InvalidMenu, WrongModel, unknown_name
from qubo_compress.evaluation import outputs_of, score_examples
from qubo_compress.examples import Examples, read_examples
from qubo_compress.file_format import fixed_bytes, weights_signature
from qubo_compress.menu.groups import Group, Layout, discover, state_entries
from qubo_compress.menu.operator import choice_name, stored_as
from qubo_compress.menu.prune import Prune, PrunedTensors, check_sparsity, survivor_count
from qubo_compress.menu.woodfisher import (
    FEWEST,
    Settings,
    Update,
    best_damping,
    compensated,
    damping_candidates,
    held_out_errors,
    largest,
    saliencies,
    unseen_changes,
    without_zeros,
)
from qubo_compress.plan import ATTRIBUTE, Compression, Plan, compression_of, fill, filled
from qubo_compress.recovery import recover
from qubo_compress.sensitivity.losses import LossLike, make_loss, rows_of
from qubo_compress.sensitivity.replay import run_model
from qubo_compress.sensitivity.substitution import evaluating
from qubo_compress.statistics.gradients import GradientRows, Gradients
from qubo_compress.statistics.statistic import Calibration

logger = logging.getLogger(__name__)

METHODS = ("magnitude", "diagonal-fisher", "woodtaylor", "woodfisher")
SCOPES = ("layer", "global")

REPORT = "pruned_layers"
"""Name of the plain attribute under which a pruned module carries its :class:`PrunedLayer` tuple."""

NEAR = 2.0
"""Dampings whose held-out prediction error is within this factor of the least are measured."""

MOST_TRIED = 5
"""Dampings that are measured, the largest first: small ones move the survivors farthest from where it was measured."""

JUDGING = 500
"""Unseen examples on which dampings are measured."""

FEWEST_JUDGING = 50
"""Fewer unseen examples do not decide."""

LARGEST_MENU = 255
"""A file refers to choices by one byte."""

Judge = Callable[[Mapping[str, Tensor]], float]
"""Loss of the network with these tensors in it."""

Layers = str | Callable[[str], bool] | None
"""A regular expression on parameter names, a function of the name, or None for every weight."""


@dataclass(frozen=True)
class Pruning:
    """How weights are ranked and what happens to the survivors.

    Args:
        method: ``"magnitude"``, ``"diagonal-fisher"`` (w^2 F_qq / 2), ``"woodtaylor"`` or ``"woodfisher"``.
        scope: ``"layer"``: the same share of every tensor; ``"global"``: one threshold over all of them.
        update: ``"joint"``, ``"independent"`` or ``"none"``; the first two methods move nothing.
        damping: added to the Fisher's diagonal; None: chosen on examples that the gradients have not seen, one for
            all tensors: a damping of its own would put every tensor's saliencies on another scale. Those whose
            held-out prediction error is within twice the least are tried, and the loss measured on unseen
            examples decides; where nearly all examples are used the prediction error decides alone.
        block: weights per block of the Fisher.
        gradients: how many per-example gradients.
        batch: examples that each gradient is the mean of.

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
        if self.damping is not None and not self.damping > 0:
            raise InvalidMenu(f"damping must be above zero, or None to have it chosen; got {self.damping!r}")
        Gradients(self.gradients, self.batch)
        if not (isinstance(self.block, int) and self.block >= 1):
            raise InvalidMenu(f"block must be a whole number of at least 1; got {self.block!r}")


@dataclass(frozen=True)
class PrunedLayer:
    """What pruning did to one tensor.

    Attributes:
        name: of its weights.
        weights: how many there are.
        pruned: how many are zero now.
        damping: added to the diagonal of its Fisher; None where no Fisher was inverted.
        held_out_error: of the chosen damping, see :func:`qubo_compress.menu.woodfisher.best_damping`; None where
            it was not chosen.
        held_out_loss: measured on unseen examples; None where the damping was not chosen by it.
    """

    name: str
    weights: int
    pruned: int
    damping: float | None = None
    held_out_error: float | None = None
    held_out_loss: float | None = None


def pruned_layers(model: nn.Module) -> tuple[PrunedLayer, ...]:
    """What :func:`prune`, or the last step of :func:`prune_gradually`, did to each tensor of a network.

    Raises:
        WrongModel: when the network was not pruned by these.
    """
    found = getattr(model, REPORT, None)
    if found is None:
        raise WrongModel("this network was not made by prune or prune_gradually; prune it first")
    return cast(tuple[PrunedLayer, ...], found)


@dataclass(frozen=True)
class _Damping:
    """One that was tried, its held-out prediction error, and the loss that was measured, if it was."""

    value: float
    error: float
    loss: float | None = None


@dataclass(frozen=True, eq=False)
class _Ranked:
    """One tensor, flat: its weights, the score of each, and what is needed to move the survivors."""

    group: Group
    values: Tensor
    scores: Tensor
    rows: GradientRows | None = None
    settings: Settings | None = None
    choice: _Damping | None = None


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    sparsity: float,
    how: Pruning | None = None,
    *,
    layers: Layers = None,
    loss: LossLike = "cross-entropy",
    max_examples: int = 2048,
    seed: int = 0,
    gradients: Mapping[str, GradientRows] | None = None,
) -> nn.Module:
    """Prune in one shot.

    Args:
        model: trained; left as it is.
        batches: calibration batches.
        sparsity: share of the chosen layers' weights set to zero, over all of them.
        how: see :class:`Pruning`.
        layers: which weights; see :data:`Layers`.
        loss: whose gradients; labels are drawn from the network where there are none.
        max_examples: reading the batches stops there.
        seed: of the examples that gradients are taken of.
        gradients: those of the same layers that :func:`gradients_of` gathered before, for several prunings of one
            network; None: gathered here.

    Returns:
        A new module in eval mode that carries its plan.

    Raises:
        InvalidMenu: when ``layers`` picks nothing, or the sparsity is out of range.

    Example:
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = [(torch.randn(32, 6), torch.randint(3, (32,)))]
        >>> small = prune(net, data, 0.5, Pruning(scope="layer"))
        >>> int(sum((m.weight == 0).sum() for m in small if isinstance(m, nn.Linear)))
        36
    """
    how = how or Pruning()
    check_sparsity(sparsity)
    layout = discover(model)
    picked = _picked(layout, layers)
    if gradients is None and how.method != "magnitude":
        gradients = gradients_of(model, batches, how, layers=layers, loss=loss, max_examples=max_examples, seed=seed)
    judge = None
    if how.damping is None and how.method in ("woodfisher", "woodtaylor"):
        judge = _judge(model, _unseen(read_examples(batches, max_examples), how, seed), loss)
    entries = state_entries(model)[0]
    flat = [entries[group.members[0].name].tensor.detach().cpu().reshape(-1) for group in picked]
    ranked = _ranked(picked, flat, gradients or {}, sparsity, how, judge)
    counts = _survivors(ranked, sparsity, how.scope)
    stored = _all_stored(ranked, sparsity, how.scope)
    small = _carrying(model, layout, stored)
    setattr(small, REPORT, tuple(_reported(item, count) for item, count in zip(ranked, counts, strict=True)))
    return small


def gradients_of(
    model: nn.Module,
    batches: Iterable[Any],
    how: Pruning | None = None,
    *,
    layers: Layers = None,
    loss: LossLike = "cross-entropy",
    max_examples: int = 2048,
    seed: int = 0,
) -> dict[str, GradientRows]:
    """Name -> gradients of every layer that is to be pruned, in float32: 4 bytes x gradients x weights.

    Args:
        model: left as it is.
        batches: calibration batches.
        how: says how many gradients, and of how many examples each.
        layers: which weights; see :data:`Layers`.
        loss: whose gradients; labels are drawn from the network where there are none.
        max_examples: reading the batches stops there.
        seed: of the examples that are drawn.

    Raises:
        InvalidMenu: when ``layers`` picks nothing.
    """
    how = how or Pruning()
    picked = _picked(discover(model), layers)
    examples = read_examples(batches, max_examples)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    statistic = Gradients(how.gradients, how.batch)
    with evaluating(model):
        calibration = Calibration(
            model, examples.to(device), make_loss(loss), lambda x: rows_of(run_model(model, x)), seed
        )
        return {group.name: statistic.collect(calibration, group)[0] for group in picked}


def _picked(layout: Layout, layers: Layers) -> list[Group]:
    pattern = re.compile(layers if isinstance(layers, str) else "")
    wanted = layers if callable(layers) else lambda name: pattern.search(name) is not None
    weights = [group for group in layout.groups if group.kind == "weight"]
    found = [group for group in weights if wanted(group.name)]
    if not found:
        names = ", ".join(group.name for group in weights[:4])
        raise InvalidMenu(f"layers={layers!r} picks no weight of this network; its weights are {names}, ...")
    return found


def _unseen(examples: Examples, how: Pruning, seed: int) -> Examples | None:
    """Examples that no gradient is taken of, at most :data:`JUDGING`; None when there are hardly any."""
    used = Gradients(how.gradients, how.batch).example_numbers(examples.count, seed)
    left = np.setdiff1d(np.arange(examples.count), used)
    if left.size < FEWEST_JUDGING:
        return None
    return examples.select(np.sort(np.random.default_rng(seed).permutation(left)[:JUDGING]))


def _judge(model: nn.Module, examples: Examples | None, loss: LossLike) -> Judge | None:
    """Measures the loss of the network with some tensors changed."""
    if examples is None:
        return None
    reference = outputs_of(model, examples)

    def measured(tensors: Mapping[str, Tensor]) -> float:
        trial = copy.deepcopy(model)
        fill(trial, tensors)
        found = score_examples(trial, examples, loss, reference).loss
        return found if math.isfinite(found) else math.inf

    return measured


def _ranked(
    picked: list[Group],
    flat: list[Tensor],
    gradients: Mapping[str, GradientRows],
    sparsity: float,
    how: Pruning,
    judge: Judge | None,
) -> list[_Ranked]:
    """Every tensor's weights and scores."""
    if how.method == "magnitude":
        return [_Ranked(group, values, values.double().abs()) for group, values in zip(picked, flat, strict=True)]
    missing = [group.name for group in picked if group.name not in gradients]
    if missing:
        raise InvalidMenu(f"there are no gradients of {missing[0]}; gather them with gradients_of for the same layers")
    if how.method == "diagonal-fisher":
        return [
            _Ranked(g, values, 0.5 * values.double() ** 2 * gradients[g.name].values.double().square().mean(0))
            for g, values in zip(picked, flat, strict=True)
        ]
    rows = [without_zeros(values, gradients[group.name]) for group, values in zip(picked, flat, strict=True)]
    settings = Settings(how.damping or 1.0, how.block, cast(Update, how.update), how.method == "woodtaylor")
    if how.damping is not None:
        return _scored(picked, flat, rows, settings, None)
    tried = _tried_dampings(flat, rows, sparsity, settings)
    if judge is None or len(tried) == 1:
        best, error = best_damping([t.value for t in tried], torch.tensor([t.error for t in tried]))
        return _scored(picked, flat, rows, settings, _Damping(best, error))
    ranked: list[_Ranked] = []
    least = math.inf
    for damping in tried:
        found = _scored(picked, flat, rows, settings, damping)
        made = _all_stored(found, sparsity, how.scope)
        measured = judge({name: item.tensors()[0] for name, item in made.items()})
        logger.info("damping %.3g: held-out error %.3f, loss %.4g", damping.value, damping.error, measured)
        if measured < least or not ranked:
            least = measured
            ranked = [replace(item, choice=replace(damping, loss=measured)) for item in found]
    return ranked


def _scored(
    picked: list[Group], flat: list[Tensor], rows: list[GradientRows], settings: Settings, choice: _Damping | None
) -> list[_Ranked]:
    used = settings if choice is None else replace(settings, damping=choice.value)
    return [
        _Ranked(group, values, saliencies(values, part, used), part, used, choice)
        for group, values, part in zip(picked, flat, rows, strict=True)
    ]


def _tried_dampings(
    values: list[Tensor], rows: list[GradientRows], sparsity: float, settings: Settings
) -> list[_Damping]:
    """The dampings, largest first, that predict the change by all updates together about best on unseen gradients."""
    squares = sum(float(item.values.double().square().sum()) for item in rows)
    dampings = damping_candidates(squares / max(1, sum(item.values.numel() for item in rows)))
    if rows[0].values.shape[0] < FEWEST or len(dampings) == 1:
        return [_Damping(dampings[len(dampings) // 2], 1.0)]
    changes = torch.zeros(len(dampings) + 1, rows[0].values.shape[0], dtype=torch.float64)
    for flat, gradients in zip(values, rows, strict=True):
        changes += unseen_changes(flat, gradients, sparsity, dampings, settings)
    errors = held_out_errors(changes, rows[0].roots, settings.with_gradient)
    near = [
        _Damping(value, float(error))
        for value, error in zip(dampings, errors, strict=True)
        if float(error) <= NEAR * float(errors.min())
    ]
    return sorted(near, key=lambda damping: -damping.value)[:MOST_TRIED]


def _survivors(ranked: list[_Ranked], sparsity: float, scope: str) -> list[int]:
    """How many weights of each tensor remain: at least one."""
    if scope == "layer":
        return [survivor_count(item.values.numel(), sparsity) for item in ranked]
    scores = torch.cat([item.scores for item in ranked])
    mask = largest(scores, survivor_count(scores.numel(), sparsity))
    ends = list(itertools.accumulate(item.values.numel() for item in ranked))
    return [max(1, int(mask[a:b].sum())) for a, b in itertools.pairwise([0, *ends])]


def _stored(item: _Ranked, count: int) -> PrunedTensors:
    mask = largest(item.scores, count)
    left = item.values
    if item.rows is not None and item.settings is not None and item.settings.update != "none":
        moved = compensated(item.values, mask, item.rows, item.settings)
        limit = torch.finfo(item.values.dtype).max
        left = moved.clamp(-limit, limit).to(item.values.dtype) if bool(torch.isfinite(moved).all()) else left
    return PrunedTensors((mask,), (left[mask],), (item.group.members[0].part_shape,))


def _all_stored(ranked: list[_Ranked], sparsity: float, scope: str) -> dict[str, PrunedTensors]:
    counts = _survivors(ranked, sparsity, scope)
    return {item.group.name: _stored(item, count) for item, count in zip(ranked, counts, strict=True)}


def _reported(item: _Ranked, count: int) -> PrunedLayer:
    damping = None if item.settings is None else item.settings.damping
    size = item.values.numel()
    error, loss = (None, None) if item.choice is None else (item.choice.error, item.choice.loss)
    return PrunedLayer(item.group.name, size, size - count, damping, error, loss)


def _pruning_names(stored: dict[str, PrunedTensors]) -> dict[str, str]:
    """Group name -> choice name. Shares are rounded: they are in the header, the masks say what is really gone."""
    for digits in (4, 3, 2):
        highest = 1.0 - 10.0**-digits
        gone = {name: 1.0 - item.nonzeros / item.masks[0].numel() for name, item in stored.items()}
        names = {name: choice_name(Prune(min(round(share, digits), highest))) for name, share in gone.items()}
        if len(set(names.values())) < LARGEST_MENU:
            break
    return names


def _carrying(model: nn.Module, layout: Layout, stored: dict[str, PrunedTensors]) -> nn.Module:
    """A new module with these tensors and their plan; everything else is kept."""
    entries = state_entries(model)[0]
    choices, packed = {}, {}
    names_of = _pruning_names(stored)
    for group in layout.groups:
        if group.name in stored:
            choices[group.name] = names_of[group.name]
            packed[group.name] = stored[group.name]
        else:
            choices[group.name] = "keep"
            parts = [entries[member.name].tensor.detach().cpu() for member in group.members]
            packed[group.name] = stored_as("keep", group, parts)  # type: ignore[assignment]
    names = tuple(dict.fromkeys(["keep", *choices.values()]))
    plan = Plan(
        choices=choices,
        bytes=fixed_bytes(layout, names) + sum(item.nbytes for item in packed.values()),
        original_bytes=layout.original_bytes,
        parameters=layout.parameters,
        predicted_loss=float("nan"),
        menu_names=names,
        rule=layout.rule,
        weights=weights_signature(model),
        payloads={name: item.to_bytes() for name, item in stored.items()},
    )
    return filled(model, Compression(plan, layout, packed))


def cubic_schedule(sparsity: float, steps: int) -> list[float]:
    """Shares pruned after each step: most early, few late (Zhu & Gupta, 2017): s (1 - (1 - t / n)^3).

    Example:
        >>> [round(share, 3) for share in cubic_schedule(0.8, 4)]
        [0.463, 0.7, 0.788, 0.8]
    """
    return [sparsity * (1.0 - (1.0 - step / steps) ** 3) for step in range(1, steps + 1)]


def prune_gradually(
    model: nn.Module,
    batches: Iterable[Any],
    sparsity: float,
    how: Pruning | None = None,
    *,
    steps: int = 4,
    epochs: int = 1,
    layers: Layers = None,
    loss: LossLike = "cross-entropy",
    max_examples: int = 2048,
    seed: int = 0,
    progress: bool = True,
    schedule: Literal["cubic"] | list[float] = "cubic",
) -> nn.Module:
    """Prune in steps, each followed by recovery with the original as teacher; pruned weights stay pruned.

    Args:
        model: trained; left as it is.
        batches: calibration and training batches.
        sparsity: share pruned in the end.
        how: see :class:`Pruning`.
        steps: how many.
        epochs: of fine-tuning after every step; 0: statistics and biases only.
        layers: which weights; see :data:`Layers`.
        loss: whose gradients.
        max_examples: reading the batches stops there.
        seed: of everything drawn.
        progress: show progress bars.
        schedule: ``"cubic"``, or rising shares that end at ``sparsity``.

    Returns:
        A new module in eval mode; its plan can be applied to ``model`` again.

    Raises:
        InvalidBudget: for a schedule that does not rise to the sparsity.
    """
    shares = cubic_schedule(sparsity, steps) if schedule == "cubic" else list(schedule)
    rising = all(a < b for a, b in itertools.pairwise(shares))
    if steps < 1 or not shares or not rising or abs(shares[-1] - sparsity) > 1e-12:
        raise InvalidBudget(f"a schedule rises to sparsity={sparsity} in at least one step; got {shares}")
    small = model
    for number, share in enumerate(shares):
        pruned = prune(
            small, batches, share, how, layers=layers, loss=loss, max_examples=max_examples, seed=seed + number
        )
        small = recover(pruned, batches, model, epochs, seed + number, max_examples=max_examples, progress=progress)
    return _replanned(small, model)


def _replanned(small: nn.Module, model: nn.Module) -> nn.Module:
    """The same network with a plan for the original weights, which holds every group's bytes as they are now."""
    found = compression_of(small)
    payloads = {name: packed.to_bytes() for name, packed in found.stored.items()}
    plan = replace(found.plan, weights=weights_signature(model), payloads=payloads)
    made = copy.deepcopy(small)
    setattr(made, ATTRIBUTE, Compression(plan, found.layout, found.stored))
    return made

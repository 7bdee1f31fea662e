"""Pruning a whole network at once or step by step, by magnitude or by second-order saliency.

Thresholds are per layer (the same share everywhere) or global (one threshold on the saliency over all layers). What
comes out carries a plan like every compressed network: it is saved, loaded, recovered and audited alike. To let the
solver decide layer by layer instead, put ``woodfisher`` on a menu.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from qubo_compress.errors import InvalidBudget, InvalidMenu, unknown_name
from qubo_compress.examples import read_examples
from qubo_compress.file_format import fixed_bytes, weights_signature
from qubo_compress.menu.groups import Group, Layout, discover, state_entries
from qubo_compress.menu.operator import choice_name, stored_as
from qubo_compress.menu.prune import Prune, PrunedTensors, check_sparsity, survivor_count
from qubo_compress.menu.woodfisher import Settings, Update, chosen_damping, compensated, largest, saliencies
from qubo_compress.plan import ATTRIBUTE, Compression, Plan, compression_of, filled
from qubo_compress.recovery import recover
from qubo_compress.sensitivity.losses import LossLike, make_loss, rows_of
from qubo_compress.sensitivity.replay import run_model
from qubo_compress.sensitivity.substitution import evaluating
from qubo_compress.statistics.gradients import GradientRows, Gradients
from qubo_compress.statistics.statistic import Calibration

METHODS = ("magnitude", "diagonal-fisher", "woodtaylor", "woodfisher")
SCOPES = ("layer", "global")

Layers = str | Callable[[str], bool] | None
"""A regular expression on parameter names, a function of the name, or None for every weight."""


@dataclass(frozen=True)
class Pruning:
    """How weights are ranked and what happens to the survivors.

    Args:
        method: ``"magnitude"``, ``"diagonal-fisher"`` (w^2 F_qq / 2), ``"woodtaylor"`` or ``"woodfisher"``.
        scope: ``"layer"``: the same share of every tensor; ``"global"``: one threshold over all of them.
        update: ``"joint"``, ``"independent"`` or ``"none"``; the first two methods move nothing.
        damping: added to the Fisher's diagonal; None: chosen by held-out prediction error, tensor by tensor.
        block: weights per block of the Fisher.
        gradients: how many per-example gradients.
        batch: examples that each gradient is the mean of.

    Raises:
        InvalidMenu: for an unknown method, scope or update.
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

    @property
    def looks_at_data(self) -> bool:
        """Whether gradients are needed."""
        return self.method != "magnitude"


@dataclass(frozen=True, eq=False)
class _Ranked:
    """One tensor, flat: its weights, the score of each, and what is needed to move the survivors."""

    group: Group
    values: Tensor
    scores: Tensor
    rows: GradientRows | None
    settings: Settings | None


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
    examples = read_examples(batches, max_examples)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    entries = state_entries(model)[0]
    with evaluating(model):
        calibration = Calibration(
            model, examples.to(device), make_loss(loss), lambda x: rows_of(run_model(model, x)), seed
        )
        ranked = [_ranked(calibration, group, entries[group.members[0].name].tensor, sparsity, how) for group in picked]
    counts = _survivors(ranked, sparsity, how.scope)
    stored = {item.group.name: _stored(item, count) for item, count in zip(ranked, counts, strict=True)}
    return _carrying(model, layout, stored)


def _picked(layout: Layout, layers: Layers) -> list[Group]:
    pattern = re.compile(layers if isinstance(layers, str) else "")
    wanted = layers if callable(layers) else lambda name: pattern.search(name) is not None
    weights = [group for group in layout.groups if group.kind == "weight"]
    found = [group for group in weights if wanted(group.name)]
    if not found:
        names = ", ".join(group.name for group in weights[:4])
        raise InvalidMenu(f"layers={layers!r} picks no weight of this network; its weights are {names}, ...")
    return found


def _ranked(calibration: Calibration, group: Group, tensor: Tensor, sparsity: float, how: Pruning) -> _Ranked:
    values = tensor.detach().cpu().reshape(-1)
    if how.method == "magnitude":
        return _Ranked(group, values, values.double().abs(), None, None)
    rows = Gradients(how.gradients, how.batch).collect(calibration, group)[0]
    if how.method == "diagonal-fisher":
        scores = 0.5 * values.double() ** 2 * rows.values.double().square().mean(0)
        return _Ranked(group, values, scores, None, None)
    damping = how.damping or chosen_damping(values, rows, sparsity, how.block)[0]
    settings = Settings(damping, how.block, cast(Update, how.update), how.method == "woodtaylor")
    # Only what the update needs stays in memory until the thresholds are known.
    return _Ranked(group, values, saliencies(values, rows, settings), None if how.update == "none" else rows, settings)


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
    if item.rows is not None and item.settings is not None:
        moved = compensated(item.values, mask, item.rows, item.settings)
        limit = torch.finfo(item.values.dtype).max
        left = moved.clamp(-limit, limit).to(item.values.dtype) if bool(torch.isfinite(moved).all()) else left
    return PrunedTensors((mask,), (left[mask],), (item.group.members[0].part_shape,))


def _carrying(model: nn.Module, layout: Layout, stored: dict[str, PrunedTensors]) -> nn.Module:
    """A new module with these tensors and their plan; everything else is kept."""
    entries = state_entries(model)[0]
    choices, packed = {}, {}
    for group in layout.groups:
        if group.name in stored:
            gone = 1.0 - stored[group.name].nonzeros / group.numel
            choices[group.name] = choice_name(Prune(gone))
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

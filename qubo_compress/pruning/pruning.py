"""Pruning a whole network at once or step by step, by magnitude or by second-order saliency.

Thresholds are per layer (the same share everywhere) or global (one threshold on the saliency over all layers). The
result carries a plan like every compressed network: it can be saved, loaded, recovered and audited. To let the solver
decide layer by layer instead, put ``woodfisher`` on a menu.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack, cast

from torch import nn

from qubo_compress._internal.checks import refuse_unknown
from qubo_compress.calibration.evaluation import settle
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.calibration.statistics.gradients import GradientRows, Gradients
from qubo_compress.calibration.statistics.statistic import Calibration
from qubo_compress.errors import InvalidBudget, InvalidMenu, WrongModel
from qubo_compress.menu.operator import choice_name, stored_as
from qubo_compress.menu.prune import Prune, PrunedTensors, check_sparsity
from qubo_compress.menu.storage.file_format import fixed_bytes
from qubo_compress.network.discovery import discover
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.groups import Group, Layout
from qubo_compress.network.losses.classification import AUTO, LossLike, make_loss
from qubo_compress.network.private import CARRIED, independent_copy, private_copy
from qubo_compress.network.replay import run_model
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.plan import Compression, Plan, compression_of, filled
from qubo_compress.pruning.weight_scores import (
    METHODS,
    SCOPES,
    Pruning,
    Ranked,
    loss_judge,
    ranked_tensors,
    stored_tensors,
    survivor_counts,
    unseen_examples,
)
from qubo_compress.recovery import recover

__all__ = [
    "METHODS", "SCOPES", "Layers", "PrunedLayer", "Pruning",
    "cubic_schedule", "gradients_of", "prune", "prune_gradually", "pruned_layers",
]  # fmt: skip

REPORT = "pruned_layers"
"""Name of the attribute that holds a pruned module's :class:`PrunedLayer` tuple."""

LARGEST_MENU = 255
"""Most choices: a file refers to a choice by one byte."""

Layers = str | Callable[[str], bool] | None
"""A regular expression on parameter names, a function of the name, or None for every weight."""


class PruningOptions(TypedDict, total=False):
    """Keyword arguments of every function here: which weights, and the data for their saliency."""

    layers: Layers
    loss: LossLike
    max_examples: int
    seed: int


@dataclass(frozen=True)
class _Examined:
    """The options with defaults filled in.

    Attributes:
        layers: which weights; see :data:`Layers`.
        loss: whose gradients; without labels, they are drawn from the network.
        max_examples: reading the batches stops there.
        seed: of the examples that give gradients.
    """

    layers: Layers = None
    loss: LossLike = AUTO
    max_examples: int = 2048
    seed: int = 0


@dataclass(frozen=True)
class PrunedLayer:
    """The result of pruning for one tensor.

    Attributes:
        name: of its weights.
        weights: how many it has.
        pruned: how many are zero now.
        damping: added to the diagonal of its Fisher; None if no Fisher was inverted.
        held_out_error: of the chosen damping, see :func:`qubo_compress.menu.woodfisher.best_damping`; None if
            the damping was given.
        held_out_loss: measured on unseen examples; None if the damping was not chosen by it.
    """

    name: str
    weights: int
    pruned: int
    damping: float | None = None
    held_out_error: float | None = None
    held_out_loss: float | None = None


def pruned_layers(model: nn.Module) -> tuple[PrunedLayer, ...]:
    """The result of :func:`prune`, or of the last step of :func:`prune_gradually`, for each tensor of a network.

    Raises:
        WrongModel: when the network was not pruned by these.
    """
    found = getattr(model, REPORT, None)
    if found is None:
        raise WrongModel("this network was not made by prune or prune_gradually; prune it first")
    return cast(tuple[PrunedLayer, ...], found)


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    sparsity: float,
    how: Pruning | None = None,
    *,
    gradients: Mapping[str, GradientRows] | None = None,
    **options: Unpack[PruningOptions],
) -> nn.Module:
    """Prune in one shot.

    Args:
        model: trained; unchanged.
        batches: calibration batches.
        sparsity: share of the chosen layers' weights set to zero, over all of them.
        how: see :class:`Pruning`.
        gradients: of the same layers from :func:`gradients_of`, to prune one network several times; None: gathered
            here. Batches must then come in the same order: the damping is judged on the examples without gradients.
        options: ``layers``, which weights: see :data:`Layers`; ``loss``, whose gradients: without labels they are drawn
            from the network; ``max_examples``, where reading the batches stops; ``seed`` of the examples that give
            gradients.

    Returns:
        A new module in eval mode that carries its plan.

    Raises:
        InvalidMenu: when ``layers`` matches no weight, or the sparsity is out of range.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = [(torch.randn(32, 6), torch.randint(3, (32,)))]
        >>> small = prune(net, data, 0.5, Pruning(scope="layer"))
        >>> int(sum((m.weight == 0).sum() for m in small if isinstance(m, nn.Linear)))
        36
    """
    refuse_unknown(prune, options, PruningOptions.__annotations__)
    how, source = how or Pruning(), _Examined(**options)
    check_sparsity(sparsity)
    model = unwrapped(model)
    layout = discover(model)
    picked = _picked(layout, source.layers)
    examples = None if how.method == "magnitude" else read_examples(batches, source.max_examples)
    judge = None
    if examples is not None:
        examples, loss = settle(model, examples, source.loss)
        source = replace(source, loss=loss)
        gradients = _gathered(model, examples, how, picked, source) if gradients is None else gradients
        if how.damping is None and how.method != "diagonal-fisher":
            judge = loss_judge(model, unseen_examples(examples, how, source.seed), loss)
    tensors = NetworkTensors(model)
    flat = [tensors.part(group.members[0]).reshape(-1) for group in picked]
    ranked = ranked_tensors(picked, flat, gradients or {}, sparsity, how, judge)
    counts = survivor_counts(ranked, sparsity, how.scope)
    stored = stored_tensors(ranked, sparsity, how.scope)
    small = _carrying(model, layout, stored)
    setattr(small, REPORT, tuple(_reported(item, count) for item, count in zip(ranked, counts, strict=True)))
    return small


def gradients_of(
    model: nn.Module,
    batches: Iterable[Any],
    how: Pruning | None = None,
    **options: Unpack[PruningOptions],
) -> dict[str, GradientRows]:
    """Name -> gradients of every layer to prune, in float32: 4 bytes x gradients x weights.

    Args:
        model: unchanged.
        batches: calibration batches.
        how: the number of gradients, and of examples for each.
        options: see :func:`prune`.

    Raises:
        InvalidMenu: when ``layers`` picks nothing.
    """
    refuse_unknown(gradients_of, options, PruningOptions.__annotations__)
    model, source = unwrapped(model), _Examined(**options)
    picked = _picked(discover(model), source.layers)
    return _gathered(model, read_examples(batches, source.max_examples), how or Pruning(), picked, source)


def _gathered(
    model: nn.Module, examples: Examples, how: Pruning, picked: list[Group], source: _Examined
) -> dict[str, GradientRows]:
    model = private_copy(model)
    statistic = Gradients(how.gradients, how.batch)
    examples, loss = settle(model, examples.to(NetworkTensors(model).device), source.loss)
    with every_layer_runs():
        calibration = Calibration(
            model, examples, make_loss(loss), lambda x: examples.reading.rows(run_model(model, x)), source.seed
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


def _reported(item: Ranked, count: int) -> PrunedLayer:
    damping = None if item.settings is None else item.settings.damping
    size = item.values.numel()
    error, loss = (None, None) if item.choice is None else (item.choice.error, item.choice.loss)
    return PrunedLayer(item.group.name, size, size - count, damping, error, loss)


def _pruning_names(stored: dict[str, PrunedTensors]) -> dict[str, str]:
    """Group name -> choice name. The header has rounded shares; the masks say what is really pruned."""
    for digits in (4, 3, 2):
        highest = 1.0 - 10.0**-digits
        gone = {name: 1.0 - item.nonzeros / item.masks[0].numel() for name, item in stored.items()}
        names = {name: choice_name(Prune(min(round(share, digits), highest))) for name, share in gone.items()}
        if len(set(names.values())) < LARGEST_MENU:
            break
    return names


def _carrying(model: nn.Module, layout: Layout, stored: dict[str, PrunedTensors]) -> nn.Module:
    """A new module with these tensors and their plan; everything else is kept."""
    tensors = NetworkTensors(model)
    choices, packed = {}, {}
    names_of = _pruning_names(stored)
    for group in layout.groups:
        if group.name in stored:
            choices[group.name] = names_of[group.name]
            packed[group.name] = stored[group.name]
        else:
            choices[group.name] = "keep"
            packed[group.name] = stored_as("keep", group, tensors.parts(group))  # type: ignore[assignment]
    names = tuple(dict.fromkeys(["keep", *choices.values()]))
    plan = Plan(
        choices=choices,
        bytes=fixed_bytes(layout, names) + sum(item.nbytes for item in packed.values()),
        original_bytes=layout.original_bytes,
        parameters=layout.parameters,
        predicted_loss=float("nan"),
        menu_names=names,
        rule=layout.rule,
        weights=tensors.signature(),
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
    progress: bool = True,
    schedule: Literal["cubic"] | list[float] = "cubic",
    **options: Unpack[PruningOptions],
) -> nn.Module:
    """Prune in steps, each followed by recovery with the original as teacher; pruned weights stay pruned.

    Args:
        model: trained; unchanged.
        batches: calibration and training batches.
        sparsity: final share of pruned weights.
        how: see :class:`Pruning`.
        steps: number of steps.
        epochs: of fine-tuning after every step; 0: only statistics and biases.
        progress: show progress bars.
        schedule: ``"cubic"``, or rising shares that end at ``sparsity``.
        options: see :func:`prune`; ``seed`` covers all random draws.

    Returns:
        A new module in eval mode; its plan can be applied to ``model`` again.

    Raises:
        InvalidBudget: for a schedule that does not rise to the sparsity.
    """
    refuse_unknown(prune_gradually, options, PruningOptions.__annotations__)
    shares = cubic_schedule(sparsity, steps) if schedule == "cubic" else list(schedule)
    rising = all(a < b for a, b in itertools.pairwise(shares))
    if steps < 1 or not shares or not rising or abs(shares[-1] - sparsity) > 1e-12:
        raise InvalidBudget(f"a schedule rises to sparsity={sparsity} in at least one step; got {shares}")
    small, source = unwrapped(model), _Examined(**options)
    model = small
    for seed, share in enumerate(shares, source.seed):
        in_step: PruningOptions = {**options, "seed": seed}
        pruned = prune(small, batches, share, how, **in_step)
        small = recover(
            pruned, batches, model, epochs, seed, max_examples=source.max_examples, progress=progress, loss=source.loss
        )
    return _replanned(small, model)


def _replanned(small: nn.Module, model: nn.Module) -> nn.Module:
    """The same network with a plan for the original weights, which holds every group's present bytes."""
    found = compression_of(small)
    payloads = {name: packed.to_bytes() for name, packed in found.stored.items()}
    plan = replace(found.plan, weights=NetworkTensors(model).signature(), payloads=payloads)
    made = independent_copy(small)
    setattr(made, CARRIED, Compression(plan, found.layout, found.stored))
    return made

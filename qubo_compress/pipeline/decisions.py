"""Decisions about channels beside the layers' choices: one problem for both, then the layers settled to the byte.

The problem's prices are products of three choices, expanded around a plan; so it is solved, expanded around its answer
and solved again, until the answer stays. What leaves the network is decided there. The layers that are left are then
repaired, measured and stored as they are, and chosen for under the same limits, because files are paid in bytes, not in
shares of bytes. The network with all its channels competes, and so do the channels that multiplications alone would
leave; held-out examples decide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from qubo_compress.budget import Budget
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.pipeline.finals import judged_repaired
from qubo_compress.pipeline.refinement import Round
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.selection.candidates import TIE
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.sensitivity.coupled.choices import REMOVE, RemovalChoices
from qubo_compress.sensitivity.coupled.remainder import Remainder
from qubo_compress.sensitivity.specimen import Specimen
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import Solution

logger = logging.getLogger(__name__)

EXPANSIONS = 4
"""Most solves: the answer of the third is nearly always that of the second."""

ALL_CHANNELS, FEWER_CHANNELS, CHANNELS_FIRST = "all channels", "fewer channels", "channels first"

Solve = Callable[[ChoiceProblem], Solution]
Settle = Callable[[Specimen, Budget, Remainder | None], Round]
"""(network with layers as groups, limits, what it is the remainder of) -> the first round."""


@dataclass(frozen=True)
class Trial:
    """A network whose layers were chosen for.

    Attributes:
        name: ``"fewer channels"``: those that the problem of both leaves; ``"channels first"``: those that are left
            where multiplications alone decide, before any bits; ``"all channels"``.
        removed: how many coupled sets it lacks.
        measure: of its best plan on the held-out examples, repaired; see
            :attr:`qubo_compress.selection.comparison.Comparison.measure`. None where no plan fits.
    """

    name: str
    removed: int
    measure: float | None


@dataclass(frozen=True, eq=False)
class ChannelDecisions:
    """What was decided about channels.

    Attributes:
        table: of the layers' choices and the decisions.
        solution: the best answer, which says which channels leave.
        expansions: energy of each answer, with its own shares of every layer, and whether it fits.
        trials: the networks that were compared.
    """

    table: SensitivityTable
    solution: Solution | None
    expansions: tuple[tuple[float, bool], ...]
    trials: tuple[Trial, ...]


def decided(
    specimen: Specimen,
    table: SensitivityTable,
    budget: Budget,
    solve: Solve,
    settle: Settle,
    judge: HeldOut,
    repair: Callable[[nn.Module], nn.Module] | None = None,
) -> tuple[Round, ChannelDecisions]:
    """The first round of the network that is best on held-out examples, and how it was found.

    Args:
        specimen: the network that was measured.
        table: of its layers' choices and the decisions.
        budget: the limits.
        solve: problem -> solution.
        settle: chooses for the layers of a network.
        judge: the held-out examples.
        repair: a network -> the same, with statistics and biases that fit it; None for no repair. Networks are compared
            repaired: at two bits a repair is worth more than anything else.

    Raises:
        InfeasibleBudget, NoFeasibleFound: when no plan fits, neither with all channels nor with fewer.
    """
    removals = removals_of(table)
    limits = budget.limits(table.layout.original_bytes, table.layout.parameters)
    absolute = replace(budget, ratio=None, bits_per_weight=None, bytes=limits["bytes"])
    solution, expansions = expanded(table, limits, lambda around: solve(table.problem(budget, around=around)))
    answers = {FEWER_CHANNELS: solution, CHANNELS_FIRST: _channels_first(table, absolute, solve)}
    settings = replace(specimen.settings, groups="layer")
    gone_of: dict[str, list[int]] = {}
    for name, answer in answers.items():
        gone = [] if answer is None else removals.gone(table.group_names, answer.choices)
        if gone and gone not in gone_of.values():
            gone_of[name] = gone
    gone_of[ALL_CHANNELS] = []
    best: tuple[float, Round] | None = None
    trials, reasons = list[Trial](), list[Exception]()
    for name, gone in gone_of.items():
        left = _remainder(table, gone, repair) if gone else None
        network = specimen if left is None else left.specimen()
        try:
            own = replace(settings, cache=_folder(settings.cache, name, network))
            found = settle(replace(network, settings=own), _for_layers(absolute, table, gone), left)
        except (InfeasibleBudget, NoFeasibleFound) as reason:
            logger.info("%s: %s", name, reason)
            reasons.append(reason)
            trials.append(Trial(name, len(gone), None))
        else:
            measure = judged_repaired(found, judge, repair, epochs=0).round.chosen.final_measure
            trials.append(Trial(name, len(gone), measure))
            if best is None or measure < best[0] - TIE:
                best = (measure, found)
    if best is None:
        raise reasons[0]
    return best[1], ChannelDecisions(table, solution, tuple(expansions), tuple(trials))


def _folder(cache: str | Path | None, name: str, network: Specimen) -> Path | None:
    """A network's own folder in the cache, named by its values too: another answer leaves another network."""
    if cache is None:
        return None
    return Path(cache) / f"{name.replace(' ', '_')}_{NetworkTensors(network.model).signature()[:12]}"


def _channels_first(table: SensitivityTable, budget: Budget, solve: Solve) -> Solution | None:
    """Channels chosen for the multiplications alone, with layers as they are: what users do without one problem."""
    if budget.macs is None:
        return None
    layers = removals_of(table).layers
    open_, first = table.allowed.copy(), int(table.offsets[len(layers)])
    open_[:first] = False
    open_[table.offsets[: len(layers)]] = True
    pinned = replace(table, allowed=open_)
    try:
        return solve(pinned.problem(Budget(bytes=2 * table.layout.original_bytes, macs=budget.macs)))
    except (InfeasibleBudget, NoFeasibleFound) as reason:
        logger.info("%s: %s", CHANNELS_FIRST, reason)
        return None


def _remainder(
    table: SensitivityTable, gone: Collection[int], repair: Callable[[nn.Module], nn.Module] | None
) -> Remainder:
    """The network without some sets, repaired before anything is chosen for its layers."""
    removals = removals_of(table)
    remainder = removals.without(gone)
    if repair is None:
        return remainder
    names = table.group_names[len(removals.layers) :]
    leaving = {name: REMOVE for name, block in zip(names, removals.blocks, strict=True) if set(block) <= set(gone)}
    return remainder.replaced(repair(table.plan(leaving).apply(removals.specimen.model)))


def _for_layers(budget: Budget, table: SensitivityTable, gone: Collection[int]) -> Budget:
    """The limits for the layers of a network without some sets: multiplications with zeros are done, too.

    Raises:
        InfeasibleBudget: when it multiplies too often, and no choice of a layer changes that.
    """
    if budget.macs is None:
        return budget
    removals = removals_of(table)
    assert removals.prices is not None  # noqa: S101 - the caller measured such a table
    kept = np.array([not set(block) <= set(gone) for block in removals.blocks])
    done = removals.prices.total("macs", {}, kept)
    if done <= budget.macs:
        return replace(budget, macs=None)
    if all(len(set(costs.values())) == 1 for costs in removals.prices.whole["macs"]):
        raise InfeasibleBudget(
            f"the budget allows {budget.macs:,} multiplications, and the layers do {done:,.0f} whatever is chosen for "
            "them; raise the budget"
        )
    return budget


def removals_of(table: SensitivityTable) -> RemovalChoices:
    """What a table knows about channels; only for tables that have decisions about them."""
    assert table.removals is not None  # noqa: S101 - the caller measured such a table
    return table.removals


def within(table: SensitivityTable, choices: Mapping[str, str], limits: Mapping[str, int]) -> bool:
    """Whether a plan is within all limits, with each layer's price in proportion to what is left of it."""
    removals = removals_of(table)
    assert removals.prices is not None  # noqa: S101 - likewise
    kept = removals.kept(table.group_names, choices)
    return all(removals.prices.total(name, choices, kept) <= limit for name, limit in limits.items())


def expanded(
    table: SensitivityTable, limits: Mapping[str, int], solve: Callable[[Mapping[str, str]], Solution]
) -> tuple[Solution | None, list[tuple[float, bool]]]:
    """The best plan found by expanding around one answer after another, or None; and what was found on the way.

    Args:
        table: of layers' choices and decisions.
        limits: by budget name.
        solve: plan to expand around -> solution.
    """
    best: tuple[float, Solution] | None = None
    history: list[tuple[float, bool]] = []
    seen: list[Mapping[str, str]] = []
    waiting: list[Mapping[str, str]] = [smallest_choices(table), {}]
    while waiting and len(seen) < EXPANSIONS:
        around = waiting.pop()
        seen.append(around)
        try:
            solution = solve(around)
        except (InfeasibleBudget, NoFeasibleFound) as reason:
            logger.info("expansion %d: %s", len(seen), reason)
            continue
        energy, fits = table.predict(solution.choices), within(table, solution.choices, limits)
        logger.info("expansion %d: energy %.4g, fits: %s", len(seen), energy, fits)
        history.append((energy, fits))
        if fits and (best is None or energy < best[0] - TIE):
            best = (energy, solution)
        waiting = [] if solution.choices in seen else [solution.choices]
    return (None if best is None else best[1]), history


def smallest_choices(table: SensitivityTable) -> dict[str, str]:
    """Every layer as its smallest choice, and all channels kept: prices expanded around it are too low, if anything."""
    found = {}
    for name, names, start in zip(table.group_names, table.choices, table.offsets[:-1].tolist(), strict=True):
        costs = table.costs["bytes"][start : start + len(names)]
        found[name] = names[int(costs.argmin())] if costs.any() else "keep"
    return found

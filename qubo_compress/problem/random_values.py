"""The arrays of random choice problems with realistic costs, for tests and benchmarks.

Costs are bytes: layer sizes are lognormal and the choices of a group shrink from 100 % (``keep``)
to about 5 %. Cheaper choices displace the weights more, by an amplitude that grows as bits are lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.errors import InvalidProblem, unknown_name

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
FactorArray = npt.NDArray[np.float32]
Values = dict[str, Any]
"""Field name -> value of a choice problem."""

_BYTES_PER_WEIGHT = 4
_SMALLEST_FRACTION = 0.05


@dataclass(frozen=True)
class _Menu:
    """Costs and displacement amplitudes common to all kinds; (G, K) unless noted."""

    fractions: FloatArray
    costs: IntArray  # (B, V)
    limits: IntArray
    fixed_costs: IntArray
    amplitudes: FloatArray
    """Size of the displacement: zero for ``keep``, growing as the choice gets smaller."""

    @property
    def shape(self) -> tuple[int, int]:
        groups, choices = self.fractions.shape
        return groups, choices

    def build(self, linear: FloatArray, **interactions: Any) -> Values:
        groups, choices = self.shape
        names = ["keep", *(f"choice{k}" for k in range(1, choices))]
        return dict(
            linear=linear.ravel(),
            group_offsets=np.arange(groups + 1) * choices,
            costs=self.costs,
            limits=interactions.pop("limits", self.limits),
            fixed_costs=self.fixed_costs,
            choice_names=tuple(names) * groups,
            budget_names=("bytes", *(f"budget{b}" for b in range(1, len(self.limits))))[: len(self.limits)],
            **interactions,
        )


@dataclass(frozen=True)
class RandomOptions:
    """Options of random problems, in addition to kind, size and seed.

    Args:
        rank: columns of the factor; None: the smaller of 64 and V.
        budget_fraction: the budget, as a fraction of the cost of keeping everything.
        neighbours: reach of the sparse couplings.
        coupling: size of a group's pair energies relative to its linear ones.
        budgets: number of budgets; those after bytes weigh the groups differently, as multiplications do.
        pair_costs: size of random pair costs of either sign, relative to the costs of the two choices, for groups
            within ``neighbours``; 0 for none. Of ``"channels"``, whose pair costs follow from the layers, only 0.
    """

    rank: int | None = None
    budget_fraction: float = 0.45
    neighbours: int = 2
    coupling: float = 0.3
    budgets: int = 1
    pair_costs: float = 0.0


def random_values(kind: str, groups: int, choices: int, seed: int, options: RandomOptions) -> Values:
    """The values for :func:`~qubo_compress.problem.generators.random_problem`."""
    builders: dict[str, Callable[[_Menu, np.random.Generator], Values]] = {
        "separable": lambda menu, rng: menu.build(_linear(menu, rng)),
        "sparse": lambda menu, rng: _paired(menu, rng, options.neighbours, options.coupling),
        "dense": lambda menu, rng: _paired(menu, rng, groups, options.coupling),
        "low-rank": lambda menu, rng: _low_rank(menu, rng, _rank(options.rank, menu)),
        "planted": lambda menu, rng: _planted(menu, rng, _rank(options.rank, menu), options.budget_fraction)[0],
        "channels": lambda menu, rng: _channels(menu, rng, options),
    }
    if kind not in builders:
        raise unknown_name("kind of problem", kind, builders)
    if not 0.0 <= options.pair_costs < np.inf or (options.pair_costs and kind == "channels"):
        raise InvalidProblem(
            f"pair_costs must be 0 or, for other kinds than 'channels', a positive number; got {options.pair_costs}"
        )
    rng = np.random.default_rng(seed)
    menu = _draw_menu(rng, groups, choices, options.budget_fraction, options.budgets)
    values = builders[kind](menu, rng)
    if options.pair_costs and options.neighbours > 0:
        values["pair_costs"] = _random_pair_costs(menu, rng, options)
    return values


def planted_values(
    groups: int, choices: int, seed: int, *, rank: int | None = None, budget_fraction: float = 0.45, budgets: int = 1
) -> tuple[Values, IntArray]:
    """The values for :func:`~qubo_compress.problem.generators.planted_problem`, and the optimum."""
    rng = np.random.default_rng(seed)
    menu = _draw_menu(rng, groups, choices, budget_fraction, budgets)
    return _planted(menu, rng, _rank(rank, menu), budget_fraction)


def _draw_menu(rng: np.random.Generator, groups: int, choices: int, budget_fraction: float, budgets: int) -> _Menu:
    for name, value in (("groups", groups), ("choices", choices)):
        if value < 1:
            raise InvalidProblem(f"{name} must be at least 1; got {value}")
    if budgets < 0:
        raise InvalidProblem(f"budgets must not be negative; got {budgets}")
    if choices > 1 and not budget_fraction > 1.2 * _SMALLEST_FRACTION:
        raise InvalidProblem(f"budget_fraction must exceed {1.2 * _SMALLEST_FRACTION:.2f}; got {budget_fraction}")
    if choices == 1:
        budget_fraction = max(budget_fraction, 1.0)  # only `keep` is offered, and it must fit
    weights = np.maximum(64, rng.lognormal(np.log(2e4), 1.2, size=groups)).astype(np.int64)
    fractions = np.tile(np.linspace(1.0, _SMALLEST_FRACTION, choices), (groups, 1))
    fractions[:, 1:-1] *= rng.uniform(0.97, 1.03, size=fractions[:, 1:-1].shape)
    costs = np.empty((budgets, groups, choices), dtype=np.int64)
    for b in range(budgets):
        reuse = rng.lognormal(0.0, 1.0, size=groups) if b else np.ones(groups)
        costs[b] = np.maximum(1, np.rint(_BYTES_PER_WEIGHT * (weights * reuse)[:, None] * fractions))
    whole = costs[:, :, 0].sum(axis=1)
    fixed = np.rint(0.01 * whole).astype(np.int64)
    # Sensitivities of layers differ by orders of magnitude; larger layers are more redundant.
    sensitivity = rng.lognormal(0.0, 0.8, size=groups) * (weights / 2e4) ** -0.25
    growth = ((1.0 - fractions.clip(max=1.0)) / (1.0 - _SMALLEST_FRACTION)) ** 1.5
    amplitudes = np.sqrt(sensitivity)[:, None] * growth * rng.uniform(0.85, 1.15, size=growth.shape)
    amplitudes[:, 0] = 0.0
    flat = costs.reshape(budgets, groups * choices)
    return _Menu(fractions, flat, fixed + np.floor(budget_fraction * whole).astype(np.int64), fixed, amplitudes)


def _rank(rank: int | None, menu: _Menu) -> int:
    chosen = min(64, menu.amplitudes.size) if rank is None else rank
    if chosen < 1:
        raise InvalidProblem(f"rank must be at least 1; got {chosen}")
    return chosen


def _linear(menu: _Menu, rng: np.random.Generator) -> FloatArray:
    """Half the squared displacement and a first-order term of either sign."""
    noise = rng.normal(0.0, 0.15, size=menu.shape) * menu.amplitudes
    return np.asarray(0.5 * menu.amplitudes**2 + noise, dtype=np.float64)


def _paired(menu: _Menu, rng: np.random.Generator, reach: int, coupling: float) -> Values:
    linear = _linear(menu, rng)
    reach = min(reach, menu.shape[0] - 1)
    if reach < 1:
        return menu.build(linear)
    lower, upper = _within(menu.shape[0], reach)
    return menu.build(linear, pairs=_pair_energies(menu, rng, lower, upper, coupling / np.sqrt(2 * reach)))


def _within(groups: int, reach: int) -> tuple[IntArray, IntArray]:
    """The lower and the upper group of every pair of groups at most ``reach`` apart."""
    distances = range(1, min(reach, groups - 1) + 1)
    pairs = [np.stack([np.arange(groups - d), np.arange(d, groups)]) for d in distances]
    lower, upper = np.concatenate([np.zeros((2, 0), dtype=np.int64), *pairs], axis=1)
    return lower, upper


def _pair_energies(
    menu: _Menu, rng: np.random.Generator, lower: IntArray, upper: IntArray, scale: float
) -> sparse.csr_array:
    """Random pair energies, scaled so that all of a group together weigh as much as its linear term."""
    choices = menu.shape[1]
    blocks = rng.standard_normal((lower.size, choices, choices))
    blocks *= scale * menu.amplitudes[lower][:, :, None] * menu.amplitudes[upper][:, None, :]
    return _symmetric(menu, lower, upper, blocks)


def _symmetric(menu: _Menu, lower: IntArray, upper: IntArray, blocks: npt.NDArray[Any]) -> sparse.csr_array:
    """The (V, V) matrix with a block (K, K) of every pair of groups above the diagonal, and its mirror image below."""
    groups, choices = menu.shape
    rows = (lower[:, None] * choices + np.arange(choices))[:, :, None] + np.zeros((1, 1, choices), dtype=np.int64)
    columns = (upper[:, None] * choices + np.arange(choices))[:, None, :] + np.zeros((1, choices, 1), dtype=np.int64)
    filled = blocks != 0
    shape = (groups * choices, groups * choices)
    triangle = sparse.coo_array((blocks[filled], (rows[filled], columns[filled])), shape=shape)
    return (triangle + triangle.T).tocsr()


def _random_pair_costs(menu: _Menu, rng: np.random.Generator, options: RandomOptions) -> list[sparse.csr_array]:
    """Pair costs of either sign, none for ``keep``, of a size between those of the two choices' costs."""
    lower, upper = _within(menu.shape[0], options.neighbours)
    size = options.pair_costs / np.sqrt(2 * options.neighbours)
    found = []
    for costs in menu.costs.reshape(-1, *menu.shape).astype(np.float64):
        roots = np.sqrt(costs)
        roots[:, 0] = 0.0
        blocks = size * rng.standard_normal((lower.size, menu.shape[1], menu.shape[1]))
        blocks *= roots[lower][:, :, None] * roots[upper][:, None, :]
        found.append(_symmetric(menu, lower, upper, np.rint(blocks).astype(np.int64)))
    return found


def _channels(menu: _Menu, rng: np.random.Generator, options: RandomOptions) -> Values:
    """Channels of successive layers; the last choice of each removes it, with the weights that read it.

    A layer has ``neighbours`` channels, and each reads all channels of the layer before, so a channel has twice as many
    partners. A weight between two channels costs what the choice of the reading channel says, unless one of them
    is removed: ``cost(j, k) = inputs * weight(j, k)`` and ``pair_cost((i, removed), (j, k)) = - weight(j, k)``.
    """
    groups, choices = menu.shape
    inputs = max(1, options.neighbours)
    lower, upper = _within(groups, 2 * inputs - 1)
    near = lower // inputs + 1 == upper // inputs
    lower, upper = lower[near], upper[near]
    weights = np.maximum(1, menu.costs.reshape(-1, groups, choices) // inputs)
    pair_costs = []
    if choices > 1:
        weights[:, :, -1] = 0
        for weight in weights:
            blocks = np.zeros((lower.size, choices, choices), dtype=np.int64)
            blocks[:, -1, :] = -weight[upper]
            pair_costs.append(_symmetric(menu, lower, upper, blocks))
    costs = inputs * weights
    whole = costs[:, :, 0].sum(axis=1)
    fixed = np.rint(0.01 * whole).astype(np.int64)
    limits = fixed + np.floor(options.budget_fraction * whole).astype(np.int64)
    if choices == 1:
        limits = np.maximum(limits, fixed + whole)
    linear, energies = _linear(menu, rng), None
    if options.coupling and lower.size:
        energies = _pair_energies(menu, rng, lower, upper, options.coupling / np.sqrt(2 * inputs))
    names = ["keep", *(f"choice{k}" for k in range(1, choices - 1)), *["remove"][: choices - 1]]
    return menu.build(linear, pairs=energies) | {
        "costs": costs.reshape(len(costs), -1), "limits": limits, "fixed_costs": fixed,
        "pair_costs": pair_costs or None, "choice_names": tuple(names) * groups,
    }  # fmt: skip


def _draw_factor(menu: _Menu, rng: np.random.Generator, rank: int) -> FactorArray:
    """Rows that share much of their direction within a group and a little across groups."""
    groups, choices = menu.shape
    common = rng.standard_normal(rank, dtype=np.float32)
    factor = np.empty((groups, choices, rank), dtype=np.float32)
    for g in range(groups):  # group by group, so that no temporary is as large as the factor
        own = rng.standard_normal(rank, dtype=np.float32) + np.float32(0.07) * common
        rows = own + np.float32(0.7) * rng.standard_normal((choices, rank), dtype=np.float32)
        rows *= (menu.amplitudes[g] / np.linalg.norm(rows, axis=1)).astype(np.float32)[:, None]
        factor[g] = rows
    flat = factor.reshape(groups * choices, rank)
    flat.setflags(write=False)  # the problem shares a read-only factor instead of copying it
    return flat


def _low_rank(menu: _Menu, rng: np.random.Generator, rank: int) -> Values:
    factor = _draw_factor(menu, rng, rank)
    half_norms = 0.5 * np.einsum("vr,vr->v", factor, factor, dtype=np.float64).reshape(menu.shape)
    return menu.build(half_norms * (1.0 + 0.3 * np.abs(rng.standard_normal(menu.shape))), factor=factor)


def _planted(menu: _Menu, rng: np.random.Generator, rank: int, budget_fraction: float) -> tuple[Values, IntArray]:
    groups, choices = menu.shape
    factor = _draw_factor(menu, rng, rank)
    optimum = _draw_assignment(menu, rng, budget_fraction)
    chosen = np.arange(groups) * choices + optimum
    half_norms = 0.5 * np.einsum("vr,vr->v", factor, factor, dtype=np.float64)
    target = factor[chosen].sum(axis=0, dtype=np.float64)
    typical = float(half_norms.mean())
    # Small compared with the couplings, so that choosing by margins alone fails.
    margins = 0.05 * typical * rng.exponential(size=half_norms.size)
    margins[chosen] = 0.0
    reached = menu.costs[:, chosen].sum(axis=1)
    prices = rng.uniform(0.5, 1.5, size=reached.size) * groups * typical / np.maximum(reached, 1)
    projected = np.concatenate([part @ target for part in np.array_split(factor, max(1, groups // 64))])
    linear = half_norms - projected - prices @ menu.costs + margins
    linear = linear.reshape(menu.shape)
    linear -= linear[:, :1].copy()
    return menu.build(linear, factor=factor, limits=menu.fixed_costs + reached), optimum


def _draw_assignment(menu: _Menu, rng: np.random.Generator, budget_fraction: float) -> IntArray:
    """Independent choices, biased towards expensive or cheap ones to spend about the budget."""

    def probabilities(tilt: float) -> npt.NDArray[np.float64]:
        weights = np.exp(tilt * (menu.fractions - menu.fractions.max(axis=1, keepdims=True) * (tilt > 0)))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)

    low, high = -60.0, 60.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        spent = float((probabilities(middle) * menu.fractions).sum(axis=1).mean())
        low, high = (middle, high) if spent < budget_fraction else (low, middle)
    cumulative = probabilities(0.5 * (low + high)).cumsum(axis=1)
    draws = rng.random((menu.shape[0], 1))
    return np.asarray(np.minimum((draws > cumulative).sum(axis=1), menu.shape[1] - 1), dtype=np.int64)

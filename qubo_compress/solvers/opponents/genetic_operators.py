"""What the genetic algorithm does to whole populations: sampling, repair and the level switch, compiled.

A genome has one gene per group: the level of its choice when the group's choices are ordered by cost, so that
raising a level spends and lowering it saves. Every operator changes a population in place and draws from
generator words of its own.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qubo_compress._internal import compiling
from qubo_compress._internal.compiling import compiled, compiled_inline
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.generators import tiny_problem
from qubo_compress.solvers.annealer.kernels import uniform

Words = npt.NDArray[np.uint64]

_FAILURES_PER_GROUP = 20
_PRICE_DEVIATION = 1.5  # of the logarithm
_PERTURBATION = 0.3  # of the logarithm
_TINY = 1e-12


class Levels(NamedTuple):
    """The choices of a problem, ordered by cost within each group.

    Attributes:
        order: (V,) global choice number at each level of each group, cheapest first.
        offsets: (G + 1,) first level of each group.
        costs: (V, B) cost at each level.
        room: (B,) limits less fixed costs.
    """

    order: IntArray
    offsets: IntArray
    costs: IntArray
    room: IntArray

    def assignments(self, genomes: IntArray) -> IntArray:
        """(N, G) local choices of (N, G) levels."""
        return np.asarray(self.order[self.offsets[:-1] + genomes] - self.offsets[:-1], dtype=np.int64)

    def overspending(self, genomes: IntArray) -> FloatArray:
        """(N, B) totals above the limits as shares of them, negative where there is room."""
        totals = self.costs[self.offsets[:-1] + genomes].sum(axis=1)
        return np.asarray((totals - self.room) / np.maximum(1, self.room), dtype=np.float64)


def make_levels(problem: ChoiceProblem) -> Levels:
    """Order every group by cost; budgets of different units count as shares of what they allow.

    Example:
        >>> problem = ChoiceProblem([0.0, 1.0, 2.0], [0, 3], costs=[[9, 1, 5]], limits=[5])
        >>> make_levels(problem).order.tolist()
        [1, 2, 0]
    """
    room = problem.limits - problem.fixed_costs
    shares = (problem.costs / np.maximum(1, room)[:, None]).sum(axis=0)
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    order = np.lexsort((problem.linear, shares, group)).astype(np.int64)
    costs = np.ascontiguousarray(problem.costs[:, order].T)
    return Levels(order, problem.group_offsets.copy(), costs, room)


def generator_words(rng: np.random.Generator) -> Words:
    """Four words that start the compiled generator."""
    return np.asarray(rng.integers(1, 2**63, size=4), dtype=np.uint64)


@compiled_inline
def below(words: Words, count: int) -> int:
    """A random integer in [0, count)."""
    return int(uniform(words) * count)


@compiled_inline
def change_total(levels: Levels, totals: IntArray, group: int, old: int, new: int) -> None:
    """Account for the change of one gene."""
    start = levels.offsets[group]
    for b in range(totals.size):
        totals[b] += levels.costs[start + new, b] - levels.costs[start + old, b]


@compiled_inline
def overspends(levels: Levels, totals: IntArray, before: IntArray) -> bool:
    """Whether any budget is over its limit and further over it than before."""
    worse = False
    for b in range(totals.size):
        worse = worse or (totals[b] > levels.room[b] and totals[b] > before[b])
    return worse


@compiled_inline
def add_totals(levels: Levels, genome: IntArray, totals: IntArray) -> None:
    """Totals of a genome under each budget, fixed costs excluded."""
    totals[:] = 0
    for g in range(genome.size):
        for b in range(totals.size):
            totals[b] += levels.costs[levels.offsets[g] + genome[g], b]


@compiled
def switch_levels(levels: Levels, genomes: IntArray, mean: float, reach: int, spend: float, words: Words) -> None:
    """The mutation: raise the level of one group and lower another's so that the budgets still hold, or the reverse.

    Args:
        levels: the problem.
        genomes: (N, G) levels, changed in place.
        mean: mean number of switches tried per genome, at least one.
        reach: farthest step of a first change in levels.
        spend: how often a change that saves is followed by one that spends.
        words: of the generator.
    """
    groups, budgets = genomes.shape[1], levels.room.size
    totals, before = np.zeros(budgets, dtype=np.int64), np.zeros(budgets, dtype=np.int64)
    for n in range(genomes.shape[0]):
        genome = genomes[n]
        add_totals(levels, genome, totals)
        again = True
        while again:
            again = uniform(words) < 1.0 - 1.0 / mean
            group = below(words, groups)
            count = levels.offsets[group + 1] - levels.offsets[group]
            old = genome[group]
            low, high = max(0, old - reach), min(count - 1, old + reach)
            if low == high:
                continue
            new = low + below(words, high - low)
            new += new >= old
            before[:] = totals
            genome[group] = new
            change_total(levels, totals, group, old, new)
            if overspends(levels, totals, before):
                if not _balance(levels, genome, totals, before, group, words):
                    genome[group] = old
                    totals[:] = before
            elif new < old and uniform(words) < spend:
                before[:] = totals
                _spend(levels, genome, totals, before, group, words)


@compiled
def _balance(levels: Levels, genome: IntArray, totals: IntArray, before: IntArray, kept: int, words: Words) -> bool:
    """Lower one random other group as little as makes the budgets hold; False when none can."""
    groups = genome.size
    shift = below(words, groups)
    for i in range(groups):
        group = (i + shift) % groups
        old = genome[group]
        if group == kept:
            continue
        for new in range(old - 1, -1, -1):
            change_total(levels, totals, group, old, new)
            if not overspends(levels, totals, before):
                genome[group] = new
                return True
            change_total(levels, totals, group, new, old)
    return False


@compiled
def _spend(levels: Levels, genome: IntArray, totals: IntArray, before: IntArray, kept: int, words: Words) -> bool:
    """Raise one random other group by a random step that fits; False when none can."""
    groups = genome.size
    shift = below(words, groups)
    for i in range(groups):
        group = (i + shift) % groups
        count = levels.offsets[group + 1] - levels.offsets[group]
        old = genome[group]
        if group == kept or old == count - 1:
            continue
        new = old + 1 + below(words, count - 1 - old)
        while new > old:
            change_total(levels, totals, group, old, new)
            if not overspends(levels, totals, before):
                genome[group] = new
                return True
            change_total(levels, totals, group, new, old)
            new -= 1
    return False


@compiled
def repair(levels: Levels, genomes: IntArray, words: Words) -> None:
    """Lower random groups until every budget holds.

    Energies are not looked at: choosing is left to selection. Genomes that cannot be brought within
    several contradicting budgets stay over them.

    Args:
        levels: the problem.
        genomes: (N, G) levels, changed in place.
        words: of the generator.
    """
    groups, budgets = genomes.shape[1], levels.room.size
    totals = np.zeros(budgets, dtype=np.int64)
    for n in range(genomes.shape[0]):
        genome = genomes[n]
        add_totals(levels, genome, totals)
        failures = 0
        while failures < _FAILURES_PER_GROUP * groups and _excess(levels, totals) > 0.0:
            group = below(words, groups)
            if not _relieve(levels, genome, totals, group, below(words, genome[group] + 1)):
                failures += 1
        for group in range(groups):
            if _excess(levels, totals) > 0.0:
                for new in range(levels.offsets[group + 1] - levels.offsets[group]):
                    _relieve(levels, genome, totals, group, new)


@compiled_inline
def _excess(levels: Levels, totals: IntArray) -> float:
    """Total overspending as shares of the limits."""
    value = 0.0
    for b in range(totals.size):
        value += max(0, totals[b] - levels.room[b]) / max(1.0, float(levels.room[b]))
    return value


@compiled_inline
def _relieve(levels: Levels, genome: IntArray, totals: IntArray, group: int, new: int) -> bool:
    """Change a gene if that reduces the overspending."""
    old = genome[group]
    before = _excess(levels, totals)
    change_total(levels, totals, group, old, new)
    if _excess(levels, totals) < before:
        genome[group] = new
        return True
    change_total(levels, totals, group, new, old)
    return False


def random_genomes(levels: Levels, count: int, rng: np.random.Generator) -> IntArray:
    """(count, G) uniformly random levels, over budget or not."""
    return np.asarray(rng.integers(np.diff(levels.offsets), size=(count, levels.offsets.size - 1)), dtype=np.int64)


def priced_genomes(levels: Levels, linear: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
    """(count, G) levels of least linear energy plus cost at random prices, energies perturbed at random.

    Args:
        levels: the problem.
        linear: (V,) energies of the choices on their own, in the problem's order.
        count: how many.
        rng: decides prices and perturbations.
    """
    starts, shares = levels.offsets[:-1], levels.costs / np.maximum(1, levels.room)
    energies = linear[levels.order]
    steps = np.maximum.reduceat(energies, starts) - np.minimum.reduceat(energies, starts)
    widths = np.maximum.reduceat(shares, starts, axis=0) - np.minimum.reduceat(shares, starts, axis=0)
    typical = steps.sum() / np.maximum(widths.sum(axis=0), _TINY)
    prices = typical * np.exp(_PRICE_DEVIATION * rng.standard_normal((count, levels.room.size)))
    charged = energies * np.exp(_PERTURBATION * rng.standard_normal((count, linear.size))) + prices @ shares.T
    spans = itertools.pairwise(levels.offsets)
    return np.stack([charged[:, a:b].argmin(axis=1) for a, b in spans], axis=1).astype(np.int64)


@compiling.once
def warm_up(structure: str) -> None:
    """Compile (or load from the disk cache) the operators."""
    rng = np.random.default_rng(0)
    levels = make_levels(tiny_problem(structure))
    genomes, words = random_genomes(levels, 2, rng), generator_words(rng)
    repair(levels, genomes, words)
    switch_levels(levels, genomes, 2.0, 1, 0.5, words)

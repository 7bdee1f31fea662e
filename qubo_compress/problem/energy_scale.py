"""The scale of a problem's energies: the denominator of gaps, and the problem on a scale of about one.

Gaps, proofs and tolerances must not depend on the unit of the loss or on a constant that every assignment shares. So
they are measured from the sum of the least linear terms, relative to the typical difference between choices. Solvers
that pass numbers to other software, or stop at a tolerance, work on the standardised problem: no constant, a least
linear term of zero in every group, and choices that typically differ by about one. The scale is a power of four, so
that scaling is exact in floating point, also for the rows of a factor (by the square root).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray

OPTIMAL_GAP = 1e-6
"""A solution is called optimal when its gap is at most this."""

_FLOOR = 1e-5
"""Least denominator of a gap, as a share of the typical energy, so that an optimum of zero has a gap too."""

_ROUNDING = 1e-15
"""Rounding error of the largest sums in double precision, as a share: about five units in the last place."""

_LARGEST_SHARE = 2.0**-200
"""Problems whose energies are all below this are not scaled: scaling would overflow."""


@dataclass(frozen=True)
class EnergyScale:
    """Where a problem's energies lie, without its ``constant``.

    Attributes:
        base: sum over groups of the least linear term.
        typical: typical difference between the choices of a group, summed over groups. Medians, so that a few choices
            of prohibitive energy do not count.
        rounding: largest error of an assignment's energy from summation in double precision.

    Example:
        >>> problem = ChoiceProblem(linear=[3.0, 5.0, 0.0, 1.0], group_offsets=[0, 2, 4], costs=[[1] * 4], limits=[2])
        >>> scale = energy_scale(problem)
        >>> scale.base, scale.typical, scale.gap(energy=4.0, bound=3.0)
        (3.0, 3.0, 1.0)
    """

    base: float
    typical: float
    rounding: float

    def reach(self, energy: float) -> float:
        """The denominator of a gap at this energy: its distance from the base, bounded away from zero."""
        return max(abs(energy - self.base), _FLOOR * self.typical)

    def gap(self, energy: float, bound: float) -> float:
        """(energy - bound) / :meth:`reach`; zero if rounding alone can separate them."""
        apart = energy - bound
        if apart <= self.rounding:
            return 0.0
        reach = self.reach(energy)
        return apart / reach if reach > 0.0 else math.inf

    def tolerance(self, energy: float, share: float = OPTIMAL_GAP) -> float:
        """How far a bound may lie below an energy for a gap of ``share``."""
        return max(self.rounding, share * self.reach(energy))


def energy_scale(problem: ChoiceProblem) -> EnergyScale:
    """The scale of a problem's energies, without its ``constant``."""
    starts, sizes = problem.group_offsets[:-1], problem.group_sizes
    linear = problem.linear
    least = np.minimum.reduceat(linear, starts)
    squares = linear - problem.diagonal  # half the squared rows of a factor
    typical = float(np.median(_spreads(linear, sizes, starts, least)))
    largest = float(np.maximum.reduceat(np.abs(problem.diagonal), starts).sum())
    if problem.factor is not None:
        typical += float(np.median(squares))
        largest += float(np.sqrt(2.0 * np.maximum.reduceat(squares, starts)).sum()) ** 2 / 2.0
    elif problem.pairs is not None and problem.pairs.nnz:
        sizes_of_pairs = np.abs(problem.pairs.data)
        # Each group interacts with this many others on average; a pair belongs to two groups.
        partners = 0.5 * problem.pairs.nnz / problem.num_choices / float(sizes.mean())
        typical += float(np.median(sizes_of_pairs)) * max(1.0, partners)
        largest += _largest_pairs(problem, sizes_of_pairs)
    return EnergyScale(float(least.sum()), problem.num_groups * typical, _ROUNDING * largest)


def _spreads(linear: FloatArray, sizes: IntArray, starts: IntArray, least: FloatArray) -> FloatArray:
    """(G,) median linear term of each group less its least; with two choices, the larger; with one, zero."""
    group = np.repeat(np.arange(sizes.size), sizes)
    ordered = linear[np.lexsort((linear, group))]
    return np.asarray(ordered[starts + sizes // 2] - least, dtype=np.float64)


def _largest_pairs(problem: ChoiceProblem, sizes_of_pairs: FloatArray) -> float:
    """An upper bound on the sum of an assignment's pair energies: the largest row sum of each group."""
    assert problem.pairs is not None  # noqa: S101 - the caller checked
    rows = np.repeat(np.arange(problem.num_choices), np.diff(problem.pairs.indptr))
    sums = np.bincount(rows, weights=sizes_of_pairs, minlength=problem.num_choices)
    return 0.5 * float(np.maximum.reduceat(sums, problem.group_offsets[:-1]).sum())


@dataclass(frozen=True, eq=False)
class StandardProblem:
    """A problem on a scale of about one, and the way back.

    Attributes:
        problem: the same choices and budgets without a constant, with least linear terms of zero.
        unit: the original energy of one standardised unit; a power of four.
        offset: the original energy of a standardised zero, the constant included.
    """

    problem: ChoiceProblem
    unit: float
    offset: float

    def energy(self, value: float) -> float:
        """Convert an energy of the standardised problem to the original scale."""
        return self.offset + self.unit * value


def standardise(problem: ChoiceProblem) -> StandardProblem:
    """The problem without a constant and with choices that typically differ by about one.

    Unchanged arrays are shared.

    Example:
        >>> problem = ChoiceProblem(
        ...     linear=[3e-9, 5e-9, 0.0, 1e-9], group_offsets=[0, 2, 4], costs=[[1] * 4], limits=[2], constant=1e6)
        >>> standard = standardise(problem)
        >>> standard.problem.linear.round(2).tolist(), standard.problem.constant
        ([0.0, 2.15, 0.0, 1.07], 0.0)
    """
    least = np.minimum.reduceat(problem.linear, problem.group_offsets[:-1])
    unit = _unit(problem)
    offset = problem.constant + float(least.sum())
    if unit == 1.0 and not least.any():
        return StandardProblem(problem.without_constant(), 1.0, offset)
    return StandardProblem(problem.scaled(1.0 / unit, least), unit, offset)


def _unit(problem: ChoiceProblem) -> float:
    """The power of four nearest to the typical difference between a group's choices; one if they are all equal."""
    scale = energy_scale(problem)
    size = scale.typical / problem.num_groups
    if size == 0.0:  # most groups have only one choice: take the mean over all
        starts = problem.group_offsets[:-1]
        size = float((np.maximum.reduceat(problem.linear, starts) - np.minimum.reduceat(problem.linear, starts)).mean())
        size = size or float((problem.linear - problem.diagonal).mean())
    if not _LARGEST_SHARE < size < 1.0 / _LARGEST_SHARE:
        return 1.0
    return 4.0 ** round(math.log(size, 4.0))

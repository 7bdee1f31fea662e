"""Energies that are whole numbers: a bound between two of them is as good as the upper one."""

from __future__ import annotations

import math

import numpy as np

from qubo_compress.problem.checks import LARGEST_TOTAL
from qubo_compress.problem.choice_problem import ChoiceProblem

_SLACK = 1e-6
"""By how much of the unit a bound may be too high because of rounding, and still be raised to the same energy."""


def energy_unit(problem: ChoiceProblem) -> int | None:
    """The largest whole number that divides all energies without the constant; None if some are not whole.

    Example:
        >>> energy_unit(ChoiceProblem(linear=[0.0, 4.0, 6.0], group_offsets=[0, 2, 3], costs=np.zeros((0, 3), int),
        ...                           limits=[], constant=0.5))
        2
    """
    if problem.factor is not None:
        return None
    unit = 0
    for values in (problem.linear, None if problem.pairs is None else problem.pairs.data):
        if values is not None and values.size:
            if not (np.abs(values) <= LARGEST_TOTAL).all() or not np.array_equal(values, np.rint(values)):
                return None
            unit = math.gcd(unit, int(np.gcd.reduce(values.astype(np.int64))))
    return unit or None


def raised_bound(problem: ChoiceProblem, bound: float) -> float:
    """A lower bound raised to the next energy that is possible, if energies are whole numbers.

    Args:
        problem: the problem; its constant must be zero.
        bound: a lower bound of its energies.

    Example:
        >>> problem = ChoiceProblem(linear=[0.0, 1.0], group_offsets=[0, 2], costs=[[2, 1]], limits=[1])
        >>> raised_bound(problem, 0.57), raised_bound(problem, 1e-9)
        (1.0, 1e-09)
    """
    unit = energy_unit(problem)
    return bound if unit is None else max(bound, float(math.ceil(bound / unit - _SLACK) * unit))

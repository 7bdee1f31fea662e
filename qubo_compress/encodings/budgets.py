"""How budgets enter a model that knows no constraints."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from qubo_compress.errors import InvalidBudget
from qubo_compress.problem import ChoiceProblem, FloatArray
from qubo_compress.registry import Registry

Treatment = Callable[[ChoiceProblem, npt.ArrayLike | None], tuple[FloatArray, float]]
"""(problem, multipliers) -> linear energies of the choices, constant."""

treatments: Registry[Treatment] = Registry("budget treatment")


@treatments.register("multiplier")
def with_multipliers(problem: ChoiceProblem, multipliers: npt.ArrayLike | None) -> tuple[FloatArray, float]:
    """Add multipliers . (totals - limits) to the energy: linear terms only, no couplings and no slack bits.

    The search for multipliers is the sampler's; zero, the default, is right for budgets that do not bind.

    Raises:
        InvalidBudget: when the multipliers are not one non-negative number per budget.
    """
    prices = np.zeros(problem.num_budgets) if multipliers is None else np.asarray(multipliers, dtype=np.float64)
    if prices.shape != (problem.num_budgets,) or not (np.isfinite(prices).all() and (prices >= 0).all()):
        raise InvalidBudget(
            f"multipliers must be {problem.num_budgets} non-negative numbers, one per budget; got {multipliers!r}"
        )
    return problem.linear + prices @ problem.costs, problem.constant + float(
        prices @ (problem.fixed_costs - problem.limits)
    )


@treatments.register("none")
def ignored(problem: ChoiceProblem, multipliers: npt.ArrayLike | None) -> tuple[FloatArray, float]:
    """Leave the budgets out."""
    if multipliers is not None:
        raise InvalidBudget("multipliers were given with budget='none'; use budget='multiplier'")
    return problem.linear, problem.constant

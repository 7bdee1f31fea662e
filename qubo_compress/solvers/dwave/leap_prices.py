"""Prices of the budgets for hybrid solvers without constraints, where every further try costs quota."""

from __future__ import annotations

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray
from qubo_compress.solvers.exact import price_kernels
from qubo_compress.solvers.exact.convex_relaxation import scaled_costs
from qubo_compress.solvers.local_search.descent import LocalSearch, lagrangian_vertex
from qubo_compress.solvers.samplers.prices import PriceSearch

_FIRST_FACTOR = 1.3
"""Factor of the first change of a price, for a second submission: the first price is already close."""


def price_search(problem: ChoiceProblem, start: FloatArray) -> PriceSearch:
    """A price search that starts from a close estimate and corrects it after each answer."""
    starts = problem.group_offsets[:-1]
    spread = float(np.mean(np.maximum.reduceat(problem.linear, starts) - np.minimum.reduceat(problem.linear, starts)))
    return PriceSearch(problem, max(spread, 1e-12), start, _FIRST_FACTOR)


def starting_prices(problem: ChoiceProblem, local: LocalSearch, deadline: float) -> FloatArray:
    """(B,) prices per unit at which a problem linearised around a good assignment would meet its budgets.

    The assignment is a local optimum from the prices of the linear terms alone. The energies of its single changes
    replace the linear terms, so that the price accounts for the interactions.
    """
    prices = linear_prices(problem, problem.linear)
    if problem.structure == "separable" or not problem.num_budgets:
        return prices
    local.place(lagrangian_vertex(problem, prices))
    if not local.repair():
        return prices
    local.descend(deadline, pairs=False)
    chosen = local.assignment
    slopes = np.concatenate([problem.deltas(chosen, group) for group in range(problem.num_groups)])
    return linear_prices(problem, slopes)


def linear_prices(problem: ChoiceProblem, slopes: FloatArray) -> FloatArray:
    """(B,) prices that maximise the dual bound of the problem with only these linear energies."""
    costs, room, scales = scaled_costs(problem.without_pair_costs("typical"))
    prices = np.zeros(room.size)
    choices = np.arange(problem.num_choices)
    value = price_kernels.polish_prices(slopes.copy(), problem.group_offsets.copy(), choices, costs, room, prices, 4)
    return np.asarray(prices / scales) if np.isfinite(value) else np.zeros(room.size)

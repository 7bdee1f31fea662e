"""Prices of budgets are bisected towards the limits."""

from __future__ import annotations

import numpy as np
import pytest

from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.samplers.prices import PriceSearch


def test_prices_are_bisected_towards_the_limit():
    problem = random_problem("separable", 5, 4, 0)
    search = PriceSearch(problem, 1.0)
    target = 7.3 * search.unit[0]
    search.update(np.array([-1]))
    assert search.prices[0] == 0.0, "a budget that does not bind stays free"
    for _ in range(40):
        search.update(np.array([1 if search.prices[0] < target else -1]))
    assert search.prices[0] == pytest.approx(target, rel=0.03)


def test_an_estimate_is_where_it_begins():
    problem = random_problem("separable", 5, 4, 0)
    search = PriceSearch(problem, 1.0, first=np.array([2.0]), factor=1.3)
    search.update(np.array([1]))
    assert search.prices[0] == pytest.approx(2.6)
    search.update(np.array([-1]))
    assert search.prices[0] == pytest.approx(2.6 / np.sqrt(1.3))


def test_prices_stay_within_reach():
    problem = random_problem("separable", 5, 4, 0)
    search = PriceSearch(problem, 1.0)
    for _ in range(500):
        search.update(np.array([1]))
    assert np.isfinite(search.prices).all() and search.prices[0] <= 1.001e9 * search.unit[0]

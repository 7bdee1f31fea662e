"""The published data give the optima that another solver (HiGHS, gap zero) found for them."""

from __future__ import annotations

import numpy as np
import pytest

import qubo_compress as qc
from benchmarks.solvers.hawq import hawq_problem


@pytest.mark.parametrize(
    ("network", "energy", "megabytes", "unit"),
    [("resnet18", 0.0745059, 7.266, 2**20), ("resnet50", 0.0310241, 17.547, 1e6)],
)
def test_the_optimum_is_the_known_one(network, energy, megabytes, unit):
    problem = hawq_problem(network)
    solution = qc.solve(problem, "exact")
    assert solution.status == "optimal"
    assert solution.energy == pytest.approx(energy, abs=1e-7)
    assert problem.totals(solution.assignment)[0] / unit == pytest.approx(megabytes, abs=1e-3)


def test_the_second_budget_is_half_way_too():
    problem = hawq_problem("resnet18", operations=True)
    ends = [problem.totals(np.full(problem.num_groups, k)) for k in (0, 1)]
    assert problem.limits == pytest.approx(np.mean(ends, axis=0), abs=1.0)

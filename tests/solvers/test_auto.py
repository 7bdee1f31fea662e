"""Auto when its first solver comes back with nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from qubo_compress import ChoiceProblem
from qubo_compress.solvers.auto import Auto
from qubo_compress.solvers.solver import Search, SearchLimits, Solver, solvers


@pytest.fixture
def helpless(monkeypatch: pytest.MonkeyPatch) -> str:
    """A heuristic that knows a bound and finds nothing that fits."""

    @dataclass(frozen=True)
    class Helpless(Solver):
        name: ClassVar[str] = "helpless"
        optimises: ClassVar[bool] = True

        def run(self, search: Search) -> None:
            search.bound, search.work = -1e3, 1

    monkeypatch.setitem(solvers._entries, "helpless", Helpless)
    return "helpless"


def test_a_bound_without_an_assignment_proves_nothing(helpless: str) -> None:
    rng = np.random.default_rng(0)
    groups, choices = 14, 3
    costs = rng.integers(1, 9, (2, groups * choices))
    limits = [int(row.reshape(groups, choices).min(1).sum() * 1.6) for row in costs]
    problem = ChoiceProblem(
        linear=rng.normal(size=groups * choices), group_offsets=np.arange(0, groups * choices + 1, choices),
        costs=costs, limits=limits, factor=rng.normal(size=(groups * choices, 3)),
    )  # fmt: skip
    search = Search(problem, SearchLimits(2.0), rng)
    search.run(Auto(heuristic=helpless))
    assert search.best is not None and problem.is_feasible(search.best)

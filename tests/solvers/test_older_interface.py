"""Solvers written for 0.4, with ``search(problem, limits, rng)``, still work for one release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import qubo_compress as qc
from qubo_compress.solvers import RawSolution, Search, SearchLimits, Solver, make_solver
from qubo_compress.solvers.greedy import Greedy
from qubo_compress.solvers.solver import solvers
from qubo_compress.testing import check_solver

PROBLEM = qc.ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)


@dataclass(frozen=True)
class Draws:
    """As README had it: no base class, and Ctrl-C, clock and pool are its own."""

    name: ClassVar[str] = "draws"
    most: int = 300

    def search(self, problem: qc.ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        best, work = None, 0
        for work in range(1, min(self.most, limits.work or self.most) + 1):
            drawn = rng.integers(problem.group_sizes)
            if problem.is_feasible(drawn) and (best is None or problem.energy(drawn) < problem.energy(best)):
                best = drawn
        found = () if best is None else (best,)
        return RawSolution(found, timing={"compile": 1000.0, "draw": 1.0}, work=work, details={"most": self.most})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(solvers, "_entries", dict(solvers._entries))
    qc.solvers.register("mine")(Draws)
    return "mine"


def test_it_runs_by_name_and_as_an_object_with_a_warning_that_says_what_to_change(registered: str) -> None:
    with pytest.warns(DeprecationWarning, match=r"Draws\.search.* write run\(search\)"):
        named = qc.solve(PROBLEM, registered, work_limit=40, most=50)
    with pytest.warns(DeprecationWarning, match="inherit from qubo_compress.solvers.Solver"):
        given = qc.solve(PROBLEM, Draws(50), work_limit=40)
    assert named.assignment.tolist() == given.assignment.tolist()
    assert named.work == given.work == 40 and named.solver == "draws" and named.details == {"most": 50}
    assert named.timing["compile"] == 1000.0 and named.timing["draw"] == 1.0


@pytest.mark.filterwarnings("ignore:.*the interface of 0.4:DeprecationWarning")
def test_it_passes_the_conformance_suite() -> None:
    check_solver(Draws(), time_limit=0.2)


@pytest.mark.filterwarnings("ignore:.*the interface of 0.4:DeprecationWarning")
def test_its_abilities_are_those_it_says_it_has() -> None:
    @dataclass(frozen=True)
    class Able(Draws):
        repeats: ClassVar[bool] = False
        threads: int = 3

    plain, able = make_solver(Draws()), make_solver(Able())
    assert (plain.repeats, plain.remote, plain.threads, plain.largest_bits) == (True, False, None, None)
    assert (able.repeats, able.threads) == (False, 3)


@pytest.mark.filterwarnings("ignore:.*the interface of 0.4:DeprecationWarning")
def test_wrong_claims_are_noted_as_they_were() -> None:
    class Liar:
        name = "liar"

        def search(self, problem: qc.ChoiceProblem, limits: SearchLimits, rng: Any) -> RawSolution:
            cheapest = np.full(6, 3)
            return RawSolution((np.zeros(6, dtype=np.int64), cheapest, cheapest), -7.0, bound=1e6)

    def notes(solver: Any) -> str:
        return " | ".join(qc.solve(PROBLEM, solver).notes)

    assert "claimed the bound" in notes(Liar()) and "1 of 2 assignments over budget" in notes(Liar())
    kind = type("Truer", (Liar,), {"search": lambda *_: RawSolution((np.full(6, 3),), -7.0)})
    assert "claimed energy -7" in notes(kind())


def test_a_solver_is_still_called_as_in_04() -> None:
    rng = np.random.default_rng(0)
    with pytest.warns(DeprecationWarning, match="goes with the next release"):
        raw = make_solver("greedy").search(PROBLEM, SearchLimits(10.0), rng)
    assert isinstance(raw, RawSolution) and PROBLEM.is_feasible(raw.assignments[0])


def test_auto_hands_its_threads_to_solvers_of_both_interfaces() -> None:
    @dataclass(frozen=True)
    class Older:
        name: ClassVar[str] = "older"
        threads: int | None = None

        def search(self, problem: Any, limits: Any, rng: Any) -> Any:
            raise AssertionError

    @dataclass(frozen=True)
    class Newer(Solver):
        name: ClassVar[str] = "newer"
        threads: int | None = None

        def run(self, search: Search) -> None:
            raise AssertionError

    assert Newer().with_threads(2).threads == 2 and Greedy().with_threads(2) == Greedy()
    with pytest.warns(DeprecationWarning):
        assert make_solver(Older()).with_threads(2).threads == 2  # type: ignore[arg-type]

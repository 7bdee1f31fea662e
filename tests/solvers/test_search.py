"""A search in progress: its pool, its limits, its parts, and what Ctrl-C leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress import ChoiceProblem, solve
from qubo_compress.solvers import Search, SearchLimits, SearchOver, Solver
from qubo_compress.testing.clocks import steady_clock, under
from qubo_compress.testing.solvers import rescaled

PROBLEM = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
EVERY = [np.array(np.unravel_index(number, (4,) * 6)) for number in range(4**6)]


def begun(problem: ChoiceProblem = PROBLEM, seconds: float = 100.0, work: int | None = None) -> Search:
    return Search(problem, SearchLimits(seconds, work), np.random.default_rng(0))


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, 4**6 - 1), max_size=60), size=st.integers(1, 5))
def test_the_pool_holds_the_best_distinct_assignments(numbers, size):
    search = begun()
    search.pool.size = size
    improved = [search.keep(EVERY[number]) for number in numbers]
    energies = [PROBLEM.energy(EVERY[number]) for number in numbers]
    assert improved == [all(energy < other for other in energies[:i]) for i, energy in enumerate(energies)]
    result = search.result()
    assert [PROBLEM.energy(found) for found in result.assignments] == sorted(set(energies))[:size]
    assert [entry[1] for entry in result.trace] == [e for e, better in zip(energies, improved, strict=True) if better]
    assert result.claimed_energy == (min(energies) if energies else None)


def test_what_is_kept_is_a_copy():
    search, assignment = begun(), np.zeros(6, dtype=np.int64)
    search.keep(assignment)
    assignment[0] = 3
    assert not search.best.any() and not search.result().assignments[0].any()


def test_rounds_end_with_the_work_and_before_the_time(clock):
    search = begun(work=7)
    for _ in search.rounds():
        search.work += 2
    assert search.work == 8 and search.over() and search.most_work(5) == -1
    with clock(1.0):
        timed = begun(seconds=20.0)
        for _ in timed.rounds():
            timed.work += 1
        assert 1 < timed.work < 10, "a round takes two readings"
        hurried = begun(seconds=1e-6)
        for _ in hurried.rounds():
            hurried.work += 1
        assert hurried.work == 1, "one unit, for an answer"


def test_compiling_counts_for_no_limit_in_any_search_around_it(clock):
    with clock(1.0) as wound:
        outer = begun(seconds=50.0)
        inner = outer.part(limits=SearchLimits(30.0))
        before = outer.seconds_left, inner.seconds_left
        with inner.compiling():
            wound.ahead += 1000.0
        assert outer.seconds_left > before[0] - 10.0 and inner.seconds_left > before[1] - 10.0
    assert outer.timing == inner.timing and outer.timing["compile"] >= 1000.0
    outer.take(inner)
    assert outer.timing == inner.timing, "what was counted once is not counted again"


@dataclass(frozen=True)
class Steps(Solver):
    """Keeps some assignments, then ends as it is told."""

    name: ClassVar[str] = "steps"
    numbers: tuple[int, ...] = (5, 9)
    ending: type[BaseException] | None = None

    def run(self, search: Search) -> None:
        for number in self.numbers:
            search.keep(EVERY[number])
            search.work += 1
        search.bound = -100.0
        search.notes.append("said twice")
        search.details["steps"] = len(self.numbers)
        if self.ending is not None:
            raise self.ending


@pytest.mark.parametrize("ending", [None, SearchOver, KeyboardInterrupt])
def test_an_ended_search_answers_with_what_it_kept(ending):
    search = begun()
    search.run(Steps(ending=ending))
    assert search.interrupted == (ending is KeyboardInterrupt)
    assert len(search.result().assignments) == 2 and search.work == 2
    free = PROBLEM.with_limits(PROBLEM.costs.sum(axis=1))
    solution = solve(free, Steps(ending=ending), time_limit=50.0)
    assert solution.interrupted == (ending is KeyboardInterrupt) and solution.work == 2


def test_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        begun().run(Steps(ending=ZeroDivisionError))


def test_parts_add_up_and_ctrl_c_goes_on():
    search = begun(work=20)
    search.keep(EVERY[7])
    first = search.part(limits=search.left(seconds=10.0, work=30))
    assert first.limits.work == 20 and first.limits.seconds == 10.0
    first.run(Steps((5, 9)))
    search.take(first)
    assert search.work == 2 and search.bound == -100.0 and search.details == {"steps": 2}
    assert search.left().work == 18
    second = search.part()
    second.run(Steps((9, 11, 12), KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        search.take(second)
    assert search.work == 5 and search.details == {"steps": 2}, "what was said first stands"
    result = search.result()
    assert result.notes == ("said twice",)
    kept = {tuple(assignment) for assignment in result.assignments}
    assert kept == {tuple(EVERY[number]) for number in (5, 7, 9, 11, 12)}
    assert search.energy == min(PROBLEM.energy(assignment) for assignment in result.assignments)
    times = [entry[0] for entry in result.trace]
    assert times == sorted(times)


def test_parts_draw_from_generators_of_their_own():
    draws = [begun().part().rng.random() for _ in range(2)]
    assert draws[0] == draws[1] == np.random.default_rng(0).spawn(1)[0].random()
    search = begun()
    assert search.part(rng=search.rng).rng is search.rng


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt])
def test_what_is_found_on_the_standard_scale_is_told_in_the_energies_given(ending):
    problem = rescaled(PROBLEM, 1e-9, 3.0)
    search = begun(problem)
    with pytest.raises(KeyboardInterrupt) if ending else np.errstate(), search.standardised() as standard:
        assert standard.problem.constant == 0.0
        Steps((5, 9), ending).run(standard)
    assert search.energy == pytest.approx(min(problem.energy(EVERY[number]) for number in (5, 9)), rel=1e-12)
    assert search.bound < 3.0 and search.work == 2 and len(search.trace) >= 1
    assert search.result().claimed_energy == search.energy


def test_an_answer_that_is_not_the_least_energy_can_be_settled_on():
    search = begun()
    worst = max(EVERY, key=PROBLEM.energy)
    for number in (5, 9):
        search.keep(EVERY[number])
    search.settle(worst)
    assert [a.tolist() for a in search.result().assignments] == [worst.tolist()]


def test_an_answer_that_is_returned_is_refused():
    @dataclass(frozen=True)
    class Returning(Solver):
        name: ClassVar[str] = "returning"

        def run(self, search):
            return EVERY[0]

    with pytest.raises(qc.QuboCompressError, match=r"Returning.run returned a ndarray: .*search.keep"):
        solve(PROBLEM, Returning())


def test_ctrl_c_before_anything_was_found_reaches_the_caller():
    @dataclass(frozen=True)
    class Interrupted(Solver):
        name: ClassVar[str] = "interrupted"

        def run(self, search):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(PROBLEM, Interrupted())


def test_the_clock_ends_genetic_with_its_last_round():
    pytest.importorskip("pymoo")
    solve(PROBLEM, "genetic", work_limit=50)  # whatever is compiled once
    with under(steady_clock(1e-3)):
        found = solve(PROBLEM, "genetic", time_limit=0.3, population=20)
    assert found.details["populations"] <= found.details["generations"] + 3

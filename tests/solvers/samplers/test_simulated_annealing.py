"""The classical baseline on the binary model: feasible answers, repeatable, on time, honest about itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InvalidSolverOption, UnknownName
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.samplers.simulated_annealing import SimulatedAnnealing

ENCODINGS = ("domain-wall", "one-hot")


def least_energy(problem):
    everything = itertools.product(*(range(n) for n in problem.group_sizes))
    return min(problem.energy(np.array(x)) for x in everything if problem.is_feasible(np.array(x)))


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["separable", "sparse", "dense", "low-rank", "planted"]),
    encoding=st.sampled_from(ENCODINGS),
    budgets=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_small_problems_are_solved_within_the_budget(kind, encoding, budgets, seed):
    problem = random_problem(kind, 4, 3, seed, budgets=budgets)
    solution = solve(problem, SimulatedAnnealing(encoding=encoding), time_limit=60.0, work_limit=2000, seed=seed)
    assert problem.is_feasible(solution.assignment)
    least = least_energy(problem)
    if budgets == 0:  # no price need reach the optimum under a budget
        assert solution.energy == pytest.approx(least, abs=1e-6)
    assert solution.energy >= least - 1e-6
    for group in range(4):  # filled up: no single change that fits is better
        for k, delta in enumerate(problem.deltas(solution.assignment, group)):
            changed = solution.assignment.copy()
            changed[group] = k
            assert delta >= -1e-6 or not problem.is_feasible(changed)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_price_search_reaches_a_good_answer(encoding):
    problem = random_problem("dense", 10, 6, 1)
    reference = solve(problem, "annealer", time_limit=60.0, work_limit=4000).energy
    rng = np.random.default_rng(0)
    draws = [x for x in rng.integers(0, 6, (300, 10)) if problem.is_feasible(x)]
    typical = np.mean([problem.energy(x) for x in draws])
    solution = solve(problem, SimulatedAnnealing(encoding=encoding), time_limit=60.0, work_limit=8000)
    assert solution.energy - reference <= 0.1 * (typical - reference)
    drawn, valid, fitting = (int(word) for word in solution.notes[0].replace(":", " ").split() if word.isdigit())
    assert drawn >= valid >= fitting >= 0
    assert valid > 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_timed_run_is_repeated_exactly_by_its_work(encoding):
    problem = random_problem("dense", 12, 6, 2)
    solver = SimulatedAnnealing(encoding=encoding)
    timed = solve(problem, solver, time_limit=0.6, seed=3)
    assert timed.work > 0
    again = solve(problem, solver, time_limit=60.0, work_limit=timed.work, seed=3)
    assert np.array_equal(timed.assignment, again.assignment)
    assert timed.work == again.work


def test_the_time_limit_is_kept(clock):
    problem = random_problem("dense", 30, 12, 0)
    solve(problem, "simulated-annealing", time_limit=0.2)  # compile first

    def work_and_reads(step):
        with clock(step) as wound:
            return solve(problem, "simulated-annealing", time_limit=1.0).work, wound.reads

    hurried, few = work_and_reads(0.1)  # the time is over at the tenth reading
    patient, many = work_and_reads(0.005)
    assert few <= 40 and 3 * few <= many and hurried < patient


def test_an_interrupt_returns_the_best_so_far(ctrl_c):
    problem = random_problem("dense", 20, 8, 0)
    solve(problem, "simulated-annealing", time_limit=0.2)  # compile first
    ctrl_c(0.7)
    solution = solve(problem, "simulated-annealing", time_limit=3600.0)
    assert solution.interrupted
    assert problem.is_feasible(solution.assignment)


def test_an_own_beta_range_and_sweeps_are_used():
    problem = random_problem("dense", 5, 4, 0)
    solver = SimulatedAnnealing(reads=2, sweeps=30, beta_range=(0.1, 50.0))
    solution = solve(problem, solver, time_limit=60.0, work_limit=120)
    assert solution.work == 120
    assert "4 samples drawn" in solution.notes[0]


def test_one_choice_per_group_leaves_nothing_to_sample():
    problem = random_problem("dense", 3, 1, 0)
    assert solve(problem, "simulated-annealing", time_limit=5.0, work_limit=100).energy == 0.0


@pytest.mark.parametrize(
    "options", [{"reads": 0}, {"sweeps": 0}, {"beta_range": (2.0, 1.0)}, {"beta_range": (0.0, 1.0)}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidSolverOption):
        SimulatedAnnealing(**options)


def test_an_unknown_encoding_names_the_nearest():
    with pytest.raises(UnknownName, match="domain-wall"):
        solve(ChoiceProblem.random("dense", 3, 3, 0), "simulated-annealing", encoding="domainwall")


def test_nothing_calls_itself_quantum():
    assert "quantum" not in SimulatedAnnealing.name
    assert "classical" in (SimulatedAnnealing.__doc__ or "")

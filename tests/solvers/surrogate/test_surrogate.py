"""The surrogate finds what the loss says is best, within its evaluations, and repeats itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import qubo_compress as qc
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.network_loss import ExampleLoss
from qubo_compress.solvers.surrogate.correction import Correction, EnergyTerms, Observations, nothing_observed
from qubo_compress.solvers.surrogate.records import Records


class Truth(ExampleLoss):
    """The energies of another problem, with noise by example."""

    def __init__(self, problem, examples=64, noise=0.05, fails_at=None):
        self.problem, self.count, self.fails_at = problem, examples, fails_at
        self.evaluations = self.calls = 0
        self.noise = noise * np.random.default_rng(5).standard_normal((examples, problem.num_choices))

    @property
    def weights(self):
        return np.full(self.count, 1 / self.count)

    def values(self, assignment, start, stop):
        assert stop > start, "no examples were asked for"
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.evaluations += stop - start
        return self.problem.energy(assignment) + self.noise[start:stop, self.problem.selected(assignment)].sum(axis=1)

    def __call__(self, assignment, examples=None):
        return float(self.values(assignment, 0, examples or self.count).mean())


def misjudged(seed=0, **options):
    """A problem, and the truth: its choices cost up to three times as much, alike in each group."""
    problem = qc.ChoiceProblem.random(kind="low-rank", groups=8, choices=5, seed=seed)
    rng = np.random.default_rng(seed + 100)
    scale = np.repeat(rng.uniform(0.3, 3.0, problem.num_groups), problem.group_sizes)
    return problem, Truth(dataclasses.replace(problem, linear=problem.linear * scale), **options)


def test_it_gets_near_the_best_of_the_truth():
    gains = []
    for seed in range(2):
        problem, loss = misjudged(seed, noise=0.0)
        blind = qc.solve(problem, "annealer", time_limit=0.3).assignment
        best = qc.solve(loss.problem, "exact", time_limit=2.0).energy
        found = qc.solve(problem, "surrogate", loss=loss, most_evaluations=1500, time_limit=60.0).assignment
        assert problem.is_feasible(found)
        gains.append((loss.problem.energy(found) - best) / max(1e-9, loss.problem.energy(blind) - best))
    assert max(gains) < 0.3


def test_evaluations_are_counted_kept_to_and_traced():
    problem, loss = misjudged()
    solution = qc.solve(problem, "surrogate", loss=loss, most_evaluations=1000, time_limit=60.0)
    details = solution.details
    assert details["network_evaluations"] == loss.evaluations <= 1000
    spent = [entry["evaluations"] for entry in details["history"]]
    assert spent == sorted(spent) and details["history"][-1]["assignment"] == tuple(solution.assignment.tolist())
    assert all(problem.is_feasible(np.array(entry["assignment"])) for entry in details["history"])


@pytest.mark.parametrize("most", [800, 811, 829, 850])
def test_it_ends_when_too_few_evaluations_are_left_for_anything(most):
    problem, loss = misjudged(examples=400)
    solution = qc.solve(problem, "surrogate", loss=loss, most_evaluations=most, time_limit=60.0, depth=3)
    assert most - 400 < loss.evaluations <= most and solution.timing["total"] < 60.0


def test_the_same_seed_and_work_give_the_same_answer():
    runs = [misjudged() for _ in range(2)]
    first, second = (
        qc.solve(p, "surrogate", loss=loss, most_evaluations=800, time_limit=60.0, seed=3) for p, loss in runs
    )
    assert np.array_equal(first.assignment, second.assignment) and first.details["history"] == second.details["history"]
    few = qc.solve(runs[0][0], "surrogate", loss=misjudged()[1], work_limit=7, time_limit=60.0)
    assert few.work == 7


@pytest.mark.parametrize("fails_at", [1, 2, 30])
def test_ctrl_c_keeps_the_best(fails_at):
    problem, loss = misjudged(fails_at=fails_at)
    solution = qc.solve(problem, "surrogate", loss=loss, most_evaluations=4000, time_limit=60.0)
    assert solution.interrupted and problem.is_feasible(solution.assignment)


def test_losses_that_are_not_finite_never_win():
    problem, loss = misjudged(noise=0.0)
    first = qc.solve(problem, "annealer", time_limit=0.3).assignment

    class Broken(Truth):
        def values(self, assignment, start, stop):
            found = super().values(assignment, start, stop)
            return np.where(np.asarray(assignment)[0] == first[0], np.nan, found)

    solution = qc.solve(problem, "surrogate", loss=Broken(loss.problem), most_evaluations=800, time_limit=60.0)
    assert solution.assignment[0] != first[0] and np.isfinite(solution.details["loss"])


def test_a_start_that_is_best_is_found_at_once():
    problem, loss = misjudged(noise=0.0)
    best = qc.solve(loss.problem, "exact", time_limit=5.0).assignment
    given = qc.solve(
        problem, "surrogate", loss=loss, most_evaluations=700, time_limit=60.0, starts=(tuple(best.tolist()),)
    )
    assert loss.problem.energy(given.assignment) <= loss.problem.energy(best) + 1e-9


def test_wrong_options_are_refused():
    problem, loss = misjudged()
    for options in ({"loss": lambda assignment, examples: 0.0}, {"batch": 0}, {"most_evaluations": 0}):
        with pytest.raises(InvalidSolverOption):
            qc.solve(problem, "surrogate", **{"loss": loss, **options})


def test_examples_are_never_run_twice_for_an_assignment():
    problem, loss = misjudged()
    records = Records(loss)
    record = records.of(np.zeros(problem.num_groups, dtype=np.int64))
    records.measure(record, 16)
    records.measure(record, 64)
    assert loss.evaluations == 64 and records.price(record, 64) == 0
    assert records.mean(record) == pytest.approx(loss(record.assignment))


def test_observed_losses_are_reproduced_where_they_are_exact():
    problem, loss = misjudged(noise=0.0)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, problem.group_sizes, (40, problem.num_groups))
    baseline = drawn[0]
    truth = np.array([loss.problem.energy(a) for a in drawn])
    observed = Observations(baseline, drawn[1:], truth[1:] - truth[0], np.full(39, 1e-12))
    correction = Correction(EnergyTerms(problem), observed)
    assert np.allclose(correction.at_observed(), truth[1:] - truth[0], atol=1e-4)
    # The corrected problem ranks assignments that were never observed better than the problem itself.
    fresh = rng.integers(0, problem.group_sizes, (200, problem.num_groups))
    exact, before, after = loss.problem.energies(fresh), problem.energies(fresh), correction.problem().energies(fresh)
    assert np.corrcoef(exact, after)[0, 1] > np.corrcoef(exact, before)[0, 1]


def test_draws_of_the_prior_differ_and_stay_above_zero():
    problem, _ = misjudged()
    problem = dataclasses.replace(problem, linear=np.abs(problem.linear))
    prior = Correction(EnergyTerms(problem), nothing_observed(np.zeros(problem.num_groups, dtype=np.int64)))
    first, second = (prior.problem(np.random.default_rng(seed)) for seed in range(2))
    assert not np.allclose(first.linear, second.linear) and first.linear.min() >= 0
    assert np.allclose(prior.problem().linear, problem.linear)

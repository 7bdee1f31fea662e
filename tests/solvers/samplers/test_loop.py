"""The loop around samplers: what the clock may decide, and what a large model costs before it is built."""

from __future__ import annotations

import numpy as np
import pytest

from qubo_compress import ChoiceProblem
from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import ProblemTooLarge
from qubo_compress.solvers import Search, SearchLimits, solve
from qubo_compress.solvers.samplers import binary_model, loop
from qubo_compress.solvers.samplers.binary_model import build_model, forecast
from qubo_compress.solvers.samplers.loop import SamplingLoop
from qubo_compress.solvers.samplers.sampler import BinarySampler, Effort, TimedCalls

SAMPLERS = ("simulated-annealing", "tabu", "steepest-descent", "path-integral")
AMPLE = 1e6


class RandomBits(BinarySampler):
    """A sampler that knows nothing, so that repair and descent have all the work."""

    name, requires, encoding = "random-bits", (), "domain-wall"
    effort = Effort(reads=3)

    def draw(self, request, reads, effort):
        size = (reads, request.bqm.num_variables)
        return np.random.default_rng(request.seed).integers(2, size=size).astype("i1")


def random_bits():
    return TimedCalls(RandomBits())


def searched(problem, seconds, work=None, trial=None):
    search = Search(problem, SearchLimits(seconds, work), np.random.default_rng(0))
    SamplingLoop(search, "domain-wall", random_bits(), trial=trial).run()
    return search.result()


@pytest.mark.parametrize("kind", ["low-rank", "sparse"])
def test_wherever_the_clock_ends_it_the_same_samples_give_the_same_answer(kind, clock):
    problem = ChoiceProblem.random(kind=kind, groups=30, choices=6, seed=1)
    again, different = {}, set()
    for readings in range(5, 105, 2):
        with clock(1.0 / readings):
            timed = searched(problem, 1.0)
        if timed.work:
            if timed.work not in again:
                again[timed.work] = searched(problem, AMPLE, timed.work)
            assert (timed.assignments[0] == again[timed.work].assignments[0]).all(), f"after {readings} readings"
            different.add(timed.work)
    assert len(different) > 5


def test_a_model_that_would_take_too_long_is_not_built(monkeypatch):
    """And one that fits is."""
    monkeypatch.setattr(binary_model, "_WORTH_A_TRIAL", 1000)
    problem = ChoiceProblem.random(kind="low-rank", groups=30, choices=4, seed=0)
    built, whole = [], loop.build_model

    def noted(*arguments):
        built.append(arguments)
        return whole(*arguments)

    monkeypatch.setattr(loop, "build_model", noted)
    monkeypatch.setattr(loop, "forecast", lambda *_: binary_model.ModelForecast(40.0, 30.0))
    short = searched(problem, 60.0, work=7, trial=random_bits())
    assert not built and short.work == 0 and problem.is_feasible(short.assignments[0])
    assert "may take 70.0 s; raise time_limit" in short.notes[1]
    assert short.details["couplings"] == 0 and short.details["variables"] == 90
    long = searched(problem, 600.0, work=7, trial=random_bits())
    assert len(built) == 1 and long.work == 7 and len(long.notes) == 1
    assert long.details["couplings"] == 90 * 89 // 2 - 30  # the first and the last bit of a group are not coupled


def test_the_trial_changes_no_answer(monkeypatch):
    problem = ChoiceProblem.random(kind="low-rank", groups=30, choices=4, seed=0)
    without = searched(problem, AMPLE, work=40)
    monkeypatch.setattr(binary_model, "_WORTH_A_TRIAL", 1000)
    monkeypatch.setattr(binary_model, "_PART", 200)
    tried = []
    trial, sampler = random_bits(), random_bits()
    with_ = searched(problem, AMPLE, work=40, trial=lambda request: tried.append(request.bqm) or trial(request))
    assert [model.num_variables < 90 for model in tried] == [True] and sampler is not trial
    assert with_.work == without.work == 40
    assert all((a == b).all() for a, b in zip(with_.assignments, without.assignments, strict=True))


@pytest.mark.parametrize("kind", ["low-rank", "sparse", "dense"])
def test_a_forecast_scales_what_the_part_took_by_the_couplings(kind, clock, monkeypatch):
    problem = ChoiceProblem.random(kind=kind, groups=60, choices=8, seed=0)
    encoding, prices = encodings.get("one-hot")(), np.zeros(problem.num_budgets)
    assert forecast(problem, encoding, prices, lambda model: pytest.fail("too small to be tried")).build == 0.0
    monkeypatch.setattr(binary_model, "_PART", 1000)
    monkeypatch.setattr(binary_model, "_WORTH_A_TRIAL", 1000)
    parts = []
    with clock(1.0):
        expected = forecast(problem, encoding, prices, parts.append)
    (part,) = parts
    assert 0 < part.problem.num_groups < 60
    whole = build_model(problem, encoding, prices)
    interactions = whole.bqm.num_interactions / part.bqm.num_interactions
    # One reading of the clock before building, one behind it, and one behind drawing.
    assert expected.build == expected.draw == pytest.approx(2.0 * interactions, rel=0.3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_tries_a_part_first(name, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "forecast", lambda *given: seen.append(given) or binary_model.ModelForecast(1e9, 1e9))
    problem = ChoiceProblem.random(kind="low-rank", groups=6, choices=4, seed=0)
    solution = solve(problem, name, time_limit=30.0)
    assert len(seen) == 1 and solution.work == 0


def test_too_many_couplings_are_refused_before_anything_is_done(monkeypatch):
    factor = np.ones((30_000, 1), dtype=np.float32)
    costs, offsets = np.ones((1, 30_000), dtype=int), np.arange(0, 30_001, 2)
    problem = ChoiceProblem(np.zeros(30_000), offsets, costs, [15_000], factor=factor)
    monkeypatch.setattr(loop, "LocalSearch", lambda *_: pytest.fail("a search was begun"))
    with pytest.raises(ProblemTooLarge, match="couplings"):
        solve(problem, "tabu", time_limit=0.01)

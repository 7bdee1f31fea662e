"""What is asked of a sampler at a time: never more than the work and the time that are left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem
from qubo_compress.encodings import DomainWall
from qubo_compress.errors import InvalidSolverOption, UnknownName
from qubo_compress.solvers.samplers.binary_model import build_model
from qubo_compress.solvers.samplers.loop import SampleRequest
from qubo_compress.solvers.samplers.sampler import BinarySampler, Effort, TimedCalls, check_sampler

PROBLEM = ChoiceProblem.random(kind="dense", groups=3, choices=3, seed=0)
BQM = build_model(PROBLEM, DomainWall(), np.zeros(1)).bqm


@dataclass(frozen=True)
class Recorded(BinarySampler):
    """Remembers what it was asked, and gives back what it can."""

    asked: list
    each: Effort
    most_reads: int = 100
    name = "recorded"

    @property
    def effort(self):
        return self.each

    def draw(self, request, reads, effort):
        self.asked.append((reads, effort))
        return np.zeros((min(reads, self.most_reads), request.bqm.num_variables), dtype=np.int8)


def request(number=1, most_work=None, seconds=1e6, stop=lambda: False):
    return SampleRequest(BQM, number, 1.0, most_work, 0, stop, seconds)


@settings(max_examples=100, deadline=None)
@given(
    reads=st.integers(1, 9),
    first=st.integers(1, 50),
    most=st.integers(1, 200),
    counted=st.booleans(),
    divisible=st.booleans(),
    rounds=st.lists(st.tuples(st.integers(0, 40), st.one_of(st.none(), st.integers(1, 300))), max_size=5),
)
def test_a_call_never_asks_for_more_than_the_work_left(reads, first, most, counted, divisible, rounds):
    sampler = Recorded([], Effort(reads, first, most, counted, divisible))
    calls = TimedCalls(sampler)
    for number, left in rounds:
        found = calls(request(number, left))
        assert found is not None
        asked, effort = sampler.asked[-1]
        assert 1 <= asked <= reads and 1 <= effort <= most and effort <= first * 2 ** (number // 6)
        assert asked == 1 or number or divisible
        assert found.work == asked * (effort if counted else 1) and (left is None or found.work <= left)


def test_what_cannot_be_divided_ends_with_a_call_of_fewer_reads():
    sampler = Recorded([], Effort(reads=8, first=10, most=10))
    calls = TimedCalls(sampler)
    calls(request())
    calls.seconds_per_effort = 0.1  # a read takes a second
    assert len(calls(request(seconds=3.5)).bits) == 3 and calls.last
    assert calls(request(seconds=1e6)) is None, "a call with fewer reads is the last"


def test_only_what_can_be_divided_keeps_a_call_that_was_stopped():
    for divisible in (False, True):
        stopped = iter([False, True, True, True])
        sampler = Recorded([], Effort(reads=8, divisible=divisible), most_reads=3)
        found = TimedCalls(sampler)(request(stop=lambda s=stopped: next(s)))
        assert (None if found is None else len(found.bits)) == (3 if divisible else None)


def test_what_can_be_divided_is_stopped_before_a_read_that_would_come_late(clock):
    late = []

    class Asks(Recorded):
        def draw(self, request, reads, effort):
            late.append(request.stop())
            return super().draw(request, reads, effort)

    calls = TimedCalls(Asks([], Effort(reads=8, first=10, most=10, divisible=True)))
    with clock(0.0):
        calls.seconds_per_effort = 0.1
        calls(request(seconds=1.1))
        calls.seconds_per_effort = 0.13
        assert calls(request(seconds=1.1)) is None, "no time for a single read"
    assert late == [False]


@pytest.mark.parametrize("value", [0, -3])
def test_options_out_of_range_are_named(value):
    with pytest.raises(InvalidSolverOption, match=f"sweeps must be at least 1; got {value}"):
        check_sampler("one-hot", {"reads": 1, "sweeps": value}, {})
    with pytest.raises(InvalidSolverOption, match=f"field must be a positive number; got {value}"):
        check_sampler("one-hot", {"sweeps": None}, {"cold": None, "field": value})
    with pytest.raises(UnknownName):
        check_sampler("two-hot", {}, {})

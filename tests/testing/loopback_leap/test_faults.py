"""What the unmodified client of Ocean makes of the faults that the loopback server injects."""

from __future__ import annotations

import types

import dimod
import pytest
import requests
from dwave.cloud import exceptions
from dwave.cloud.api import exceptions as api_exceptions
from dwave.system import (
    DWaveSampler,
    LeapHybridSampler,
)

from qubo_compress.testing.loopback_leap import Faults

ON_LISTING = {
    401: exceptions.SolverAuthenticationError,
    404: api_exceptions.ResourceNotFoundError,
    429: api_exceptions.ResourceLimitsExceededError,
    500: api_exceptions.InternalServerError,
    503: api_exceptions.InternalServerError,
}
ON_PROBLEMS = dict.fromkeys((404, 429, 500, 503), exceptions.SolverError) | {401: exceptions.SolverAuthenticationError}


@pytest.mark.parametrize("status", ON_LISTING)
def test_faults_of_the_listing(leap, status):
    leap.faults.next("list", status=status)
    with pytest.raises(ON_LISTING[status]):
        DWaveSampler()


def test_wrong_token_and_wrong_name(leap):
    with pytest.raises(exceptions.SolverAuthenticationError):
        DWaveSampler(token="wrong")
    with pytest.raises(exceptions.SolverNotFoundError, match="nothing"):
        DWaveSampler(solver="nothing")
    with pytest.raises(exceptions.SolverNotFoundError, match="features"):
        DWaveSampler(solver={"num_active_qubits__gt": 10**6})


@pytest.mark.parametrize("status", ON_PROBLEMS)
@pytest.mark.parametrize("kind", ["submit", "poll", "load"])
def test_faults_of_problems(leap, chip, kind, status, one_qubit):
    leap.faults.next(kind, status=status, message="as injected")
    leap.faults.next("solve", delay=0.1)  # lest it be done before it is polled
    if kind == "poll" and status >= 500:  # the client takes it for passing
        assert chip.sample(one_qubit(chip)).first.energy == -1
    else:
        with pytest.raises(ON_PROBLEMS[status], match=None if status == 401 else "as injected"):
            chip.sample(one_qubit(chip)).resolve()
    assert len(leap.faults) == (1 if kind == "submit" else 0)


@pytest.mark.parametrize("kind", ["list", "submit", "poll", "load"])
def test_dropped_connections(leap, chip, kind, one_qubit):
    leap.faults.next(kind, drop=True)
    leap.faults.next("solve", delay=0.1)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        DWaveSampler() if kind == "list" else chip.sample(one_qubit(chip)).resolve()


def test_faults_of_uploads_are_tried_three_times(leap, monkeypatch):
    pauses = []
    # Only where the client pauses between tries, which takes 6 s.
    monkeypatch.setattr("dwave.cloud.utils.decorators.time", types.SimpleNamespace(sleep=pauses.append))
    leap.faults.next("upload", status=503, times=3)
    with LeapHybridSampler() as sampler:
        with pytest.raises(exceptions.ProblemUploadError, match="Service unavailable"):
            sampler.sample(dimod.BQM({0: 1.0}, {}, 0.0, "SPIN")).resolve()
        assert pauses == [2, 4] and not len(leap.faults)


def test_delays_meet_the_time_limits_of_the_client(leap, one_qubit):
    leap.faults.next("list", delay=0.6)
    with pytest.raises(api_exceptions.RequestTimeout):
        DWaveSampler(request_timeout=0.2, http_retry_total=0)
    with DWaveSampler(polling_timeout=0.3, poll_wait_time=1) as sampler:
        leap.faults.next("solve", delay=5.0)
        with pytest.raises(exceptions.PollingTimeout):
            sampler.sample(one_qubit(sampler)).resolve()


def test_quota(leap, chip, one_qubit):
    leap.faults.quota_exceeded()
    with pytest.raises(exceptions.SolverFailureError, match="insufficient remaining solver access time"):
        chip.sample(one_qubit(chip)).resolve()
    leap.faults.quota_exceeded(as_item=False)
    with pytest.raises(exceptions.SolverError, match="insufficient remaining solver access time"):
        chip.sample(one_qubit(chip)).resolve()


def test_problems_that_fail(leap, chip, one_qubit):
    leap.faults.next("solve", message="Solver is offline")
    with pytest.raises(exceptions.SolverOfflineError):
        chip.sample(one_qubit(chip)).resolve()
    leap.faults.next("solve", message="went wrong")
    with pytest.raises(exceptions.SolverFailureError, match="went wrong"):
        chip.sample(one_qubit(chip)).resolve()


def test_an_unreadable_upload_fails_in_words(leap):
    with LeapHybridSampler() as sampler:
        upload = sampler.client.upload_problem_encoded(b"nonsense").result(timeout=600)
        with pytest.raises(exceptions.SolverFailureError, match="internal error of the loopback server"):
            sampler.solver.sample_bqm(upload, time_limit=1).result()


def test_faults_that_make_no_sense_are_refused():
    injected = Faults()
    for kind, options in (
        ("nothing", {"status": 500}),
        ("submit", {}),
        ("submit", {"status": 200}),
        ("submit", {"status": 500, "drop": True}),
        ("submit", {"status": 500, "times": 0}),
        ("poll", {"delay": -1}),
        ("poll", {"item_error": (400, "x")}),
        ("solve", {"status": 500}),
        ("solve", {}),
    ):
        with pytest.raises(ValueError):
            injected.next(kind, **options)
    assert len(injected) == 0 and injected.take("poll") is None


def test_retry_after_lets_the_client_try_again(leap):
    leap.faults.next("list", status=503, retry_after=0)
    with DWaveSampler() as sampler:
        assert sampler.solver.name == "loopback_zephyr4"
    assert not len(leap.faults)

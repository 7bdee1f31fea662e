"""Cancelling, and an end of the loopback server without leftovers; its command line."""

from __future__ import annotations

import contextlib
import doctest
import gc
import http.client
import json
import os
import threading
import time
from pathlib import Path

import dimod
import pytest
from dwave.cloud import Client, exceptions
from dwave.system import (
    DWaveSampler,
    LeapHybridSampler,
)

from qubo_compress.testing.loopback_leap import Chip, LoopbackLeap, faults, protocol, qpu, server, topology
from qubo_compress.testing.loopback_leap.__main__ import main


def test_cancel_while_waiting_and_while_worked_on(loopback):
    with loopback() as running, DWaveSampler() as sampler, LeapHybridSampler() as hybrid:
        running.faults.next("solve", delay=3600)  # which no test may take
        waiting = sampler.solver.sample_ising({sampler.nodelist[0]: 1.0}, {})
        assert waiting.wait_id(timeout=600)
        working = hybrid.solver.sample_bqm(dimod.generators.ran_r(1, 30, seed=0), time_limit=3600)
        assert working.wait_id(timeout=600)
        for future in (waiting, working):
            future.cancel()
            with pytest.raises(exceptions.CanceledFutureError):
                future.result()


def test_a_cancel_that_fails(leap, chip):
    leap.faults.next("solve", delay=3.0)
    leap.faults.next("cancel", status=500, message="no cancelling today")
    future = chip.solver.sample_ising({chip.nodelist[0]: 1.0}, {})
    future.wait_id(timeout=600)
    future.cancel()
    with pytest.raises(exceptions.SolverError, match="no cancelling today"):
        future.result()


def open_sockets():
    gc.collect()
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(str(descriptor.readlink()))
    return sorted(target for target in found if target.startswith("socket"))


def test_nothing_is_left_behind(one_qubit):
    before_threads = set(threading.enumerate())
    sockets = open_sockets()
    running = LoopbackLeap([Chip("zephyr", 2)])
    running.start()
    with running.environment():
        sampler, hybrid = DWaveSampler(), LeapHybridSampler()
        sampler.sample(one_qubit(sampler)).resolve()
        running.faults.next("solve", delay=3600)  # which no test may take
        waiting = sampler.solver.sample_ising({sampler.nodelist[0]: 1.0}, {})
        waiting.wait_id(timeout=600)
        hybrid.solver.sample_bqm(dimod.generators.ran_r(1, 30, seed=0), time_limit=3600).wait_id(timeout=600)
        # A connection of ours that is kept alive and says nothing.
        idle = http.client.HTTPConnection("127.0.0.1", int(running.endpoint.split(":")[2].split("/")[0]), timeout=600)
        idle.request("GET", "/sapi/v2/problems/", headers={"X-Auth-Token": running.token})
        assert len(json.loads(idle.getresponse().read())) == 3
        running.close()
        with pytest.raises(exceptions.CanceledFutureError):
            waiting.result()
        with pytest.raises(RuntimeError, match="not running"):
            running.endpoint
        idle.close()
        sampler.close(), hybrid.close()
    running.close()
    deadline = time.perf_counter() + 600
    while set(threading.enumerate()) - before_threads and time.perf_counter() < deadline:
        time.sleep(0.02)
    assert set(threading.enumerate()) <= before_threads
    assert set(open_sockets()) <= set(sockets)
    assert running.requests


def test_a_server_can_be_started_again(get):
    running = LoopbackLeap([Chip("zephyr", 2)])
    assert running.requests == []
    with running:
        with pytest.raises(RuntimeError, match="already"):
            running.start()
        get(running, "problems/")
    with running:
        assert running.requests == []
        get(running, "problems/")
        assert [request.path for request in running.requests] == ["problems/"]
    with pytest.raises(ValueError, match="positive"):
        LoopbackLeap(minimum_time=0)


def test_the_environment_is_put_back(leap, monkeypatch):
    monkeypatch.setenv("DWAVE_API_SOLVER", "mine")
    with leap.environment():
        assert "DWAVE_API_SOLVER" not in os.environ and os.environ["DWAVE_API_TOKEN"] == leap.token
    assert os.environ["DWAVE_API_SOLVER"] == "mine"


def test_command_line(capsys):
    def try_it():
        printed = capsys.readouterr().out.splitlines()
        assert "nothing here is quantum" in printed[0]
        endpoint, token = (line.split("=", 1)[1] for line in printed[1:3])
        with Client(endpoint=endpoint, token=token) as client:
            assert client.get_solver(name="loopback_zephyr2").num_active_qubits == 160
        raise KeyboardInterrupt

    main(["--zephyr", "2", "--pegasus", "2", "--eager"], wait=try_it)
    assert "closing" in capsys.readouterr().out


@pytest.mark.parametrize("module", [faults, protocol, qpu, server, topology], ids=lambda module: module.__name__)
def test_docstrings(module):
    assert doctest.testmod(module).failed == 0

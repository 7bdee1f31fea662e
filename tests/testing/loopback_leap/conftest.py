"""A running loopback server, one of its chips, and how to talk to it."""

from __future__ import annotations

import contextlib
import urllib.request

import dimod
import pytest
from dwave.system import DWaveSampler

from qubo_compress.testing.loopback_leap import Chip, LoopbackLeap


@pytest.fixture(autouse=True)
def _caches_are_temporary(caches, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))


@pytest.fixture(scope="module")
def eager():
    with LoopbackLeap(eager=True, seed=3) as running, running.environment():
        yield running


@pytest.fixture
def leap(eager):
    yield eager
    eager.faults.clear()


@pytest.fixture
def chip(leap):
    with DWaveSampler(solver="loopback_zephyr4", request_timeout=600.0) as sampler:
        yield sampler


@contextlib.contextmanager
def _loopback(**options):
    options.setdefault("chips", [Chip("zephyr", 2)])
    with LoopbackLeap(**options) as running, running.environment():
        yield running


@pytest.fixture
def loopback():
    """``with loopback(...) as running:`` a server of its own."""
    return _loopback


def _get(running, path, **headers):
    request = urllib.request.Request(running.endpoint + path, headers={"X-Auth-Token": running.token, **headers})
    with urllib.request.urlopen(request, timeout=600) as response:
        return response.status, response.headers, response.read()


@pytest.fixture
def get():
    """Status, headers and body of a GET of our own, token included."""
    return _get


@pytest.fixture
def one_qubit():
    """The smallest problem of a chip."""
    return lambda sampler, bias=1.0: dimod.BQM({sampler.nodelist[0]: bias}, {}, 0.0, "SPIN")

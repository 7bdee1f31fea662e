"""One of Ocean's mock chips, and time limits that end when a fault is met."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from dwave.system.testing import MockDWaveSampler

from qubo_compress.testing.loopback_leap import LoopbackLeap

AGES = 1e6


@pytest.fixture(scope="module")
def chip():
    return MockDWaveSampler(topology_type="zephyr", topology_shape=[3, 4], parameter_warnings=False)


@pytest.fixture
def late(server: LoopbackLeap, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``late("upload")``: every time limit, however long, is over once such a request has met its fault.

    So nobody waits for the end of a limit, and a busy machine cannot reach it earlier.
    """

    def ends_at(kind: str) -> None:
        take, real, ahead = server.faults.take, time.perf_counter, []

        def taken(asked: str):
            fault = take(asked)
            if asked == kind and fault is not None:
                ahead.append(AGES)
            return fault

        monkeypatch.setattr(server.faults, "take", taken)
        monkeypatch.setattr(time, "perf_counter", lambda: real() + (AGES if ahead else 0.0))

    return ends_at

"""The solvers that the loopback server offers, as the unmodified client of Ocean lists and picks them."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import dimod
import numpy as np
import pytest
from dwave.cloud import Client
from dwave.system import (
    DWaveSampler,
    LeapHybridCQMSampler,
    LeapHybridDQMSampler,
    LeapHybridSampler,
    StrideHybridSolver,
)

from qubo_compress import ChoiceProblem
from qubo_compress.testing.loopback_leap import ADVANTAGE2, Chip, LoopbackLeap


def test_every_solver_says_loopback_and_classical(leap):
    with Client(**leap.client_options) as client:
        found = client.get_solvers()
        chips = [solver for solver in found if solver.qpu]
    assert {solver.name for solver in found} == set(leap.solver_names)
    for solver in found:
        assert solver.name.startswith("loopback_")
        assert "loopback, classical" in solver.data.description
    assert {solver.properties["topology"]["type"] for solver in chips} == {"zephyr", "pegasus"}
    assert all(re.fullmatch("[0-9a-f]{10}", solver.graph_id) for solver in chips)


def test_samplers_pick_their_solver_without_arguments(leap):
    picked = {}
    for sampler in (DWaveSampler, LeapHybridSampler, LeapHybridCQMSampler, LeapHybridDQMSampler, StrideHybridSolver):
        with sampler() as made:
            picked[sampler.__name__] = made.solver.name
    assert picked == {
        "DWaveSampler": "loopback_zephyr4",
        "LeapHybridSampler": "loopback_hybrid_bqm",
        "LeapHybridCQMSampler": "loopback_hybrid_cqm",
        "LeapHybridDQMSampler": "loopback_hybrid_dqm",
        "StrideHybridSolver": "loopback_hybrid_nl",
    }
    with DWaveSampler(solver={"topology__type": "pegasus"}) as sampler:
        assert sampler.properties["topology"]["shape"] == [4]


def test_listing_is_versioned_and_never_cached(leap, get):
    status, headers, body = get(leap, "solvers/remote/?filter=none,%2Bidentity,%2Bproperties.category")
    assert status == 200 and headers["Cache-Control"] == "no-store"
    assert headers["Content-Type"] == "application/vnd.dwave.sapi.solver-definition-list+json; version=3.0.0"
    assert {frozenset(record) for record in json.loads(body)} == {frozenset({"identity", "properties"})}
    assert {tuple(record["properties"]) for record in json.loads(body)} == {("category",)}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        get(leap, "solvers/remote/?filter=some")


def test_working_graph_has_parts_missing_and_its_own_identity():
    whole, some = Chip("zephyr", 3), Chip("zephyr", 3, missing_qubits=5, missing_couplers=7)
    records = [chip.record() for chip in (whole, some, Chip("zephyr", 3, 5, 7, seed=1))]
    sizes = [len(record["properties"]["qubits"]) for record in records]
    assert sizes == [336, 331, 331]
    assert len({record["identity"]["version"]["graph_id"] for record in records}) == 3
    assert records[1]["identity"] == some.record()["identity"]
    kept = set(records[1]["properties"]["qubits"])
    assert all(a in kept and b in kept for a, b in records[1]["properties"]["couplers"])
    for wrong in ({"topology": "chimera"}, {"topology": "pegasus", "size": 1}):
        with pytest.raises(ValueError):
            Chip(**wrong)
    with pytest.raises(ValueError, match="missing_qubits"):
        Chip("zephyr", 1, missing_qubits=48).record()


def test_advantage2_is_about_as_large_as_documented():
    properties = ADVANTAGE2.record()["properties"]
    assert len(properties["qubits"]) == 4577
    assert len(properties["couplers"]) == pytest.approx(41515, rel=0.01)


def test_two_chips_of_one_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        LoopbackLeap([Chip("zephyr", 2), Chip("zephyr", 2, missing_qubits=1)])


def test_short_and_documented_minimum_times(loopback):
    # (variables, BQM seconds) of notes/annealing.md, section 1.
    documented = {320: 3.0, 1600: 4.3, 3200: 8.0, 8000: 30.0, 32000: 211.0}
    with loopback(documented_times=True), LeapHybridSampler() as sampler:
        for size, seconds in documented.items():
            model = dimod.BQM.from_numpy_vectors(np.ones(size), ([], [], []), 0.0, "BINARY")
            assert sampler.min_time_limit(model) == pytest.approx(seconds, abs=0.5)
        assert sampler.properties["quota_conversion_rate"] == 20
        with pytest.raises(ValueError, match="at least"):
            sampler.sample(dimod.BQM({0: 1.0}, {}, 0.0, "SPIN"), time_limit=2)
    problem = ChoiceProblem.random("dense", groups=20, choices=16, seed=0)
    with loopback(minimum_time=0.3), LeapHybridCQMSampler() as sampler:
        assert sampler.min_time_limit(problem.to_cqm()[0]) == pytest.approx(0.3)

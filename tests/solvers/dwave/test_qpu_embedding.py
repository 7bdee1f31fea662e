"""What fits on a chip, how it is embedded there, and which embeddings are kept."""

from __future__ import annotations

import json
from types import SimpleNamespace

import dwave.graphs
import numpy as np
import pytest
from dwave.system.testing import MockDWaveSampler

from qubo_compress import ChoiceProblem, solve
from qubo_compress import errors as e
from qubo_compress._internal.checked_json import with_checksum
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.dwave import minor_embedding, qpu_device, qpu_fit
from qubo_compress.solvers.dwave.minor_embedding import find_minor
from qubo_compress.solvers.dwave.qpu import Qpu
from qubo_compress.solvers.dwave.qpu_device import Device
from qubo_compress.solvers.dwave.qpu_embedding import EmbeddingCache, joins, may_fit, qubits_needed


@pytest.fixture(scope="module")
def large_chip():
    return MockDWaveSampler(topology_type="zephyr", topology_shape=[12, 4], parameter_warnings=False)


@pytest.mark.parametrize("kind, groups, choices", [("dense", 20, 16), ("low-rank", 20, 16), ("dense", 100, 16)])
def test_what_does_not_fit_is_refused_before_anything_that_takes_long(large_chip, kind, groups, choices, monkeypatch):
    built = []
    build = qpu_fit.build_bqm
    monkeypatch.setattr(qpu_fit, "build_bqm", lambda *args, **more: built.append(args) or build(*args, **more))
    monkeypatch.setattr(qpu_fit, "find_minor", lambda *_: pytest.fail("an embedding was searched"))
    problem = random_problem(kind, groups=groups, choices=choices, seed=0)
    with pytest.raises(e.ProblemTooLarge) as refusal:
        solve(problem, Qpu(sampler=large_chip, cache=None), time_limit=250.0)
    assert len(built) <= (2 if groups == 20 else 0), "the model of a large problem takes seconds to build"
    text = str(refusal.value)
    assert str(groups * (choices - 1)) in text and "184" in text
    assert all(word in text for word in ("qpu-decomposition", "leap-cqm", "annealer"))


def test_the_gate_counts_what_is_left_after_reduction(chip):
    # Two copies of one choice in each group: half of the bits go before the gate is asked.
    small = random_problem("low-rank", groups=6, choices=6, seed=3)
    twice = np.repeat(np.arange(small.num_choices), 2)
    doubled = ChoiceProblem(
        small.linear[twice], 2 * small.group_offsets, small.costs[:, twice], small.limits, factor=small.factor[twice]
    )
    most = Device(chip, cache=None).largest_clique
    assert 6 * 5 <= most < 6 * 11
    solution = solve(doubled, Qpu(sampler=chip, submissions=1, cache=None), time_limit=20.0)
    assert solution.details["bits"] <= 30
    assert doubled.is_feasible(solution.assignment)


def test_few_couplings_need_no_clique(chip):
    problem = random_problem("sparse", groups=24, choices=3, seed=0, neighbours=1)
    solver = Qpu(sampler=chip, submissions=1, num_reads=10, cache=None, roof_duality=False)
    assert Device(chip, cache=None).largest_clique < 48
    solution = solve(problem, solver, time_limit=20.0)
    assert problem.is_feasible(solution.assignment)
    assert solution.details["bits"] > solution.details["largest_clique"]
    assert solution.details["submissions"] == 1


def test_a_search_for_an_embedding_ends_on_time(monkeypatch):
    graph = dwave.graphs.zephyr_graph(6, 4)
    couplings = [(u, v) for u in range(100) for v in range(u)]  # above the largest clique: there is nothing to find
    readings = iter(range(0, 100_000, 100))  # a clock that goes on by 100 s whenever it is read
    monkeypatch.setattr(minor_embedding, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    assert find_minor(couplings, 100, list(graph.edges), 0, 250.0, lambda: False) is None
    assert next(readings) == 400, "it was read after 250 s"
    asked = iter([False, False, True])
    assert find_minor(couplings, 100, list(graph.edges), 0, 250_000.0, lambda: next(asked)) is None
    assert list(asked) == []


def test_counting_qubits_is_a_lower_bound(chip):
    graph = Device(chip, cache=None).graph
    most = max(degree for _, degree in graph.degree)
    for size in (3, 10, 30):
        chains = Device(chip, cache=None).clique(size)
        assert qubits_needed(np.full(size, size - 1), most) <= sum(map(len, chains))
    assert not may_fit(graph, np.full(60, 59))
    assert may_fit(graph, np.full(60, 4))


def test_an_embedding_is_searched_once_for_each_graph_id(tmp_path, monkeypatch):
    searches = []
    original = qpu_device.Cliques.chains
    monkeypatch.setattr(qpu_device.Cliques, "chains", lambda self, size: searches.append(size) or original(self, size))

    def embed(graph_id):
        mock = MockDWaveSampler(topology_type="zephyr", topology_shape=[2, 4], properties={"chip_id": graph_id})
        return Device(mock, str(tmp_path)).clique(12)

    first = embed("Advantage2_system1;graph_id=01")
    assert searches == [12]
    assert embed("Advantage2_system1;graph_id=01") == first
    assert searches == [12], "found on disk"
    embed("Advantage2_system1;graph_id=02")
    assert searches == [12, 12], "another graph id does not use it"
    assert len(list(tmp_path.iterdir())) == 2
    assert Device(MockDWaveSampler(topology_type="zephyr", topology_shape=[2, 4]), None).clique(12)
    assert len(list(tmp_path.iterdir())) == 2, "cache=None keeps nothing"


def test_a_kept_embedding_that_does_not_fit_the_graph_is_not_used(tmp_path):
    mock = MockDWaveSampler(topology_type="zephyr", topology_shape=[2, 4])
    device = Device(mock, str(tmp_path))
    chains = device.clique(6)
    assert joins(device.graph, chains, None)
    path = device.store.path
    whole = path.read_bytes()
    content = json.loads(whole)
    del content["checksum"]
    for known in (10**6, -1, True, "many"):
        path.write_bytes(with_checksum({**content, "entries": {"largest-clique": known}}))
        assert Device(mock, str(tmp_path)).largest_clique == device.largest_clique
    for damaged in (
        with_checksum({**content, "entries": {"clique-6": [[q] for q in range(6)]}}),
        whole.replace(b"1", b"2", 1),
        json.dumps(content).encode(),  # as version 0.4 wrote
        with_checksum({**content, "entries": []}),
        b"[]",
        b"{ torn",
    ):
        path.write_bytes(damaged)
        again = Device(mock, str(tmp_path))
        assert again.clique(6) == chains and again.searches == 1
    assert json.loads(path.read_bytes())["entries"]["clique-6"] == chains


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    EmbeddingCache(str(blocked / "sub"), "graph").put("clique-1", [[0]])
    assert "not kept" in caplog.text

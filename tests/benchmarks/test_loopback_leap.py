"""The unmodified client of Ocean against the loopback server: answers, faults, and an end without leftovers."""

from __future__ import annotations

import base64
import contextlib
import doctest
import gc
import hashlib
import http.client
import itertools
import json
import os
import re
import threading
import time
import types
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import dimod
import numpy as np
import pytest
import requests
from dwave.cloud import Client, exceptions
from dwave.cloud.api import exceptions as api_exceptions
from dwave.optimization import Model
from dwave.system import (
    DWaveCliqueSampler,
    DWaveSampler,
    EmbeddingComposite,
    LeapHybridCQMSampler,
    LeapHybridDQMSampler,
    LeapHybridSampler,
    StrideHybridSolver,
)

from benchmarks.loopback_leap import ADVANTAGE2, Chip, Faults, LoopbackLeap, faults, protocol, qpu, server, topology
from benchmarks.loopback_leap.__main__ import main
from qubo_compress import ChoiceProblem


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
    with DWaveSampler(solver="loopback_zephyr4", request_timeout=60.0) as sampler:
        yield sampler


@contextlib.contextmanager
def loopback(**options):
    options.setdefault("chips", [Chip("zephyr", 2)])
    with LoopbackLeap(**options) as running, running.environment():
        yield running


def get(running, path, **headers):
    """Status, headers and body of a GET of our own, token included."""
    request = urllib.request.Request(running.endpoint + path, headers={"X-Auth-Token": running.token, **headers})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.status, response.headers, response.read()


def one_qubit(sampler, bias=1.0):
    return dimod.BQM({sampler.nodelist[0]: bias}, {}, 0.0, "SPIN")


# --- solvers -------------------------------------------------------------------------------------


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


def test_listing_is_versioned_and_never_cached(leap):
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


def test_short_and_documented_minimum_times():
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


# --- chips ---------------------------------------------------------------------------------------


def test_chip_embedded_samples(chip):
    model = dimod.generators.ran_r(3, 7, seed=1)
    found = EmbeddingComposite(chip).sample(model, num_reads=40)
    assert found.first.energy == dimod.ExactSolver().sample(model).first.energy
    assert found.record.num_occurrences.sum() == 40
    assert np.allclose(found.record.energy, model.energies((found.record.sample, found.variables)))
    assert found.info["problem_label"] == "loopback, classical"


def test_clique_sampler_on_a_chip_with_parts_missing():
    with loopback(chips=[Chip("zephyr", 4, missing_qubits=20, missing_couplers=20)]):
        sampler = DWaveCliqueSampler()
        model = dimod.generators.gnp_random_bqm(12, 1.0, "SPIN", random_state=1)
        found = sampler.sample(model, num_reads=30)
        assert found.first.energy == pytest.approx(dimod.ExactSolver().sample(model).first.energy)
        assert 12 <= sampler.largest_clique_size < 64
        sampler.child.client.close()


@pytest.mark.parametrize("vartype", ["SPIN", "BINARY"])
def test_energies_are_those_of_the_problem_as_sent(chip, vartype):
    rng = np.random.default_rng(0)
    edges = [chip.edgelist[i] for i in rng.choice(len(chip.edgelist), 60, replace=False)]
    model = dimod.BQM({chip.edgelist[0][0]: 90.0}, {edge: 7 * rng.normal() for edge in edges}, 2.5, vartype)
    found = chip.sample(model, num_reads=25, answer_mode="raw", label="mine")
    assert len(found) == 25 and found.info["problem_label"] == "mine"
    assert set(found.variables) == set(model.variables)
    assert np.allclose(found.record.energy, model.energies((found.record.sample, found.variables)))
    merged = chip.sample(model, num_reads=25, max_answers=3)
    assert len(merged) <= 3 and (np.diff(merged.record.energy) >= 0).all()


@pytest.mark.parametrize(
    "params",
    [
        {"num_reads": 3},
        {"num_reads": 10, "annealing_time": 50.0, "reduce_intersample_correlation": True},
        {"anneal_schedule": [(0.0, 0.0), (5.0, 0.4), (30.0, 1.0)], "readout_thermalization": 7.0},
    ],
)
def test_timing_follows_the_model_that_the_client_knows(chip, params):
    model = dimod.BQM(dict.fromkeys(chip.nodelist[:40], 1.0), {}, 0.0, "SPIN")
    timing = chip.sample(model, **params).info["timing"]
    assert timing["qpu_access_time"] == pytest.approx(chip.solver.estimate_qpu_access_time(40, **params), abs=0.05)
    assert all(isinstance(value, int | float) for value in timing.values())


@pytest.mark.parametrize("again", [True, False])
def test_reverse_annealing_starts_from_the_given_state(chip, again):
    model = dimod.BQM({}, dict.fromkeys(chip.edgelist, -1.0), 0.0, "SPIN")
    start = dict.fromkeys(model.variables, 1)
    schedule = [(0.0, 1.0), (2.0, 0.95), (5.0, 1.0)]
    found = chip.sample(
        model, num_reads=8, initial_state=start, anneal_schedule=schedule, reinitialize_state=again, answer_mode="raw"
    )
    assert (found.record.sample == 1).all()  # forward anneals end in either of the two ground states
    with pytest.raises(exceptions.SolverFailureError, match="need each other"):
        chip.sample(model, initial_state=start).resolve()


def test_problems_that_a_chip_refuses(chip):
    for params, message in (
        ({"num_reads": 10001}, "num_reads"),
        ({"num_reads": 5000, "annealing_time": 2000}, "lower num_reads"),
        ({"annealing_time": 0.1}, "annealing_time"),
        ({"anneal_schedule": [(0.0, 0.0), (5.0, 0.5)]}, "end at s = 1"),
        ({"annealing_time": 5, "anneal_schedule": [(0.0, 0.0), (5.0, 1.0)]}, "not both"),
        ({"answer_mode": "best"}, "answer_mode"),
    ):
        with pytest.raises(exceptions.SolverFailureError, match=message):
            chip.sample(one_qubit(chip), **params).resolve()
    with pytest.raises(exceptions.SolverFailureError, match=r"divided by 2\.5"):
        chip.sample(one_qubit(chip, 10.0), auto_scale=False).resolve()
    assert chip.sample(one_qubit(chip, 4.0), auto_scale=False).first.energy == -4.0
    with pytest.raises(KeyError, match="flux_biases"):
        chip.sample(one_qubit(chip), flux_biases=[0.0])


def test_small_biases_drown_on_a_warm_chip():
    def share_right(**options):
        with loopback(seed=1, **options), DWaveSampler() as sampler:
            large, small = sampler.nodelist[:1], sampler.nodelist[1:41]
            model = dimod.BQM({**dict.fromkeys(large, 400.0), **dict.fromkeys(small, 1.0)}, {}, 0.0, "SPIN")
            found = sampler.sample(model, num_reads=20, answer_mode="raw")
            columns = [found.variables.index(v) for v in small]
            return float((found.record.sample[:, columns] == -1).mean())

    assert share_right() > 0.95
    assert share_right(chip_temperature=0.1) < 0.65


def test_same_seed_same_answers():
    def draw():
        with loopback(seed=5), DWaveSampler() as sampler:
            model = dimod.BQM({}, dict.fromkeys(sampler.edgelist[:300], 1.0), 0.0, "SPIN")
            return [sampler.sample(model, num_reads=5, answer_mode="raw").record.sample.tolist() for _ in range(2)]

    first, second = draw()
    assert [first, second] == draw() and first != second


# --- hybrid solvers ------------------------------------------------------------------------------


def test_binary_models(leap):
    model = dimod.generators.gnp_random_bqm(16, 0.5, "BINARY", random_state=2).relabel_variables(
        {i: f"x{i}" for i in range(16)}, inplace=False
    )
    with LeapHybridSampler() as sampler:
        found = sampler.sample(model, label="mine")
        assert len(found) == 1
        assert found.first.energy == pytest.approx(dimod.ExactSolver().sample(model).first.energy)
        assert found.info["qpu_access_time"] == 0 and "classical" in found.info["loopback"]
        assert found.info["problem_label"] == "mine" and found.info["charge_time"] == 200_000
        with pytest.raises(exceptions.SolverFailureError, match="unknown parameters"):
            sampler.sample(model, sweeps=3).resolve()


def least_energy(problem):
    assignments = itertools.product(*map(range, problem.group_sizes))
    return min(problem.energy(one) for one in map(np.array, assignments) if problem.is_feasible(one))


@pytest.mark.parametrize("kind", ["dense", "separable"])
def test_constrained_models_that_are_choice_problems(leap, kind):
    problem = ChoiceProblem.random(kind, groups=5, choices=4, seed=4)
    cqm, _ = problem.to_cqm()
    with LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(cqm)
    assert found.record.is_feasible.all() and len(found)
    assert found.first.energy == pytest.approx(least_energy(problem), abs=1e-5)
    assert "classical" in found.info["loopback"]
    assert set(found.info["constraint_labels"]) == set(cqm.constraints)


def test_an_infeasible_sample_of_least_energy_on_request():
    problem = ChoiceProblem.random("dense", groups=8, choices=5, seed=4)
    with loopback(eager=True, infeasible_first=True), LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(problem.to_cqm()[0])
    assert not found.first.is_feasible
    assert found.filter(lambda row: row.is_feasible).first.energy > found.first.energy


def test_budgets_of_fractions_negative_costs_and_the_other_sense(leap):
    cqm = dimod.ConstrainedQuadraticModel()
    rng = np.random.default_rng(0)
    names = [[f"{group}{choice}" for choice in range(3)] for group in "abcd"]
    flat = [name for group in names for name in group]
    for name in flat:
        cqm.add_variable("BINARY", name)
    cqm.set_objective(dimod.BQM(dict(zip(flat, rng.normal(size=12))), {("a0", "b1"): -3.0}, 1.0, "BINARY"))
    for group in names:
        cqm.add_discrete(group, label=f"group {group[0][0]}")
    weights = rng.normal(size=12)
    cqm.add_constraint([(name, weight) for name, weight in zip(flat, weights)] + [(0.25,)], "<=", 0.3, label="most")
    cqm.add_constraint([(name, weight) for name, weight in zip(flat, weights)], ">=", -2.0, label="least")
    with LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(cqm)
    exact = dimod.ExactCQMSolver().sample_cqm(cqm).filter(lambda row: row.is_feasible)
    assert found.first.is_feasible and found.first.energy == pytest.approx(exact.first.energy)


def test_constrained_models_of_another_shape(leap):
    cqm = dimod.ConstrainedQuadraticModel()
    i, x = dimod.Integer("i", upper_bound=6), dimod.Binary("x")
    cqm.set_objective((i - 4) * (i - 4) - 3 * x)
    cqm.add_constraint(i + 2 * x <= 5, label="room")
    with LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(cqm)
    best = found.filter(lambda row: row.is_feasible).first
    exact = dimod.ExactCQMSolver().sample_cqm(cqm).filter(lambda row: row.is_feasible).first
    assert best.energy == exact.energy


def test_constrained_models_that_cannot_be_met(leap):
    problem = ChoiceProblem.random("dense", groups=4, choices=3, seed=0)
    cqm, _ = problem.with_limits(problem.smallest_totals() - 1).to_cqm()
    with LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(cqm)
    assert len(found) and not found.record.is_feasible.any()


def test_discrete_models(leap):
    rng = np.random.default_rng(1)
    dqm = dimod.DiscreteQuadraticModel()
    for name in "abcde":
        dqm.add_variable(4, label=name)
        dqm.set_linear(name, rng.normal(size=4))
    for u, v in ("ab", "bc", "ad", "ce"):
        dqm.set_quadratic(u, v, rng.normal(size=(4, 4)))
    with LeapHybridDQMSampler() as sampler:
        found = sampler.sample_dqm(dqm)
    assert found.first.energy == pytest.approx(dimod.ExactDQMSolver().sample_dqm(dqm).first.energy)
    assert "classical" in found.info["loopback"] and set(found.variables) == set("abcde")


def choice_model(groups=6, choices=4):
    rng = np.random.default_rng(0)
    values, sizes = rng.random((groups, choices)), rng.integers(1, 9, (groups, choices)).astype(float)
    model = Model()
    group, choice = model.constant(np.arange(groups)), model.integer(groups, lower_bound=0, upper_bound=choices - 1)
    model.minimize(model.constant(values)[group, choice].sum())
    room = sizes.min(axis=1).sum() + 5
    model.add_constraint(model.constant(sizes)[group, choice].sum() <= model.constant(room))
    grid = np.array(np.meshgrid(*[np.arange(choices)] * groups)).reshape(groups, -1)
    fits = sizes[np.arange(groups)[:, None], grid].sum(axis=0) <= room
    best = values[np.arange(groups)[:, None], grid].sum(axis=0)[fits].min()
    return model, best


def test_nonlinear_models(leap):
    model, best = choice_model()
    with StrideHybridSolver() as solver:
        result = solver.sample(model, time_limit=0.2, label="mine").result(timeout=60)
        with model.lock():
            assert model.objective.state(0) == pytest.approx(best)
            assert all(constraint.state(0) for constraint in model.iter_constraints())
        assert result.info["timing"]["qpu_access_time"] == 0 and result.info["problem_label"] == "mine"
        listing = Model()
        listing.minimize(listing.list(4).sum())
        with pytest.raises(exceptions.SolverFailureError, match="ListVariable"):
            solver.sample(listing, time_limit=0.2).result(timeout=60)


def test_nonlinear_with_binaries_and_wide_integers(leap):
    model = Model()
    x, i = model.binary(3), model.integer((), lower_bound=-100, upper_bound=100)
    model.minimize((i - 37) * (i - 37) - x.sum())
    model.add_constraint(x.sum() == model.constant(2.0))
    with StrideHybridSolver() as solver:
        solver.sample(model, time_limit=0.2).result(timeout=60)
    with model.lock():
        assert model.objective.state(0) == -2 and i.state(0) == 37 and x.state(0).sum() == 2


def test_without_eager_the_time_limit_is_used_and_polls_are_long():
    model, _ = choice_model()
    with loopback() as running:
        with LeapHybridSampler() as sampler:
            found = sampler.sample(dimod.BQM({0: 1.0}, {}, 0.0, "SPIN"), time_limit=0.7)
            assert found.info["run_time"] >= 690_000  # microseconds; no load makes it less
        polls = [request for request in running.requests if request.kind == "poll"]
        assert len(polls) == 1 and "timeout=30" in polls[0].path
        with StrideHybridSolver() as solver:
            result = solver.sample(model, time_limit=0.4).result(timeout=60)
            assert result.info["timing"]["run_time"] >= 390_000


# --- protocol ------------------------------------------------------------------------------------


def test_large_uploads_go_in_parts(leap):
    size = 6 * 2**20
    with Client(**leap.client_options) as client:
        before = len(leap.requests)
        client.upload_problem_encoded(np.random.default_rng(0).bytes(size)).result(timeout=60)
    sent = [request for request in leap.requests[before:] if request.method == "PUT"]
    assert len(sent) == 2 and sum(request.bytes for request in sent) == size
    assert all(request.status == 200 for request in leap.requests[before:])


def post(running, method, path, body=b"", **headers):
    response = requests.request(
        method, running.endpoint + path, data=body, headers={"X-Auth-Token": running.token, **headers}, timeout=60
    )
    return response.status_code, response.json()


def test_uploads_are_checked(leap):
    def part(upload, number, data, claimed=None):
        digest = base64.b64encode(hashlib.md5(claimed or data).digest()).decode()
        return post(leap, "PUT", f"bqm/multipart/{upload}/part/{number}", data, **{"Content-MD5": digest})

    upload = post(leap, "POST", "bqm/multipart", b'{"size": 4}')[1]["id"]
    assert part(upload, 1, b"ab", claimed=b"ac")[0] == 400
    assert part(upload, 1, b"ab") == (200, {})
    assert part("nothing", 1, b"ab")[0] == 404
    combined = json.dumps({"checksum": hashlib.md5(hashlib.md5(b"ab").digest()).hexdigest()}).encode()
    status, message = post(leap, "POST", f"bqm/multipart/{upload}/combine", combined)
    assert status == 400 and "4 were announced" in message["error_msg"]
    assert post(leap, "POST", f"bqm/multipart/{upload}/combine", b'{"checksum": "0"}')[0] == 400
    assert post(leap, "GET", f"bqm/multipart/{upload}/status")[1]["parts"][0]["part_number"] == 1
    assert post(leap, "POST", "bqm/multipart", b'{"size": "x"}')[0] == 400
    job = {"solver": {"name": "loopback_hybrid_bqm"}, "type": "bqm", "data": {"format": "ref", "data": upload}}
    status, answers = post(leap, "POST", "problems/", json.dumps([job]).encode())
    assert status == 200 and "not complete" in answers[0]["error_msg"]


def test_submissions_are_checked_one_by_one(leap):
    good = {"solver": {"name": "loopback_hybrid_bqm"}, "type": "bqm", "data": {"format": "bq", "data": {}}}
    jobs = [{}, good, {**good, "type": "cqm"}, {**good, "solver": {"name": "nothing"}}]
    jobs.append({**good, "solver": {"name": "loopback_zephyr4", "version": {"graph_id": "old"}}, "type": "ising"})
    packed = zlib.compress(json.dumps(jobs).encode())
    status, answers = post(leap, "POST", "problems/", packed, **{"Content-Encoding": "deflate"})
    assert status == 200
    assert [answer["error_code"] for answer in answers] == [400, 400, 400, 404, 404]
    for expected, answer in zip(
        ["has solver", "uploaded first", "does not take", "no solver", "working graph"], answers, strict=True
    ):
        assert expected in answer["error_msg"]
    assert post(leap, "POST", "problems/", b"{", **{"Content-Encoding": "deflate"})[0] == 400
    assert post(leap, "POST", "problems/", b"{")[0] == 400
    assert post(leap, "GET", "problems/?id=unknown")[0] == 404
    assert post(leap, "GET", "nowhere")[0] == 404
    assert post(leap, "DELETE", "problems/", b'["unknown"]')[1][0]["error_code"] == 404


def test_qp_arrays_of_wrong_length_are_refused():
    properties = Chip("zephyr", 1).record()["properties"]
    empty = base64.b64encode(b"").decode()
    full = base64.b64encode(np.zeros(len(properties["qubits"])).tobytes()).decode()
    unused = base64.b64encode(np.full(len(properties["qubits"]), np.nan).tobytes()).decode()
    for data, message in (
        ({"format": "bq"}, "format"),
        ({"format": "qp", "lin": empty, "quad": empty}, "linear"),
        ({"format": "qp", "lin": full, "quad": empty}, "quadratic"),
        ({"format": "qp", "lin": unused, "quad": empty}, "no qubit"),
    ):
        with pytest.raises(qpu.ProblemRejected, match=message):
            qpu.decode_problem(data, properties, "ising")


# --- faults --------------------------------------------------------------------------------------

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
def test_faults_of_problems(leap, chip, kind, status):
    leap.faults.next(kind, status=status, message="as injected")
    leap.faults.next("solve", delay=0.1)  # lest it be done before it is polled
    if kind == "poll" and status >= 500:  # the client takes it for passing
        assert chip.sample(one_qubit(chip)).first.energy == -1
    else:
        with pytest.raises(ON_PROBLEMS[status], match=None if status == 401 else "as injected"):
            chip.sample(one_qubit(chip)).resolve()
    assert len(leap.faults) == (1 if kind == "submit" else 0)


@pytest.mark.parametrize("kind", ["list", "submit", "poll", "load"])
def test_dropped_connections(leap, chip, kind):
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


def test_delays_meet_the_time_limits_of_the_client(leap):
    leap.faults.next("list", delay=0.6)
    with pytest.raises(api_exceptions.RequestTimeout):
        DWaveSampler(request_timeout=0.2, http_retry_total=0)
    with DWaveSampler(polling_timeout=0.3, poll_wait_time=1) as sampler:
        leap.faults.next("solve", delay=5.0)
        with pytest.raises(exceptions.PollingTimeout):
            sampler.sample(one_qubit(sampler)).resolve()


def test_quota(leap, chip):
    leap.faults.quota_exceeded()
    with pytest.raises(exceptions.SolverFailureError, match="insufficient remaining solver access time"):
        chip.sample(one_qubit(chip)).resolve()
    leap.faults.quota_exceeded(as_item=False)
    with pytest.raises(exceptions.SolverError, match="insufficient remaining solver access time"):
        chip.sample(one_qubit(chip)).resolve()


def test_problems_that_fail(leap, chip):
    leap.faults.next("solve", message="Solver is offline")
    with pytest.raises(exceptions.SolverOfflineError):
        chip.sample(one_qubit(chip)).resolve()
    leap.faults.next("solve", message="went wrong")
    with pytest.raises(exceptions.SolverFailureError, match="went wrong"):
        chip.sample(one_qubit(chip)).resolve()


def test_an_unreadable_upload_fails_in_words(leap):
    with LeapHybridSampler() as sampler:
        upload = sampler.client.upload_problem_encoded(b"nonsense").result(timeout=60)
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


# --- cancelling and closing ----------------------------------------------------------------------


def test_cancel_while_waiting_and_while_worked_on():
    with loopback() as running, DWaveSampler() as sampler, LeapHybridSampler() as hybrid:
        running.faults.next("solve", delay=3600)  # which no test may take
        waiting = sampler.solver.sample_ising({sampler.nodelist[0]: 1.0}, {})
        assert waiting.wait_id(timeout=60)
        working = hybrid.solver.sample_bqm(dimod.generators.ran_r(1, 30, seed=0), time_limit=3600)
        assert working.wait_id(timeout=60)
        for future in (waiting, working):
            future.cancel()
            with pytest.raises(exceptions.CanceledFutureError):
                future.result()


def test_a_cancel_that_fails(leap, chip):
    leap.faults.next("solve", delay=3.0)
    leap.faults.next("cancel", status=500, message="no cancelling today")
    future = chip.solver.sample_ising({chip.nodelist[0]: 1.0}, {})
    future.wait_id(timeout=60)
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


def test_nothing_is_left_behind():
    before_threads = set(threading.enumerate())
    sockets = open_sockets()
    running = LoopbackLeap([Chip("zephyr", 2)])
    running.start()
    with running.environment():
        sampler, hybrid = DWaveSampler(), LeapHybridSampler()
        sampler.sample(one_qubit(sampler)).resolve()
        running.faults.next("solve", delay=3600)  # which no test may take
        waiting = sampler.solver.sample_ising({sampler.nodelist[0]: 1.0}, {})
        waiting.wait_id(timeout=60)
        hybrid.solver.sample_bqm(dimod.generators.ran_r(1, 30, seed=0), time_limit=3600).wait_id(timeout=60)
        # A connection of ours that is kept alive and says nothing.
        idle = http.client.HTTPConnection("127.0.0.1", int(running.endpoint.split(":")[2].split("/")[0]), timeout=60)
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
    deadline = time.perf_counter() + 60
    while set(threading.enumerate()) - before_threads and time.perf_counter() < deadline:
        time.sleep(0.02)
    assert set(threading.enumerate()) <= before_threads
    assert set(open_sockets()) <= set(sockets)
    assert running.requests


def test_a_server_can_be_started_again():
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

"""The make-believe chips of the loopback server, sampled with the unmodified client of Ocean."""

from __future__ import annotations

import dimod
import numpy as np
import pytest
from dwave.cloud import exceptions
from dwave.system import (
    DWaveCliqueSampler,
    DWaveSampler,
    EmbeddingComposite,
)

from qubo_compress.testing.loopback_leap import Chip


def test_chip_embedded_samples(chip):
    model = dimod.generators.ran_r(3, 7, seed=1)
    found = EmbeddingComposite(chip).sample(model, num_reads=40)
    assert found.first.energy == dimod.ExactSolver().sample(model).first.energy
    assert found.record.num_occurrences.sum() == 40
    assert np.allclose(found.record.energy, model.energies((found.record.sample, found.variables)))
    assert found.info["problem_label"] == "loopback, classical"


def test_clique_sampler_on_a_chip_with_parts_missing(loopback):
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


def test_problems_that_a_chip_refuses(chip, one_qubit):
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


def test_small_biases_drown_on_a_warm_chip(loopback):
    def share_right(**options):
        with loopback(seed=1, **options), DWaveSampler() as sampler:
            large, small = sampler.nodelist[:1], sampler.nodelist[1:41]
            model = dimod.BQM({**dict.fromkeys(large, 400.0), **dict.fromkeys(small, 1.0)}, {}, 0.0, "SPIN")
            found = sampler.sample(model, num_reads=20, answer_mode="raw")
            columns = [found.variables.index(v) for v in small]
            return float((found.record.sample[:, columns] == -1).mean())

    assert share_right() > 0.95
    assert share_right(chip_temperature=0.1) < 0.65


def test_same_seed_same_answers(loopback):
    def draw():
        with loopback(seed=5), DWaveSampler() as sampler:
            model = dimod.BQM({}, dict.fromkeys(sampler.edgelist[:300], 1.0), 0.0, "SPIN")
            return [sampler.sample(model, num_reads=5, answer_mode="raw").record.sample.tolist() for _ in range(2)]

    first, second = draw()
    assert [first, second] == draw() and first != second

"""Answers to binary quadratic models: simulated annealing with more and more sweeps until the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable

import dimod
import numpy as np
from dimod.serialization.fileview import load
from dwave.samplers import SimulatedAnnealingSampler

from qubo_compress.testing.loopback_leap.tasks import NOTE, Answer, Clock, Task

_FIRST_SWEEPS = 100
_READS = 4


def solve(task: Task) -> Answer:
    """The best sample found; one sample, as from the service."""
    clock = Clock(task)
    model = load(task.file())
    sample = anneal(model, clock, lambda: task.seed)
    if not task.settings.eager:
        task.stopped.wait(clock.left())
    found = dimod.SampleSet.from_samples_bqm(sample, model)
    found.info.update(clock.info(), loopback=NOTE)
    return Answer({"format": "bq", "data": found.to_serializable()})


def anneal(
    model: dimod.BinaryQuadraticModel, clock: Clock, seed: Callable[[], int]
) -> dict[dimod.typing.Variable, int]:
    """The best sample within the time; every round takes twice the sweeps while a quarter of the time is enough."""
    if not model.num_variables:
        return {}
    best, least, sweeps = None, np.inf, _FIRST_SWEEPS
    while best is None or not clock.over():
        start = time.perf_counter()
        # The first read is never interrupted: there must be an answer.
        found = SimulatedAnnealingSampler().sample(
            model, num_reads=_READS, num_sweeps=sweeps, seed=seed(), interrupt_function=clock.over
        )
        first = found.first
        if first.energy < least:
            best, least = first.sample, first.energy
        if time.perf_counter() - start < clock.left() / 4:
            sweeps *= 2
    return dict(best)

"""Answers to discrete quadratic models by our categorical annealer, without a budget."""

from __future__ import annotations

import dimod
import numpy as np

from qubo_compress.testing.loopback_leap import choices
from qubo_compress.testing.loopback_leap.tasks import NOTE, Answer, Clock, Task


def solve(task: Task) -> Answer:
    """Distinct samples of the model, least energy first."""
    choices.prepare()
    clock = Clock(task)
    dqm = dimod.DiscreteQuadraticModel.from_file(task.file())
    labels = list(dqm.variables)
    rows = np.zeros((1, 0), dtype=np.int64)
    if labels:
        problem = choices.from_discrete(dqm)
        rows = np.array(choices.anneal(problem, clock, task) or [np.zeros(len(labels), dtype=np.int64)])
    if not task.settings.eager:
        task.stopped.wait(clock.left())
    found = dimod.SampleSet.from_samples((rows, labels), energy=dqm.energies((rows, labels)), vartype="DISCRETE")
    found.info.update(clock.info(), loopback=NOTE)
    return Answer({"format": "bq", "data": found.to_serializable()})

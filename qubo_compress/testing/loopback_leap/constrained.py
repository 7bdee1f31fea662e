"""Answers to constrained quadratic models."""

from __future__ import annotations

import copy
from typing import Any

import dimod
import numpy as np
import numpy.typing as npt
from dwave.samplers import SimulatedAnnealingSampler

from qubo_compress.testing.loopback_leap import choices
from qubo_compress.testing.loopback_leap.tasks import NOTE, Answer, Clock, ProblemRejected, Task

_FIRST_PENALTY = 1.0
"""Penalty of the first round, in units of the largest bias of the objective."""
_READS = 4
_SWEEPS = 200
_MOST_SAMPLES = 20


def solve(task: Task) -> Answer:
    """Samples by our annealer if the model is a choice problem, otherwise by penalties and simulated annealing."""
    choices.prepare()
    clock = Clock(task)
    cqm = dimod.ConstrainedQuadraticModel.from_file(task.file())
    labels = list(cqm.variables)
    recovered = choices.from_constrained(cqm)
    rows: npt.NDArray[Any]
    if recovered is None:
        rows = _penalised(cqm, clock, task)
    else:
        number = {variable: i for i, variable in enumerate(recovered.variables)}
        rows = recovered.rows(choices.anneal(recovered.problem, clock, task))[:, [number[v] for v in labels]]
    if task.settings.infeasible_first or not len(rows):
        rows = np.concatenate([_ignoring_constraints(cqm, task), rows])
    if not task.settings.eager:
        task.stopped.wait(clock.left())
    found = dimod.SampleSet.from_samples_cqm((rows, labels), cqm)
    found.info.update(clock.info(), loopback=NOTE)
    return Answer({"format": "bq", "data": found.to_serializable()})


def _ignoring_constraints(cqm: dimod.ConstrainedQuadraticModel, task: Task) -> npt.NDArray[np.float64]:
    """(1, variables) the unconstrained minimum, usually below any feasible energy."""
    free = copy.deepcopy(cqm)
    for label in list(free.constraints):
        free.remove_constraint(label)
    return _by_penalties(free, list(cqm.variables), 1.0, task)[:1]


def _penalised(cqm: dimod.ConstrainedQuadraticModel, clock: Clock, task: Task) -> npt.NDArray[np.float64]:
    """(N, variables) distinct samples under penalties that double until samples are feasible."""
    biases = [abs(bias) for _, bias in cqm.objective.iter_linear()]
    biases += [abs(bias) for _, _, bias in cqm.objective.iter_quadratic()]
    penalty = _FIRST_PENALTY * (max(biases, default=0.0) or 1.0)
    labels, rows = list(cqm.variables), np.zeros((0, len(cqm.variables)))
    while not len(rows) or not clock.over():
        drawn = _by_penalties(cqm, labels, penalty, task)
        feasible = dimod.SampleSet.from_samples_cqm((drawn, labels), cqm).record.is_feasible
        penalty *= 0.9 if feasible.any() else 2.0
        rows = np.unique(np.concatenate([rows, drawn]), axis=0)
        found = dimod.SampleSet.from_samples_cqm((rows, labels), cqm).record
        rows = rows[np.lexsort((found.energy, ~found.is_feasible))][:_MOST_SAMPLES]
    return rows


def _by_penalties(
    cqm: dimod.ConstrainedQuadraticModel, labels: list[dimod.typing.Variable], penalty: float, task: Task
) -> npt.NDArray[np.float64]:
    try:
        model, invert = dimod.cqm_to_bqm(cqm, lagrange_multiplier=penalty)
    except ValueError as cause:
        raise ProblemRejected(
            f"the loopback solver turns general constrained models into binary ones, and that failed: {cause}"
        ) from cause
    drawn = SimulatedAnnealingSampler().sample(
        model, num_reads=_READS, num_sweeps=_SWEEPS, seed=task.seed, interrupt_function=task.stopped.is_set
    )
    originals = [invert(sample) for sample in drawn.samples(sorted_by="energy")]
    return np.array([[sample[v] for v in labels] for sample in originals], dtype=np.float64)

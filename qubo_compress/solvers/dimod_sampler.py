"""Any solver of this library behind the interface of dimod's samplers."""

from __future__ import annotations

import time
from typing import Any

import dimod
import numpy as np
from dimod.core.sampler import Sampler

from qubo_compress._internal.checks import whole
from qubo_compress.encodings.from_cqm import from_cqm
from qubo_compress.encodings.from_dqm import from_dqm
from qubo_compress.errors import InvalidProblem, InvalidSolverOption
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.solvers.solution import Solution
from qubo_compress.solvers.solver import Solver, make_solver
from qubo_compress.solvers.verification import solve

_SAMPLES: Any = dimod.SampleSet
"""dimod's class of results, which has no types."""


class _Watch:
    """Begins to count seconds when it is made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def info(self, solution: Solution, label: str | None) -> dict[str, Any]:
        """What a sample set says of the search as a whole."""
        return {
            "status": solution.status,
            "bound": solution.bound,
            "gap": solution.gap,
            "seconds": time.perf_counter() - self._begin,
            "timing": dict(solution.timing),
            "solver": solution.solver,
            "notes": list(solution.notes),
            "work": solution.work,
            "interrupted": solution.interrupted,
            "problem_label": label,
        }


def _assignments(solution: Solution) -> IntArray:
    """(N, G) the distinct assignments found, best first."""
    return np.array([one.assignment for one in solution.pool], dtype=np.int64)


class DimodSampler(Sampler):  # type: ignore[misc]
    """Solves constrained, discrete and binary quadratic models of dimod, by any registered solver.

    Every sample is feasible: constraints hold exactly, and samples that miss one are never returned. ``info`` holds

    - ``status``: ``"optimal"`` if the first sample is proven to be, else ``"feasible"``;
    - ``bound``: a lower bound on the energy of every feasible sample, or None; ``gap``: see
      :class:`~qubo_compress.solvers.solution.Solution`;
    - ``seconds``: wall clock of reading, solving and translating; ``timing``: of the solver's stages;
    - ``solver``, ``notes``, ``work``, ``interrupted``: as in the solution; ``problem_label``: the label given.

    The samples are the distinct good ones that were found, best first.

    Args:
        solver: a registered name, see ``qubo_compress.solvers.names()``, or a solver.
        options: of the named solver.

    Raises:
        UnknownName: when no solver has that name.
        InvalidSolverOption: for an option that the solver does not have.

    Example:
        >>> cqm = dimod.ConstrainedQuadraticModel()
        >>> i, j = (dimod.Integer(label, upper_bound=4) for label in "ij")
        >>> cqm.set_objective(-i * j)
        >>> cqm.add_constraint(2 * i + 2 * j <= 8, label="perimeter")
        'perimeter'
        >>> found = DimodSampler("exact").sample_cqm(cqm)
        >>> float(found.first.energy), bool(found.first.is_feasible), found.info["status"]
        (-4.0, True, 'optimal')
    """

    def __init__(self, solver: str | Solver = "auto", **options: Any) -> None:
        self._solver = make_solver(solver, **options)

    def __repr__(self) -> str:
        """Which solver it asks."""
        return f"DimodSampler({self._solver!r})"

    @property
    def parameters(self) -> dict[str, Any]:
        """The keywords of ``sample``; all except ``num_reads`` are also those of ``sample_cqm`` and ``sample_dqm``."""
        return {name: [] for name in ("num_reads", "time_limit", "work_limit", "seed", "label")}

    @property
    def properties(self) -> dict[str, Any]:
        """The solver's name, and which models it takes."""
        return {"solver": self._solver.name, "supported_problem_types": ["bqm", "cqm", "dqm"]}

    def sample_cqm(
        self,
        cqm: dimod.ConstrainedQuadraticModel,
        *,
        time_limit: float = 10.0,
        work_limit: int | None = None,
        seed: int = 0,
        label: str | None = None,
    ) -> dimod.SampleSet:
        """Samples of a constrained model, as of ``LeapHybridCQMSampler``.

        Args:
            cqm: the model; see :func:`qubo_compress.encodings.from_cqm` for what it may have.
            time_limit: seconds of wall clock for the solver.
            work_limit: most sweeps, iterations or nodes; the same seed and work give the same samples.
            seed: of the solver's random generator.
            label: returned as ``info["problem_label"]``.

        Raises:
            InfeasibleBudget: when it is proven that no sample is feasible.
            NoFeasibleFound: when none was found.
            InvalidProblem, ProblemTooLarge: for a model that is no choice problem, or too large a one.
        """
        begin = _Watch()
        problem, samples = from_cqm(cqm)
        solution = solve(problem, self._solver, time_limit=time_limit, work_limit=work_limit, seed=seed)
        rows = samples.rows(_assignments(solution))
        answer: dimod.SampleSet = _SAMPLES.from_samples_cqm(
            (rows, list(samples.labels)), cqm, info=begin.info(solution, label)
        )
        return answer

    def sample_dqm(
        self,
        dqm: dimod.DiscreteQuadraticModel,
        *,
        time_limit: float = 10.0,
        work_limit: int | None = None,
        seed: int = 0,
        label: str | None = None,
    ) -> dimod.SampleSet:
        """Samples of a discrete model, as of ``LeapHybridDQMSampler``; see :meth:`sample_cqm` for the arguments.

        Raises:
            InvalidProblem: for a model that is no choice problem.
        """
        begin = _Watch()
        problem, samples = from_dqm(dqm)
        model: Any = dqm
        solution = solve(problem, self._solver, time_limit=time_limit, work_limit=work_limit, seed=seed)
        found = samples.rows(_assignments(solution)), list(samples.labels)
        answer: dimod.SampleSet = _SAMPLES.from_samples(
            found, vartype="DISCRETE", energy=model.energies(found), info=begin.info(solution, label)
        )
        return answer

    def sample(
        self,
        bqm: dimod.BinaryQuadraticModel,
        *,
        num_reads: int | None = None,
        time_limit: float = 10.0,
        work_limit: int | None = None,
        seed: int = 0,
        label: str | None = None,
    ) -> dimod.SampleSet:
        """Samples of a binary model; see :meth:`sample_cqm` for the other arguments.

        Args:
            bqm: the model.
            num_reads: most samples to return; they are distinct, so there may be fewer.
            time_limit: in seconds.
            work_limit: most sweeps, iterations or nodes.
            seed: of the solver's random generator.
            label: returned as ``info["problem_label"]``.
        """
        if not isinstance(bqm, dimod.BinaryQuadraticModel):
            raise InvalidProblem(f"sample takes a dimod.BinaryQuadraticModel; got {type(bqm).__name__}")
        most = None if num_reads is None else whole("num_reads", num_reads, 1, InvalidSolverOption)
        rows, labels, info = np.empty((1, 0)), [], {}
        if bqm.num_variables:
            cqm = dimod.ConstrainedQuadraticModel.from_bqm(bqm)
            found = self.sample_cqm(cqm, time_limit=time_limit, work_limit=work_limit, seed=seed, label=label)
            rows, labels = found.record.sample[:most], list(found.variables)
            info = {name: value for name, value in found.info.items() if name != "constraint_labels"}
        answer: dimod.SampleSet = _SAMPLES.from_samples_bqm((rows, labels), bqm, info=info)
        return answer

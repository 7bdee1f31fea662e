"""Simulated annealing of the binary model with D-Wave's ``neal``: classical, on this machine.

It is what an annealer's user would run without an annealer, and the fair baseline for one. The library's
own ``annealer``, which knows groups and budgets, is the better solver.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.solvers.samplers.search import Draw, QuboSearch, Request, Sampler
from qubo_compress.solvers.solver import RawSolution, SearchLimits, solvers

# Temperatures at the start and the end, as multiples of the typical spread of a group's energies
# (domain-wall) or of the penalty (one-hot, where changing a choice means climbing over it).
_TEMPERATURES = {"domain-wall": (0.05, 0.0005), "one-hot": (1.0, 0.02)}
_FIRST_SWEEPS = 64
_ROUNDS_PER_DOUBLING = 6
_MOST_SWEEPS = 4096  # a read cannot be interrupted


@solvers.register
@dataclass(frozen=True)
class SimulatedAnnealing:
    """Sample the encoded problem by classical simulated annealing, searching for the budget's price.

    Args:
        encoding: ``"domain-wall"`` or ``"one-hot"``.
        reads: samples per round, all at one price.
        sweeps: per sample; when None, 64 at first and twice as many every six rounds.
        beta_range: inverse temperatures at the start and the end; measured from the problem when None, for
            the sampler's own default ends at the inverse of the smallest bias and freezes real problems.

    Raises:
        InvalidSolverOption: for a number out of range.
        UnknownName: for another encoding.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=5, choices=4, seed=0)
        >>> solution = solve(problem, SimulatedAnnealing(reads=4, sweeps=50), time_limit=30.0, work_limit=400)
        >>> problem.is_feasible(solution.assignment), solution.work
        (True, 400)
    """

    name: ClassVar[str] = "simulated-annealing"
    encoding: str = "domain-wall"
    reads: int = 8
    sweeps: int | None = None
    beta_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        encodings.get(self.encoding)
        if self.reads < 1 or (self.sweeps is not None and self.sweeps < 1):
            raise InvalidSolverOption(f"reads and sweeps must be at least 1; got {self.reads} and {self.sweeps}")
        if self.beta_range is not None and not 0 < self.beta_range[0] <= self.beta_range[1] < np.inf:
            raise InvalidSolverOption(f"beta_range must be two rising positive numbers; got {self.beta_range}")

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Sample until the time or the work, counted in sweeps, is used up."""
        return QuboSearch(problem, self.encoding, self._sampler(), limits, rng, trial=self._sampler()).run()

    def _sampler(self) -> Sampler:
        from dwave.samplers import SimulatedAnnealingSampler

        sampler = SimulatedAnnealingSampler()  # type: ignore[no-untyped-call]
        seconds_per_sweep = 0.0

        def draw(request: Request) -> Draw | None:
            nonlocal seconds_per_sweep
            sweeps = self.sweeps or min(_MOST_SWEEPS, _FIRST_SWEEPS * 2 ** (request.round // _ROUNDS_PER_DOUBLING))
            if request.most_work is not None:
                sweeps = min(sweeps, request.most_work)
            reads = self.reads if request.most_work is None else min(self.reads, request.most_work // sweeps)
            if seconds_per_sweep * sweeps > request.seconds_left:
                return None
            begin = time.perf_counter()
            end = begin + request.seconds_left

            def stop() -> bool:
                return request.stop() or time.perf_counter() + 0.9 * seconds_per_sweep * sweeps > end

            result = sampler.sample(
                request.bqm,
                beta_range=self._betas(request),
                num_reads=reads,
                num_sweeps=sweeps,
                seed=request.seed,
                interrupt_function=stop,
            )
            done = len(result.record)
            seconds_per_sweep = (time.perf_counter() - begin) / (max(1, done) * sweeps)
            order = np.argsort(np.array(list(result.variables), dtype=np.int64))
            return Draw((result.record.sample[:, order] > 0).astype(np.int8), done * sweeps)

        return draw

    def _betas(self, request: Request) -> tuple[float, float]:
        if self.beta_range is not None:
            return self.beta_range
        hot, cold = _TEMPERATURES.get(self.encoding, _TEMPERATURES["one-hot"])
        scale = request.spread if self.encoding == "domain-wall" else max(request.penalty, 1e-12)
        return 1.0 / (hot * scale), 1.0 / (cold * scale)

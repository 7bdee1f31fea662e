"""Simulated annealing of the binary model with D-Wave's ``dwave.samplers``: classical, on this machine.

It is what a quantum annealer's user would run without one, and its fair baseline. The library's own ``annealer``, which
knows groups and budgets, is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.solvers.samplers.loop import SampleRequest
from qubo_compress.solvers.samplers.sampler import TEMPERATURES, BinarySampler, Bits, Effort, bits_of, check_sampler
from qubo_compress.solvers.solver import solvers

_FIRST_SWEEPS = 64
_MOST_SWEEPS = 4096  # a read cannot be interrupted


@solvers.register
@dataclass(frozen=True)
class SimulatedAnnealing(BinarySampler):
    """Sample the encoded problem by classical simulated annealing, searching for the budget's price.

    Args:
        encoding: ``"domain-wall"`` or ``"one-hot"``.
        reads: samples per round, all at one price.
        sweeps: per sample; None: 64 at first, doubled every six rounds.
        beta_range: inverse temperatures at the start and the end; None: measured from the problem, because
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
        check_sampler(self.encoding, {"reads": self.reads, "sweeps": self.sweeps}, {})
        if self.beta_range is not None and not 0 < self.beta_range[0] <= self.beta_range[1] < np.inf:
            raise InvalidSolverOption(f"beta_range must be two rising positive numbers; got {self.beta_range}")

    @property
    def effort(self) -> Effort:
        """Reads per call and sweeps per read, which are the work; finished reads are kept when time is up."""
        return Effort(
            self.reads, self.sweeps or _FIRST_SWEEPS, self.sweeps or _MOST_SWEEPS, counted=True, divisible=True
        )

    def draw(self, request: SampleRequest, reads: int, effort: int) -> Bits:
        hot, cold = TEMPERATURES.get(self.encoding, TEMPERATURES["one-hot"])
        samples = (
            require("dwave.samplers")
            .SimulatedAnnealingSampler()
            .sample(
                request.bqm,
                beta_range=self.beta_range or (1.0 / (hot * request.scale), 1.0 / (cold * request.scale)),
                num_reads=reads,
                num_sweeps=effort,
                seed=request.seed,
                interrupt_function=request.stop,
            )
        )
        return bits_of(samples)

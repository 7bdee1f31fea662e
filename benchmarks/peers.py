"""Samplers of others in the library's own loop, for comparison only: they are not part of the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from dwave.samplers import TabuSampler

from qubo_compress.problem import ChoiceProblem
from qubo_compress.solvers.qubo_search import Draw, QuboSearch, Request
from qubo_compress.solvers.solver import RawSolution, SearchLimits


@dataclass(frozen=True)
class Tabu:
    """D-Wave's tabu search of the encoded problem, in the same loop as ``simulated-annealing``.

    Args:
        encoding: ``"domain-wall"`` or ``"one-hot"``.
        reads: samples per round.
        milliseconds: per sample at first; twice as many every six rounds.
    """

    name: ClassVar[str] = "tabu"
    encoding: str = "domain-wall"
    reads: int = 4
    milliseconds: int = 10

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Sample until the time is used up; the work counts samples."""
        sampler = TabuSampler()

        def draw(request: Request) -> Draw | None:
            left = int(1000 * request.seconds_left)
            timeout = min(self.milliseconds * 2 ** (request.round // 6), left // self.reads)
            if timeout < 1:
                return None
            result = sampler.sample(request.bqm, num_reads=self.reads, timeout=timeout, seed=request.seed)
            order = np.argsort(np.array(list(result.variables), dtype=np.int64))
            return Draw((result.record.sample[:, order] > 0).astype(np.int8), len(result.record))

        return QuboSearch(problem, self.encoding, draw, limits, rng).run()

"""The common part of the samplers of binary models: the encoding, the effort of each call, and the loop around it."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import dimod
import numpy as np
import numpy.typing as npt

from qubo_compress._internal.optional import require
from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.solvers.samplers.loop import SampleRequest, Samples, SamplingLoop
from qubo_compress.solvers.search import Search
from qubo_compress.solvers.solver import Solver

Bits = npt.NDArray[np.int8]

_ROUNDS_PER_DOUBLING = 6
_NEARLY_A_SAMPLE = 0.9
"""One more sample is drawn if this share of a sample's seconds is left: times vary."""

TEMPERATURES = {"domain-wall": (0.05, 0.0005), "one-hot": (1.0, 0.02)}
"""At the start and the end of annealing, as multiples of :attr:`SampleRequest.scale`."""


@dataclass(frozen=True)
class Effort:
    """The effort of one call of a sampler.

    Attributes:
        reads: samples per call.
        first: sweeps, steps or updates per sample in the first rounds; doubled every six rounds.
        most: upper limit of these; a sample cannot be interrupted.
        counted: whether the work counts these instead of samples.
        divisible: whether the sampler can end a call between two samples and keep those drawn.
    """

    reads: int
    first: int = 1
    most: int = 1
    counted: bool = False
    divisible: bool = False


class BinarySampler(Solver):
    """A solver that draws samples of the encoded problem from another package's sampler, in rounds.

    A class defines its options, its effort and the one call that draws samples; everything else is here and in
    :class:`~qubo_compress.solvers.samplers.loop.SamplingLoop`.

    Attributes:
        name: the registered name, also that of the extra that installs what it requires.
    """

    requires: ClassVar[tuple[str, ...]] = ("dwave.samplers",)
    accepts_pair_costs: ClassVar[bool] = True

    @property
    @abstractmethod
    def effort(self) -> Effort:
        """Samples per call, and sweeps, steps or updates per sample."""

    @abstractmethod
    def draw(self, request: SampleRequest, reads: int, effort: int) -> Bits:
        """(reads, n) samples of the model, each with this effort; fewer if ``request.stop`` ended the call."""

    def run(self, search: Search) -> None:
        """Sample until the time or the work is used up.

        Raises:
            MissingDependency: when a package is not installed.
        """
        for package in self.requires:
            require(package, self.name)
        SamplingLoop(search, self.encoding, TimedCalls(self), trial=TimedCalls(self)).run()


@dataclass
class TimedCalls:
    """Calls a sampler as far as time and work allow, and measures the cost of a sample.

    A call that cannot be divided is completed, or not started, or discarded: it is never cut short, and a call with
    fewer reads for lack of time is the last. So the same work limit repeats the same reads. The first round of such a
    sampler is one read, because the machine's speed is unknown. Ctrl-C waits for the call to end.
    """

    sampler: BinarySampler
    seconds_per_effort: float = 0.0
    last: bool = False

    def __call__(self, request: SampleRequest) -> Samples | None:
        """One call; None if time and work do not allow a sample."""
        asked = self.sampler.effort
        effort = min(asked.most, asked.first * 2 ** (request.round // _ROUNDS_PER_DOUBLING))
        reads = asked.reads if asked.divisible or request.round else 1
        if request.most_work is not None:
            effort = min(effort, request.most_work) if asked.counted else effort
            reads = min(reads, request.most_work // (effort if asked.counted else 1))
        reads = self._affordable(request, reads, effort)
        if reads < 1 or request.stop():
            return None
        begin = time.perf_counter()
        bits = self.sampler.draw(self._divided(request, effort, begin) if asked.divisible else request, reads, effort)
        self.seconds_per_effort = (time.perf_counter() - begin) / (max(1, len(bits)) * effort)
        if not asked.divisible and request.stop():
            return None
        return Samples(bits, len(bits) * (effort if asked.counted else 1))

    def _affordable(self, request: SampleRequest, reads: int, effort: int) -> int:
        """The number of reads that fit in the time left."""
        if not self.seconds_per_effort:
            return reads
        affordable = int(request.seconds_left / (self.seconds_per_effort * effort))
        if self.sampler.effort.divisible:
            return reads if affordable else 0
        if self.last:
            return 0
        self.last = affordable < reads
        return min(reads, affordable)

    def _divided(self, request: SampleRequest, effort: int, begin: float) -> SampleRequest:
        """The request, which also stops if there is no time for one more sample."""
        end, seconds = begin + request.seconds_left, _NEARLY_A_SAMPLE * self.seconds_per_effort * effort
        return replace(request, stop=lambda: request.stop() or time.perf_counter() + seconds > end)


def check_sampler(encoding: str, at_least_one: dict[str, int | None], positive: dict[str, float | None]) -> None:
    """Check the options of a sampler; None means its default.

    Raises:
        UnknownName: for an encoding that is not registered.
        InvalidSolverOption: for a number out of range.
    """
    encodings.get(encoding)
    for name, count in at_least_one.items():
        if count is not None and count < 1:
            raise InvalidSolverOption(f"{name} must be at least 1; got {count}")
    for name, value in positive.items():
        if value is not None and not 0 < value < np.inf:
            raise InvalidSolverOption(f"{name} must be a positive number; got {value}")


def bits_of(samples: dimod.SampleSet) -> Bits:
    """(N, n) bits of a sample set in the order of the variables 0, 1, ..."""
    order = np.argsort(np.array(list(samples.variables), dtype=np.int64))
    return np.asarray(samples.record.sample[:, order] > 0, dtype=np.int8)


def dense_spins(bqm: dimod.BinaryQuadraticModel) -> tuple[FloatArray, FloatArray]:
    """(n, n) couplings, each once and above the diagonal, and (n,) fields of a model over spins."""
    fields, (rows, columns, values), *_ = bqm.to_numpy_vectors(variable_order=range(bqm.num_variables))
    couplings = np.zeros((fields.size, fields.size))
    couplings[np.minimum(rows, columns), np.maximum(rows, columns)] = values
    return couplings, np.asarray(fields, dtype=np.float64)

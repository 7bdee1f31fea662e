"""How much to ask of a sampler at a time: growing effort, within the time and the work that are left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import dimod
import numpy as np
import numpy.typing as npt

from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.solvers.samplers.search import Draw, Request

_ROUNDS_PER_DOUBLING = 6


@dataclass
class Pace:
    """Learns what a read costs, so that a sampler that cannot be interrupted ends in time.

    A call is finished and taken, or not begun, or dropped: nothing in it is cut short, and a call with fewer reads
    for want of time is the last. So the same reads are drawn again from the same work limit. The first round
    is one read, for nothing is known of the machine before. Ctrl-C waits for the call to end.

    Args:
        reads: per call.
        first: effort per read (sweeps, steps or restarts) in the first rounds; twice as much every six rounds.
        most: largest effort per read.
        counted: whether the work counts effort, and not reads.
    """

    reads: int
    first: int
    most: int
    counted: bool
    seconds_per_effort: float = 0.0
    cut: bool = False

    def draw(self, request: Request, call: Callable[[int, int], npt.NDArray[np.int8]]) -> Draw | None:
        """Call with (reads, effort) as far as time and work allow; None when that is not one read."""
        effort = min(self.most, self.first * 2 ** (request.round // _ROUNDS_PER_DOUBLING))
        reads = 1 if request.round == 0 else self.reads
        if request.most_work is not None:
            if self.counted:
                effort = min(effort, request.most_work)
            reads = min(reads, request.most_work // (effort if self.counted else 1))
        if self.seconds_per_effort > 0:
            affordable = int(request.seconds_left / (self.seconds_per_effort * effort))
            if self.cut:
                return None
            self.cut = affordable < reads
            reads = min(reads, affordable)
        if reads < 1 or request.stop():
            return None
        begin = time.perf_counter()
        bits = call(reads, effort)
        self.seconds_per_effort = (time.perf_counter() - begin) / (reads * effort)
        if request.stop():
            return None
        return Draw(bits, reads * effort if self.counted else reads)


def bits_of(samples: dimod.SampleSet) -> npt.NDArray[np.int8]:
    """(N, n) bits of a sample set in the order of the variables 0, 1, ..."""
    order = np.argsort(np.array(list(samples.variables), dtype=np.int64))
    return np.asarray(samples.record.sample[:, order] > 0, dtype=np.int8)


def dense_spins(bqm: dimod.BinaryQuadraticModel) -> tuple[FloatArray, FloatArray]:
    """(n, n) couplings, each once and above the diagonal, and (n,) fields of a model over spins."""
    fields, (rows, columns, values), *_ = bqm.to_numpy_vectors(variable_order=range(bqm.num_variables))
    couplings = np.zeros((fields.size, fields.size))
    couplings[np.minimum(rows, columns), np.maximum(rows, columns)] = values
    return couplings, np.asarray(fields, dtype=np.float64)


def random_states(request: Request, reads: int) -> npt.NDArray[np.int8]:
    """(reads, n) random spins from the request's seed; fewer reads are the first of more."""
    rng = np.random.default_rng(request.seed)
    return (2 * rng.integers(0, 2, size=(reads, request.bqm.num_variables)) - 1).astype(np.int8)

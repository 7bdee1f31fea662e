"""OpenJij's samplers of the binary model: simulated annealing and simulated quantum annealing, both classical."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.solvers.samplers.loop import SampleRequest
from qubo_compress.solvers.samplers.sampler import (
    TEMPERATURES,
    BinarySampler,
    Bits,
    Effort,
    bits_of,
    check_sampler,
    dense_spins,
)
from qubo_compress.solvers.solver import solvers

_METHODS = ("annealing", "quantum-annealing-simulation")
_FIRST_SWEEPS = 64
_MOST_SWEEPS = 1024  # a read cannot be interrupted


@solvers.register
@dataclass(frozen=True)
class OpenJij(BinarySampler):
    """Sample the encoded problem by OpenJij, in the same loop as ``simulated-annealing``.

    OpenJij returns the same result for all reads of one seed, so every read has its own seed; and its automatic
    schedule is random and too hot, so temperatures are set here.

    Eight settings per encoding were tried (sweeps, temperatures, reads, field, copies). At 1 s on four dense 20 x 16
    problems and two tables of networks, on a busy machine, the mean gap was 0.31 % of a random answer's with the domain
    wall and 0.08 % with one-hot, which one or two problems decide.

    Args:
        method: ``"annealing"`` (``SASampler``) or ``"quantum-annealing-simulation"`` (``SQASampler``, a classical
            simulation).
        encoding: ``"domain-wall"`` or ``"one-hot"``.
        reads: samples per round, all at one price.
        sweeps: per sample; None: 64 at first, doubled every six rounds.
        hot: temperature at the start, as a multiple of the typical spread of a group's energies (domain wall) or of
            the penalty (one-hot); None: chosen for the encoding.
        cold: temperature at the end, in the same units; the only temperature of simulated quantum annealing.
        trotter: copies of the system in simulated quantum annealing.
        field: its transverse field at the start, as a multiple of the temperature per copy.

    Raises:
        InvalidSolverOption: for a number out of range or an unknown method.
        UnknownName: for another encoding.
        MissingDependency: when solving without OpenJij.
    """

    name: ClassVar[str] = "openjij"
    requires: ClassVar[tuple[str, ...]] = ("openjij",)
    method: str = "annealing"
    encoding: str = "one-hot"
    reads: int = 4
    sweeps: int | None = None
    hot: float | None = None
    cold: float | None = None
    trotter: int = 4
    field: float = 3.0

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise InvalidSolverOption(f"method must be one of {', '.join(_METHODS)}; got {self.method!r}")
        check_sampler(
            self.encoding,
            {"reads": self.reads, "trotter": self.trotter, "sweeps": self.sweeps},
            {"hot": self.hot, "cold": self.cold, "field": self.field},
        )

    @property
    def effort(self) -> Effort:
        """Reads per call and sweeps per read; sweeps are the work."""
        return Effort(self.reads, self.sweeps or _FIRST_SWEEPS, self.sweeps or _MOST_SWEEPS, counted=True)

    def draw(self, request: SampleRequest, reads: int, effort: int) -> Bits:
        """Samples of ``SASampler`` or ``SQASampler``, one call each."""
        package = require("openjij", self.name)
        model = _model(package, request)
        seeds = np.random.default_rng(request.seed).integers(2**31, size=reads).tolist()
        rows = [self._read(package, model, request.scale, effort, seed) for seed in seeds if not request.stop()]
        return np.concatenate(rows) if rows else np.zeros((0, request.bqm.num_variables), dtype=np.int8)

    def _read(self, package: Any, model: Any, scale: float, sweeps: int, seed: int) -> Bits:
        hot, cold = TEMPERATURES.get(self.encoding, TEMPERATURES["one-hot"])
        hot, cold = scale * (self.hot or hot), scale * (self.cold or cold)
        asked = {"num_sweeps": sweeps, "sparse": False, "seed": seed}
        if self.method == "annealing":
            return bits_of(package.SASampler().sample(model, beta_min=1 / hot, beta_max=1 / cold, **asked))
        gamma = self.field * cold
        return bits_of(package.SQASampler().sample(model, beta=1 / cold, gamma=gamma, trotter=self.trotter, **asked))


def _model(package: Any, request: SampleRequest) -> Any:
    """OpenJij's model, built once per round from an array: from dictionaries it would cost more than many sweeps."""
    couplings, fields = dense_spins(request.bqm)
    size = fields.size
    matrix = np.zeros((size + 1, size + 1))
    matrix[:size, :size], matrix[:size, size], matrix[size, size] = couplings, fields, 1.0
    return package.model.model.bqm_from_numpy_matrix(
        matrix, list(range(size)), float(request.bqm.offset), "SPIN", sparse=False
    )

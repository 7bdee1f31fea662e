"""OpenJij's samplers of the binary model, simulated annealing and simulated quantum annealing: both classical."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.optional import require
from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.solvers.samplers.effort import Pace, dense_spins
from qubo_compress.solvers.samplers.search import Draw, QuboSearch, Request, Sampler
from qubo_compress.solvers.solver import RawSolution, SearchLimits, solvers

# Temperatures at the start and the end, as multiples of the typical spread of a group's energies (domain
# wall) or of the penalty (one-hot).
_TEMPERATURES = {"domain-wall": (0.05, 0.0005), "one-hot": (1.0, 0.02)}
_METHODS = ("annealing", "quantum-annealing-simulation")
_MOST_SWEEPS = 1024  # a read cannot be interrupted


@solvers.register
@dataclass(frozen=True)
class OpenJij:
    """Sample the encoded problem by OpenJij, in the same loop as ``simulated-annealing``.

    OpenJij gives all reads of one seed the same result, so every read has a seed of its own; and its automatic
    schedule is drawn at random and too hot, so temperatures are given.

    Eight settings per encoding were tried (sweeps, temperatures, reads, field, copies). At 1 s on four dense 20 x 16
    problems and two tables of networks, on a busy machine, the mean gap was 0.31 % of a random answer's with the domain
    wall and 0.08 % with one-hot, which one or two problems decide.

    Args:
        method: ``"annealing"`` (``SASampler``) or ``"quantum-annealing-simulation"`` (``SQASampler``, a classical
            simulation).
        encoding: ``"domain-wall"`` or ``"one-hot"``.
        reads: samples per round, all at one price.
        sweeps: per sample; when None, 64 at first and twice as many every six rounds.
        hot: temperature at the start, as a multiple of the typical spread of a group's energies (domain wall) or of
            the penalty (one-hot); chosen for the encoding when None.
        cold: temperature at the end, likewise; the only one of the simulated quantum annealing.
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
        encodings.get(self.encoding)
        if self.method not in _METHODS:
            raise InvalidSolverOption(f"method must be one of {', '.join(_METHODS)}; got {self.method!r}")
        if self.reads < 1 or self.trotter < 1 or (self.sweeps is not None and self.sweeps < 1):
            raise InvalidSolverOption(
                f"reads, sweeps and trotter must be at least 1; got {self.reads}, {self.sweeps} and {self.trotter}"
            )
        for name, value in (("hot", self.hot), ("cold", self.cold), ("field", self.field)):
            if value is not None and not 0 < value < np.inf:
                raise InvalidSolverOption(f"{name} must be a positive number; got {value}")

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Sample until the time or the work, counted in sweeps, is used up.

        Raises:
            MissingDependency: when OpenJij is not installed.
        """
        require("openjij", "openjij")
        return QuboSearch(problem, self.encoding, self._sampler(), limits, rng, trial=self._sampler()).run()

    def _sampler(self) -> Sampler:
        package = require("openjij", "openjij")
        pace = Pace(self.reads, self.sweeps or 64, self.sweeps or _MOST_SWEEPS, counted=True)

        def draw(request: Request) -> Draw | None:
            def call(reads: int, sweeps: int) -> npt.NDArray[np.int8]:
                model = _model(package, request)
                seeds = np.random.default_rng(request.seed).integers(2**31, size=reads)
                samples = []
                for seed in seeds.tolist():
                    if request.stop():
                        break  # and the pace drops the call
                    samples.append(self._read(package, model, request, sweeps, seed))
                return np.array(samples)

            return pace.draw(request, call)

        return draw

    def _read(self, package: Any, model: Any, request: Request, sweeps: int, seed: int) -> npt.NDArray[np.int8]:
        hot, cold = self._temperatures(request)
        if self.method == "annealing":
            result = package.SASampler().sample(
                model, beta_min=1 / hot, beta_max=1 / cold, num_sweeps=sweeps, sparse=False, seed=seed
            )
        else:
            result = package.SQASampler().sample(
                model, beta=1 / cold, gamma=self.field * cold, trotter=self.trotter, num_sweeps=sweeps,
                sparse=False, seed=seed,
            )  # fmt: skip
        order = np.argsort(np.array(list(result.variables), dtype=np.int64))
        return np.asarray(result.record.sample[0][order] > 0, dtype=np.int8)

    def _temperatures(self, request: Request) -> tuple[float, float]:
        hot, cold = _TEMPERATURES.get(self.encoding, _TEMPERATURES["one-hot"])
        scale = request.spread if self.encoding == "domain-wall" else max(request.penalty, 1e-12)
        return scale * (self.hot or hot), scale * (self.cold or cold)


def _model(package: Any, request: Request) -> Any:
    """Once per round and from an array: from dictionaries it would cost more than many sweeps."""
    couplings, fields = dense_spins(request.bqm)
    size = fields.size
    matrix = np.zeros((size + 1, size + 1))
    matrix[:size, :size], matrix[:size, size], matrix[size, size] = couplings, fields, 1.0
    return package.model.model.bqm_from_numpy_matrix(
        matrix, list(range(size)), float(request.bqm.offset), "SPIN", sparse=False
    )

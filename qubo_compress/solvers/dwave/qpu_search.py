"""One search on a chip: fit, sample at one price after another, and report costs and results."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import NoFeasibleFound
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.solvers.dwave.connection import SIMULATED_NOTE
from qubo_compress.solvers.dwave.qpu_device import Device
from qubo_compress.solvers.dwave.qpu_embedding import longest
from qubo_compress.solvers.dwave.qpu_fit import Fit, fit, shrink
from qubo_compress.solvers.dwave.qpu_options import QpuOptions
from qubo_compress.solvers.dwave.qpu_sampling import CONTROL_NOISE, Account, EmbeddedSampler
from qubo_compress.solvers.local_search.descent import LocalSearch, warm_up
from qubo_compress.solvers.local_search.local_model import least_linear, local_model
from qubo_compress.solvers.samplers.loop import SamplingLoop
from qubo_compress.solvers.solver import RawSolution, SearchLimits, Solver, make_solver

_RESERVE = 0.02
"""Share of the time that is reserved for reading the last submission."""
_START_SHARE = 0.1
"""Largest share of the time for the classical start of reverse annealing."""


@dataclass(frozen=True)
class QpuPreview:
    """What a search would cost, determined without submitting anything.

    Attributes:
        bits: of the encoded problem, dominated choices removed.
        largest_clique: the most bits of a dense problem on this chip.
        qubits: of the embedding.
        longest_chain: qubits of its longest chain.
        submissions: at most.
        seconds_per_submission: of chip time, by the solver's own model; None without one.
        simulated: whether the solver is a stand-in.
    """

    bits: int
    largest_clique: int
    qubits: int
    longest_chain: int
    submissions: int
    seconds_per_submission: float | None
    simulated: bool

    @property
    def seconds(self) -> float | None:
        """Chip time of all submissions together, which the account is charged."""
        return None if self.seconds_per_submission is None else self.submissions * self.seconds_per_submission

    def __str__(self) -> str:
        charged = "an unknown time" if self.seconds is None else f"up to {self.seconds:.3g} s of chip time"
        return (
            f"{self.bits} bits (largest clique {self.largest_clique}) on {self.qubits} qubits, longest chain "
            f"{self.longest_chain}; charges {charged} over {self.submissions} submissions"
        )


class QpuSearch:
    """One search on an opened device.

    Args:
        options: of the solver, opened: its sampler is a :class:`~qubo_compress.solvers.dwave.qpu_device.Device`.
        problem: the problem.
        limits: of time and submissions.
        rng: for starts, repairs and orders.
        start: when the search began, of ``time.perf_counter()``.
    """

    def __init__(
        self, options: QpuOptions, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator, start: float
    ) -> None:
        self.options, self.limits, self.rng, self.start = options, limits, rng, start
        self.device: Device = options.sampler
        self.parameters = self.device.supported(options.parameters())
        self.deadline = start + (1.0 - _RESERVE) * limits.seconds
        self.encoding = encodings.get(options.encoding)()
        self.reduction = shrink(problem, self.encoding, self.device)
        self.problem = self.reduction.problem
        self._first: IntArray | None = None

    def fit(self) -> Fit:
        """Place the problem on the chip: see :func:`qubo_compress.solvers.dwave.qpu_fit.fit`."""
        return fit(
            self.reduction,
            self.encoding,
            self.device,
            lambda: local_model(self.problem, least_linear(self.problem)).prices,
            reduce=self.options.roof_duality,
            deadline=self.deadline,
            stop=lambda: time.perf_counter() >= self.deadline,
        )

    def first(self) -> IntArray:
        """A classical assignment, from which prices are estimated and reverse annealing starts."""
        if self._first is None:
            self._first = classical_start(self.problem, self.rng.spawn(1)[0])
        return self._first

    def preview(self) -> QpuPreview:
        """The cost of this search: see :meth:`Qpu.preview`."""
        found, device = self.fit(), self.device
        chains = found.minor if found.minor is not None else device.clique(min(found.bits, device.largest_clique))
        qubits = sum(map(len, chains))
        device.check(qubits, self.parameters)
        return QpuPreview(
            bits=found.bits,
            largest_clique=device.largest_clique,
            qubits=qubits,
            longest_chain=longest(chains),
            submissions=self.options.submissions,
            seconds_per_submission=device.access_seconds(qubits, self.parameters),
            simulated=device.simulated,
        )

    def run(self) -> RawSolution:
        """Fit the problem to the chip, sample it, and report the result."""
        found = self.fit()
        fitting = time.perf_counter() - self.start
        compiling = warm_up()  # after the size check, which must refuse at once, and outside the time limit
        self.start, self.deadline = self.start + compiling, self.deadline + compiling
        if self.options.reverse_from is not None:
            self._first = self._classical_start(self.options.reverse_from)
        reached = self.problem.energy(self.first()) if self.problem.is_feasible(self.first()) else None
        sampler = EmbeddedSampler(
            self.device,
            self.problem,
            self.encoding,
            self.options,
            found.minor,
            self.deadline,
            state=(lambda: self._best(loop)) if self.options.reverse_from is not None else None,
        )
        left = SearchLimits(max(1e-3, self.start + self.limits.seconds - time.perf_counter()), self.limits.work)
        prices = local_model(self.problem, self.first()).prices
        loop = SamplingLoop(self.problem, self.options.encoding, sampler, left, self.rng, first_prices=prices)
        raw = loop.run()
        told = self._told(raw, sampler.account, found, reached, fitting)
        return replace(told, timing={**told.timing, "compile": compiling + raw.timing.get("compile", 0.0)})

    def _classical_start(self, solver: str | Solver) -> IntArray:
        chosen = make_solver(solver)
        raw = chosen.search(self.problem, SearchLimits(_START_SHARE * self.limits.seconds), self.rng.spawn(1)[0])
        feasible = [assignment for assignment in raw.assignments if self.problem.is_feasible(assignment)]
        if not feasible:
            raise NoFeasibleFound(
                f"{chosen.name} found nothing within the budget for reverse annealing to start from in "
                f"{_START_SHARE * self.limits.seconds:.2g} s; give more time or another solver"
            )
        return min(feasible, key=self.problem.energy)

    def _best(self, loop: SamplingLoop) -> IntArray:
        """The least energy so far, including the start."""
        candidates = [*loop.found.values(), (self.problem.energy(self.first()), self.first())]
        return min(candidates, key=lambda pair: pair[0])[1]

    def _told(
        self, raw: RawSolution, account: Account, found: Fit, reached: float | None, fitting: float
    ) -> RawSolution:
        assignments = raw.assignments if reached is None else (*raw.assignments, self.first())
        before = [energy for energy in (reached, raw.trace[0][1] if raw.trace else None) if energy is not None]
        stages = dict(account.stages)
        stages["embed"] += fitting
        return replace(
            raw,
            assignments=tuple(self.reduction.lift(a) for a in sorted(assignments, key=self.problem.energy)),
            timing={**raw.timing, **stages},
            notes=(*_notes(self.device, account), *raw.notes),
            details={
                "simulated": self.device.simulated,
                "graph": self.device.identity,
                "bits": found.bits,
                "largest_clique": self.device.largest_clique,
                "energy_before_sampling": min(before, default=None),
                **_figures(account),
            },
        )


def _figures(account: Account) -> dict[str, Any]:
    """Figures about the submissions, as medians and means."""

    def middle(values: list[float]) -> float | None:
        return float(np.median(values)) if values else None

    return {
        "submissions": account.submissions,
        "samples": account.samples,
        "samples_valid": account.valid,
        "energy_of_best_sample": account.best if np.isfinite(account.best) else None,
        "qubits": account.qubits,
        "longest_chain": account.longest_chain,
        "bits_fixed_by_roof_duality": middle([float(count) for count in account.fixed]),
        "chain_strength": middle(account.strengths),
        "chain_break_fraction": float(np.mean(account.broken)) if account.broken else None,
        "dynamic_range_coupling": middle([measured.coupling for measured in account.ranges]),
        "dynamic_range_field": middle([measured.field for measured in account.ranges]),
        "qpu_access_seconds": account.access,
    }


def _notes(device: Device, account: Account) -> tuple[str, ...]:
    """Notes on what was simulated, what the chip cannot resolve, and what failed."""
    notes = []
    if device.simulated:
        notes.append(f"{SIMULATED_NOTE}; times of programming, annealing and readout are the stand-in's own figures")
    if account.submissions == 0 and account.failure is None:
        notes.append("nothing was submitted: roof duality fixed every bit, or there was no time")
    weak = [measured.coupling for measured in account.ranges]
    if weak and 0.0 < np.median(weak) < CONTROL_NOISE:
        notes.append(
            f"the median pair energy is {np.median(weak):.2%} of the chip's range, below its control noise of about "
            f"{CONTROL_NOISE:.1%}: such differences are lost. Fewer bits, shorter chains or a smaller "
            "chain_strength_factor help"
        )
    if account.failure is not None:
        failure = f"{type(account.failure).__name__}: {account.failure}"
        notes.append(f"stopped early, after {account.submissions} submissions: {failure}")
    return tuple(notes)


def classical_start(problem: ChoiceProblem, rng: np.random.Generator) -> IntArray:
    """The choices of least linear energy, repaired and improved by single changes; may be over budget."""
    local = LocalSearch(problem, rng)
    local.place(least_linear(problem))
    if local.repair():
        local.descend(np.inf, pairs=False)
    return local.assignment.copy()

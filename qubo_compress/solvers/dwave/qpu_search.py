"""One search on a chip: fit, sample at one price after another, and report costs and results."""

from __future__ import annotations

import time
from dataclasses import dataclass
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
from qubo_compress.solvers.pool import Pool
from qubo_compress.solvers.samplers.loop import SamplingLoop
from qubo_compress.solvers.search import Search, SearchLimits
from qubo_compress.solvers.solver import Solver, make_solver

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
    """Submissions to an opened device for one search.

    Args:
        options: of the solver, opened: its sampler is a :class:`~qubo_compress.solvers.dwave.qpu_device.Device`.
        search: what they are for.
    """

    def __init__(self, options: QpuOptions, search: Search) -> None:
        self.options, self.search = options, search
        self.device: Device = options.sampler
        self.parameters = self.device.supported(options.parameters())
        self.encoding = encodings.get(options.encoding)()
        self.reduction = shrink(search.problem, self.encoding, self.device)
        self.problem = self.reduction.problem
        self._first: IntArray | None = None

    @property
    def deadline(self) -> float:
        """Of submissions, of ``time.perf_counter()``."""
        return self.search.deadline - _RESERVE * self.search.limits.seconds

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
            self._first = classical_start(self.problem, self.search.rng.spawn(1)[0])
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

    def run(self) -> None:
        """Fit the problem to the chip, sample it, and report the result."""
        with self.search.stage("embed"):
            found = self.fit()
        with self.search.compiling():  # after the size check, which must refuse at once
            warm_up()
        if self.options.reverse_from is not None:
            self._first = self._classical_start(self.options.reverse_from)
        start = self.first()
        reached = self.problem.energy(start) if self.problem.is_feasible(start) else None
        part = self.search.part(self.problem, rng=self.search.rng)
        sampler = EmbeddedSampler(
            self.device,
            self.problem,
            self.encoding,
            self.options,
            found.minor,
            self.deadline,
            state=(lambda: self._best(part)) if self.options.reverse_from is not None else None,
        )
        prices = local_model(self.problem, start).prices
        SamplingLoop(part, self.options.encoding, sampler, prices).run()
        self._report(part, sampler.account, found, reached)
        self.search.take(part)

    def _classical_start(self, solver: str | Solver) -> IntArray:
        chosen, seconds = make_solver(solver), _START_SHARE * self.search.limits.seconds
        part = self.search.part(self.problem, SearchLimits(seconds))
        part.run(chosen)
        if part.interrupted:
            raise KeyboardInterrupt
        feasible = [assignment for _, assignment in part.pool.ranked() if self.problem.is_feasible(assignment)]
        if not feasible:
            raise NoFeasibleFound(
                f"{chosen.name} found nothing within the budget for reverse annealing to start from in "
                f"{seconds:.2g} s; give more time or another solver"
            )
        return min(feasible, key=self.problem.energy)

    def _best(self, part: Search) -> IntArray:
        """The least energy so far, including the start."""
        if part.best is not None and part.energy <= self.problem.energy(self.first()):
            return part.best
        return self.first()

    def _report(self, part: Search, account: Account, found: Fit, reached: float | None) -> None:
        """Put what was found, and what it took, in terms of the whole problem."""
        before = [energy for energy in (reached, part.trace[0][1] if part.trace else None) if energy is not None]
        ranked = part.pool.ranked() if reached is None else [*part.pool.ranked(), (reached, self.first())]
        part.pool = Pool(len(ranked))
        for energy, assignment in ranked:
            part.pool.add(self.reduction.lift(assignment), energy)
        for stage, seconds in account.stages.items():
            part.spend(stage, seconds)
        part.notes = [*_notes(self.device, account), *part.notes]
        part.details = {
            "simulated": self.device.simulated,
            "graph": self.device.identity,
            "bits": found.bits,
            "largest_clique": self.device.largest_clique,
            "energy_before_sampling": min(before, default=None),
            **_figures(account),
        }


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

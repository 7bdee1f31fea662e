"""The loop around any sampler of binary quadratic models: prices for the budgets, penalties, exact fill.

A sampler knows neither groups nor budgets. Each round draws samples at one price per budget; the price is bisected
towards the limit, the penalty follows the share of valid samples, and every sample is kept if it fits, or else repaired
and filled.

The rule for penalties: every group has its own, because energies of layers differ by orders of magnitude. All start at
a tenth of their group's worst case (at the worst case itself single flips freeze), and are scaled together after every
round, between 0.02 and 1 of the worst case: by 1.25 if less than half of the samples were valid, by 0.9 if more than 95
% were.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import dimod
import numpy as np
import numpy.typing as npt

from qubo_compress.encodings.encoding import encodings
from qubo_compress.encodings.quadratic import refuse_too_many
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.local_search.descent import LocalSearch, warm_up
from qubo_compress.solvers.local_search.local_model import least_linear
from qubo_compress.solvers.samplers.binary_model import ModelForecast, QuboModel, build_model, forecast
from qubo_compress.solvers.samplers.prices import PriceSearch
from qubo_compress.solvers.search import Search

_POLISHED_PER_ROUND = 4
_FIRST_FACTOR = 4.0
_FACTOR_OF_ESTIMATE = 1.5
"""Factors of the first price change, from zero and from an estimate."""


@dataclass(frozen=True)
class SampleRequest:
    """The loop's request to a sampler.

    Attributes:
        bqm: the model to sample, over spins.
        round: number of the round, from 0.
        scale: energy unit of temperatures: the typical difference between the choices of a group if single flips lead
            from one to the next, or the mean penalty of an invalid group if they must climb over it.
        most_work: work left, in the sampler's unit; None for no limit.
        seed: for the sampler, below 2**31.
        stop: whether sampling must end now, for lack of time or because of Ctrl-C.
        seconds_left: wall clock until the loop must end.
    """

    bqm: dimod.BinaryQuadraticModel
    round: int
    scale: float
    most_work: int | None
    seed: int
    stop: Callable[[], bool]
    seconds_left: float


@dataclass(frozen=True)
class Samples:
    """A sampler's result: bits (N, n), in the order of the model's variables 0, 1, ..., and its work."""

    bits: npt.NDArray[np.int8]
    work: int


Sampler = Callable[[SampleRequest], Samples | None]
"""Draws samples, or returns None if it cannot finish one in the time or work left."""


class SamplingLoop:
    """Rounds of samples until the time or the work is used up.

    Args:
        search: what the samples are for.
        encoding: name of the encoding.
        sampler: draws the samples.
        first_prices: (B,) prices to start from, for samplers with only a few rounds.
        trial: another sampler of the same kind, which first draws from a part of a large problem: if building the
            whole model and drawing once would take more than the time limit, neither is started.
    """

    def __init__(
        self,
        search: Search,
        encoding: str,
        sampler: Sampler,
        first_prices: FloatArray | None = None,
        trial: Sampler | None = None,
    ) -> None:
        with search.compiling():
            warm_up()
        self.search, self.problem, self.sampler = search, search.problem, sampler
        self.encoding, self.first_prices, self.trial = encodings.get(encoding)(), first_prices, trial
        self.model: QuboModel | None = None
        self.drawn = self.valid = self.fitting = self.rounds = 0
        self.expected = ModelForecast()

    def run(self) -> None:
        """Search; Ctrl-C ends it between two calls of the sampler."""
        # In a separate thread, because samplers in C swallow the exception that Ctrl-C raises.
        with ThreadPoolExecutor(max_workers=1) as executor:
            rounds = executor.submit(self._rounds)
            while not rounds.done():
                try:
                    wait([rounds], timeout=0.1)
                except KeyboardInterrupt:
                    self.search.interrupted = True
        rounds.result()
        notes = self.search.notes
        notes.append(
            f"{self.drawn} samples drawn: {self.valid} with every group valid, {self.fitting} of those within budget"
        )
        if self.model is None and self.expected.build > 0:
            notes.append(
                f"no model was built: building it and drawing once may take "
                f"{self.expected.build + self.expected.draw:.1f} s; raise time_limit or use 'annealer'"
            )
        self.search.details |= {
            "samples": self.drawn,
            "samples_valid": self.valid,
            "samples_within_budget": self.fitting,
            "rounds": self.rounds,
            "variables": self.encoding.num_bits(self.problem),
            "couplings": self.model.bqm.num_interactions if self.model else 0,
            "penalty_share": self.model.share if self.model else 0.0,
        }

    def _rounds(self) -> None:
        refuse_too_many(self.problem)
        with self.search.stage("build"):
            seconds = self._build()
        # If every group has one choice, the only answer is already kept, and samplers refuse models without variables.
        if self.model is not None and self.model.bqm.num_variables and self._allows(seconds):
            for number in itertools.count():
                if self._stop() or not self._round(self.model, number):
                    break

    def _build(self) -> float:
        """Begin, and build the model if there is time; returns the seconds that the first call may take."""
        self._begin()
        if not self._allows(self._expect()):
            return 0.0
        begin = time.perf_counter()
        self.model = build_model(self.problem, self.encoding, self.prices.prices)
        # Sampling will deviate from its forecast as building did.
        pace = (time.perf_counter() - begin) / self.expected.build if self.expected.build > 0 else 1.0
        return pace * self.expected.draw

    def _begin(self) -> None:
        """Find an answer before any sample, and the scale of energies and prices."""
        problem = self.problem
        self.local = LocalSearch(problem, self.search.rng)
        self.local.place(least_linear(problem))
        self._keep_filled(self.search.deadline)
        self.spread = self._typical_spread()
        factor = _FIRST_FACTOR if self.first_prices is None else _FACTOR_OF_ESTIMATE
        self.prices = PriceSearch(problem, self.spread, self.first_prices, factor)

    def _expect(self) -> float:
        """Forecast of the seconds until the first samples; 0 for models that are small enough to try."""
        trial = self.trial
        if trial is not None and not self._stop():
            self.expected = forecast(
                self.problem, self.encoding, self.prices.prices, lambda part: trial(self._request(part, 0, None, 0))
            )
        return self.expected.build + self.expected.draw

    def _allows(self, seconds: float) -> bool:
        return not self.search.interrupted and self.search.seconds_left >= seconds

    def _typical_spread(self) -> float:
        """Root mean square, over groups and a few random assignments, of the spread of a group's energies."""
        problem = self.problem
        squares = []
        for _ in range(3):
            draw = (self.search.rng.random(problem.num_groups) * problem.group_sizes).astype(np.int64)
            squares += [
                np.ptp(problem.deltas(draw, g)) ** 2 for g in range(0, problem.num_groups, 1 + problem.num_groups // 50)
            ]
        return float(np.sqrt(np.mean(squares))) or 1.0

    def _round(self, model: QuboModel, number: int) -> bool:
        if self.search.most_work(1) < 1:
            return False
        left = None if self.search.limits.work is None else self.search.limits.work - self.search.work
        request = self._request(model, number, left, int(self.search.rng.integers(2**31)))
        with self.search.stage("sample"):
            samples = self.sampler(request)
        if samples is None or not len(samples.bits):
            return False
        self.search.work += samples.work
        self.rounds += 1
        with self.search.stage("decode"):
            self._take(model, samples.bits)
        return True

    def _request(self, model: QuboModel, number: int, most_work: int | None, seed: int) -> SampleRequest:
        return SampleRequest(
            bqm=model.bqm,
            round=number,
            scale=self.spread if self.encoding.single_flips else max(model.share * model.penalty.mean, 1e-12),
            most_work=most_work,
            seed=seed,
            stop=self._stop,
            seconds_left=self.search.seconds_left,
        )

    def _take(self, model: QuboModel, bits: npt.NDArray[np.int8]) -> None:
        """Process all samples whatever the time, so that the same samples give the same answer."""
        problem = self.problem
        assignments, invalid = model.decode(bits)
        energies = problem.energies(assignments)
        totals = np.array([problem.totals(assignment) for assignment in assignments])
        fits = (totals <= problem.limits).all(axis=1)
        self.drawn += len(bits)
        self.valid += int((invalid == 0).sum())
        self.fitting += int(((invalid == 0) & fits).sum())
        for i in np.flatnonzero(fits):
            self.search.keep(assignments[i], float(energies[i]))
        charged = energies + (totals - problem.limits) @ self.prices.prices
        order = np.argsort(charged, kind="stable")
        for i in order[:_POLISHED_PER_ROUND]:
            self.local.place(assignments[i])
            self._keep_filled(np.inf)
        self._adapt(model, totals[order[0]] - problem.limits, float((invalid == 0).mean()))

    def _keep_filled(self, deadline: float) -> None:
        """Repair, spend the rest of the budget by single changes, and keep the result."""
        if self.local.repair():
            self.local.descend(deadline, pairs=False)
            self.search.keep(self.local.assignment)

    def _adapt(self, model: QuboModel, excess: IntArray, valid: float) -> None:
        before = self.prices.prices.copy()
        self.prices.update(excess)
        model.charge(self.prices.prices - before)
        # One-hot groups break below the right penalty and freeze above it: keep just most samples valid.
        factor = 1.25 if valid < 0.5 else 0.9 if valid > 0.95 else 1.0
        model.penalise(min(1.0, max(0.02, model.share * factor)))

    def _stop(self) -> bool:
        return self.search.interrupted or self.search.seconds_left <= 0

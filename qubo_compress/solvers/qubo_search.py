"""The loop around any sampler of binary quadratic models: prices for the budgets, penalties, exact fill.

A sampler knows neither groups nor budgets. Rounds of samples are drawn at one price per budget; the price
is bisected towards the limit, the penalty follows the share of valid samples, and every sample is kept if
it fits and repaired and filled up if it does not.

The rule for penalties: every group has its own, because energies of layers differ by orders of magnitude. All start
at a tenth of their group's worst case (at the worst case itself single flips freeze), and are scaled together
after every round, between 0.02 and 1 of the worst case: by 1.25 when less than half of the samples were valid, by 0.9
when more than 95 % were.
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

from qubo_compress.encodings.encoding import (
    PENALTY_SHARE,
    Couplings,
    Decoder,
    build_bqm,
    encodings,
)
from qubo_compress.encodings.quadratic import coupling_sums, pair_energies
from qubo_compress.problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.local_search import LocalSearch, warm_up
from qubo_compress.solvers.solver import RawSolution, SearchLimits

_PRICE_REACH = 1e9
_POLISHED_PER_ROUND = 4


@dataclass(frozen=True)
class Request:
    """What the loop asks a sampler for.

    Attributes:
        bqm: the model to sample, over spins.
        round: number of the round, from 0.
        spread: typical energy difference between the choices of a group, which sets temperatures.
        penalty: mean penalty of an invalid group.
        most_work: work that is left, in the sampler's unit; None for no limit.
        seed: for the sampler, below 2**31.
        stop: says whether sampling must end now, for want of time or because Ctrl-C was pressed.
        seconds_left: wall clock until the loop must end.
    """

    bqm: dimod.BinaryQuadraticModel
    round: int
    spread: float
    penalty: float
    most_work: int | None
    seed: int
    stop: Callable[[], bool]
    seconds_left: float


@dataclass(frozen=True)
class Draw:
    """What a sampler gives back: bits (N, n), in the order of the model's variables 0, 1, ..., and its work."""

    bits: npt.NDArray[np.int8]
    work: int


Sampler = Callable[[Request], Draw | None]
"""Draws samples, or gives None when it cannot finish one in the time or the work left."""


class PenaltyTerms:
    """Adds a multiple of the groups' penalties to a model, which is quicker than building it again."""

    def __init__(self, worst: FloatArray, terms: tuple[FloatArray, Couplings, float]) -> None:
        linear, couplings, offset = terms
        self.mean = float(worst.mean())
        self.terms = dimod.BinaryQuadraticModel.from_numpy_vectors(linear, tuple(couplings), offset, dimod.BINARY)
        self.terms.change_vartype(dimod.SPIN, inplace=True)

    def add(self, bqm: dimod.BinaryQuadraticModel, share: float) -> None:
        """Add ``share`` (of either sign) of the worst-case penalties."""
        extra = self.terms.copy()  # type: ignore[no-untyped-call]
        extra.scale(share)
        bqm.update(extra)


class PriceSearch:
    """One price per budget, raised or lowered until its limit is crossed, then bisected in the logarithm.

    Args:
        problem: the problem.
        spread: typical energy difference between the choices of a group, which sets the first step from zero.
        first: (B,) prices to start from, where an estimate is at hand; zero when left out.
    """

    def __init__(self, problem: ChoiceProblem, spread: float, first: FloatArray | None = None) -> None:
        ranges = np.ptp(problem.costs, axis=1).astype(np.float64)
        self.unit = spread / np.maximum(1.0, ranges)
        self.prices = np.zeros(problem.num_budgets) if first is None else first.astype(np.float64)
        self.factors = np.full(problem.num_budgets, 4.0 if first is None else 1.5)
        self.last = np.zeros(problem.num_budgets)

    def update(self, excess: IntArray) -> None:
        """Move after a round whose best sample missed the limits by ``excess``; zero is tried first."""
        over = excess > 0
        for b in range(self.prices.size):
            direction = 1.0 if over[b] else -1.0
            if self.prices[b] == 0.0:
                self.prices[b] = self.unit[b] if over[b] else 0.0
                continue
            if direction * self.last[b] < 0:
                self.factors[b] = max(1.02, np.sqrt(self.factors[b]))
            # At either end the price alone decides; further on it would only overflow.
            reach = (self.unit[b] / _PRICE_REACH, self.unit[b] * _PRICE_REACH)
            self.prices[b] = np.clip(self.prices[b] * self.factors[b] ** direction, *reach)
            self.last[b] = direction


class QuboSearch:
    """One search: rounds of samples until the time or the work is used up.

    Args:
        problem: the problem.
        encoding: name of the encoding.
        sampler: draws the samples.
        limits: of time and work.
        rng: for seeds and repairs.
        pool_size: how many distinct assignments to give back.
        first_prices: (B,) prices to start from, for samplers that are asked a few times only.
    """

    def __init__(
        self,
        problem: ChoiceProblem,
        encoding: str,
        sampler: Sampler,
        limits: SearchLimits,
        rng: np.random.Generator,
        pool_size: int = 64,
        first_prices: FloatArray | None = None,
    ) -> None:
        self.compile_seconds = warm_up()
        self.start = time.perf_counter()
        self.problem, self.sampler, self.limits, self.rng, self.pool_size = problem, sampler, limits, rng, pool_size
        self.encoding, self.first_prices = encodings.get(encoding)(), first_prices
        self.found: dict[bytes, tuple[float, IntArray]] = {}
        self.trace: list[tuple[float, float, float | None]] = []
        self.best = np.inf
        self.interrupted = False
        self.drawn = self.valid = self.fitting = self.work = self.rounds = 0
        self.sample_seconds = 0.0

    def run(self) -> RawSolution:
        """Search; on Ctrl-C, give back the best so far."""
        # In a thread of its own, because samplers in C swallow the exception that Ctrl-C raises.
        with ThreadPoolExecutor(max_workers=1) as executor:
            rounds = executor.submit(self._rounds)
            while not rounds.done():
                try:
                    wait([rounds], timeout=0.1)
                except KeyboardInterrupt:
                    self.interrupted = True
        built = rounds.result()
        ranked = sorted(self.found.values(), key=lambda pair: pair[0])[: self.pool_size]
        share = (
            f"{self.drawn} samples drawn: {self.valid} with every group valid, {self.fitting} of those within budget"
        )
        seconds = time.perf_counter() - built
        return RawSolution(
            assignments=tuple(assignment for _, assignment in ranked),
            timing={
                "compile": self.compile_seconds,
                "build": built - self.start,
                "solve": seconds,
                "sample": self.sample_seconds,
                "decode": seconds - self.sample_seconds,
            },
            trace=tuple(self.trace),
            work=self.work,
            interrupted=self.interrupted,
            notes=(share,),
            details={
                "samples": self.drawn,
                "samples_valid": self.valid,
                "samples_within_budget": self.fitting,
                "rounds": self.rounds,
                "variables": self.bqm.num_variables,
                "couplings": self.bqm.num_interactions,
                "penalty_share": self.share,
            },
        )

    def _rounds(self) -> float:
        """Rounds until it is time to stop; returns when the model was built."""
        self._prepare()
        built = time.perf_counter()
        for number in itertools.count():
            # Where every group has one choice the only answer is kept already, and samplers refuse no variables.
            if not self.bqm.num_variables or self._stop() or not self._round(number):
                break
        return built

    def _prepare(self) -> None:
        problem = self.problem
        self.local = LocalSearch(problem, self.rng)
        starts, stops = problem.group_offsets[:-1], problem.group_offsets[1:]
        self.local.place([int(np.argmin(problem.linear[a:b])) for a, b in zip(starts, stops, strict=True)])
        self._keep_filled()  # an answer before any sample
        pairs = pair_energies(problem)
        worst = self.encoding.worst_case(problem, coupling_sums(pairs), problem.linear)
        self.bit_map = self.encoding.bit_map(problem)
        self.penalty = PenaltyTerms(worst, self.encoding.penalty_terms(problem, worst))
        self.share = PENALTY_SHARE
        penalties = self.share * worst
        self.spread = self._typical_spread()
        self.search = PriceSearch(problem, self.spread, self.first_prices)
        charged = problem.linear + self.search.prices @ problem.costs
        self.bqm = build_bqm(problem, self.encoding, charged, problem.constant, penalties, pairs=pairs)
        self.bqm.change_vartype(dimod.SPIN, inplace=True)
        self.decode = Decoder(problem, self.encoding, self.bqm.num_variables)

    def _typical_spread(self) -> float:
        """Root mean square, over groups and a few random assignments, of the spread of a group's energies."""
        problem = self.problem
        squares = []
        for _ in range(3):
            draw = (self.rng.random(problem.num_groups) * problem.group_sizes).astype(np.int64)
            squares += [
                np.ptp(problem.deltas(draw, g)) ** 2 for g in range(0, problem.num_groups, 1 + problem.num_groups // 50)
            ]
        return float(np.sqrt(np.mean(squares))) or 1.0

    def _round(self, number: int) -> bool:
        left = None if self.limits.work is None else self.limits.work - self.work
        if left is not None and left <= 0:
            return False
        seed = int(self.rng.integers(2**31))
        request = Request(
            bqm=self.bqm,
            round=number,
            spread=self.spread,
            penalty=self.share * self.penalty.mean,
            most_work=left,
            seed=seed,
            stop=self._stop,
            seconds_left=self.limits.seconds - self._elapsed(),
        )
        begin = time.perf_counter()
        draw = self.sampler(request)
        self.sample_seconds += time.perf_counter() - begin
        if draw is None or not len(draw.bits):
            return False
        self.work += draw.work
        self.rounds += 1
        self._take(draw.bits)
        return True

    def _take(self, bits: npt.NDArray[np.int8]) -> None:
        problem = self.problem
        assignments, invalid = self.decode(bits)
        energies = problem.energies(assignments)
        totals = np.array([problem.totals(assignment) for assignment in assignments])
        fits = (totals <= problem.limits).all(axis=1)
        self.drawn += len(bits)
        self.valid += int((invalid == 0).sum())
        self.fitting += int(((invalid == 0) & fits).sum())
        for i in np.flatnonzero(fits):
            self._keep(float(energies[i]), assignments[i])
        charged = energies + (totals - problem.limits) @ self.search.prices
        order = np.argsort(charged, kind="stable")
        for i in order[:_POLISHED_PER_ROUND]:
            self.local.place(assignments[i])
            self._keep_filled()
        self._adapt(totals[order[0]] - problem.limits, float((invalid == 0).mean()))

    def _keep_filled(self) -> None:
        """Repair, then spend what is left by single changes, and keep the result."""
        if self.local.repair():
            self.local.descend(self.start + self.limits.seconds, pairs=False)
            self._keep(self.problem.energy(self.local.assignment), self.local.assignment)

    def _keep(self, energy: float, assignment: IntArray) -> None:
        self.found.setdefault(assignment.tobytes(), (energy, assignment))
        if energy < self.best:
            self.best = energy
            self.trace.append((self._elapsed(), energy, None))
        if len(self.found) > 8 * self.pool_size:
            ranked = sorted(self.found.items(), key=lambda item: item[1][0])
            self.found = dict(ranked[: self.pool_size])

    def _adapt(self, excess: IntArray, valid: float) -> None:
        before = self.search.prices.copy()
        self.search.update(excess)
        change = self.bit_map.of_choices((self.search.prices - before) @ self.problem.costs)
        # A bit is (1 + spin) / 2; the constant that this leaves out does not matter to a sampler.
        self.bqm.add_linear_from_array(0.5 * change)  # type: ignore[arg-type]
        # One-hot groups break below the right penalty and freeze above it: keep most samples valid, no more.
        factor = 1.25 if valid < 0.5 else 0.9 if valid > 0.95 else 1.0
        share = min(1.0, max(0.02, self.share * factor))
        if share != self.share:
            self.penalty.add(self.bqm, share - self.share)
            self.share = share

    def _stop(self) -> bool:
        return self.interrupted or self._elapsed() >= self.limits.seconds

    def _elapsed(self) -> float:
        return time.perf_counter() - self.start

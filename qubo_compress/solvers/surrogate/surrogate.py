"""Surrogate-assisted search: the problem's energy, corrected by measured losses, proposes what to measure next.

Every round fits a correction of the energy to all losses measured so far, solves the corrected problem and draws of it
with the annealer, and measures the answers: all on a few examples, the better ones on more, and the best on as many as
the best assignment so far was measured on. That number grows with what was spent, so that the search is never far from
the best use of its evaluations, whenever it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.network_loss import ExampleLoss
from qubo_compress.solvers.annealer.annealer import Annealer, warm_up
from qubo_compress.solvers.greedy import Greedy
from qubo_compress.solvers.search import Search
from qubo_compress.solvers.solver import Solver, solvers
from qubo_compress.solvers.surrogate.correction import Correction, EnergyTerms, Spread, nothing_observed
from qubo_compress.solvers.surrogate.proposals import near_optima
from qubo_compress.solvers.surrogate.records import Record, Records
from qubo_compress.solvers.uniform import Uniform

SHARES = (0.5, 0.0)
"""Shares of the pair energies under which the problem is solved for further first assignments."""


FEWEST_EXAMPLES = 16
"""An assignment is measured on at least this many examples."""

FIRST_MEASUREMENTS = 40
"""An assignment is first measured on at least this part of all evaluations. Near the optimum, losses differ by less
than their luck on a few hundred examples, and the energy tells more than fewer could."""

STAGE = 4
"""From one stage to the next, examples are multiplied by this number and assignments divided."""


@solvers.register
@dataclass(frozen=True)
class Surrogate(Solver):
    """Measure what the corrected energy proposes; correct the energy by what was measured.

    The first assignments are the annealer's with all, half and none of the pair energies, ``uniform`` and ``greedy``,
    and draws of the correction before any observation. Without a loss the annealer solves the problem.

    Args:
        loss: losses by example; ``table.stitched_loss(model, batches, "kl")`` is one.
        most_evaluations: most examples forwarded; None: no limit.
        batch: assignments proposed in a round.
        depth: the best assignment is measured on as many examples as have been spent, divided by this.
        starts: further assignments to begin with.

    Raises:
        InvalidSolverOption: for a number out of range, or a loss that is not known by example.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> problem.is_feasible(solve(problem, "surrogate", time_limit=0.2).assignment)
        True
    """

    name: ClassVar[str] = "surrogate"
    loss: ExampleLoss | None = None
    most_evaluations: int | None = None
    batch: int = 16
    depth: int = 20
    starts: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.loss is not None and not isinstance(self.loss, ExampleLoss):
            raise InvalidSolverOption(
                f"surrogate needs losses by example, such as table.stitched_loss(model, batches); got {self.loss!r}"
            )
        if min(self.batch, self.depth) < 1 or (self.most_evaluations is not None and self.most_evaluations < 1):
            raise InvalidSolverOption("batch, depth and most_evaluations start at 1")

    def run(self, search: Search) -> None:
        """Search until the evaluations, the time or the work, counted in assignments measured, are used up."""
        if self.loss is None:
            Annealer().run(search)
            return
        with search.compiling():
            warm_up(search.problem.structure)
        progress = _SurrogateSearch(search, self, self.loss)
        try:
            progress.begin()
            while progress.may_go_on() and progress.round():
                pass
        finally:
            search.details |= progress.figures()


class _OutOfBudget(Exception):
    """Ends a round when evaluations, time or work are used up."""


class _SurrogateSearch:
    """One run: what was measured, and the best of it."""

    def __init__(self, search: Search, options: Surrogate, loss: ExampleLoss) -> None:
        self.search, self.problem, self.options, self.loss = search, search.problem, options, loss
        search.pool.size = 1
        self.before = loss.evaluations
        loss.redraw(int(search.rng.integers(2**31)))
        self.records, self.energies = Records(loss), EnergyTerms(search.problem)
        self.best: Record | None = None
        self.anchor: Record | None = None
        self.spread: Spread | None = None
        self.rounds = 0
        self.longest = 0.0
        self.history: list[dict[str, Any]] = []

    @property
    def spent(self) -> int:
        return self.loss.evaluations - self.before

    @property
    def left(self) -> float:
        most = self.options.most_evaluations
        return np.inf if most is None else most - self.spent

    def stages(self) -> list[int]:
        """Numbers of examples on which assignments are measured one after another."""
        fewest = max(FEWEST_EXAMPLES, (self.options.most_evaluations or 0) // FIRST_MEASUREMENTS)
        last = self.loss.whole(max(fewest, self.spent // self.options.depth))
        last = max(last, 0 if self.best is None else self.best.count)
        wanted = {self.loss.whole(max(fewest, last // STAGE**power)) for power in (2, 1, 0)}
        return sorted({*(count for count in wanted if count < last), last})

    def begin(self) -> None:
        """Measure the first assignments."""
        first = self._near(self.problem)[:1] or self._solved(Greedy())
        if not first:
            return
        self.search.settle(first[0])
        self.anchor = self.records.of(first[0])
        found = [first[0], *(np.array(start, dtype=np.int64) for start in self.options.starts)]
        for share in SHARES:
            found += self._near(_shared(self.problem, share))[:1]
        found += [*self._solved(Uniform()), *self._solved(Greedy())]
        prior = Correction(self.energies, nothing_observed(first[0]))
        for _ in range(self.options.batch):
            found += self._near(prior.problem(self.search.rng))[:1]
        self._race([self.records.of(assignment) for assignment in found if self.problem.is_feasible(assignment)])

    def may_go_on(self) -> bool:
        return self.best is not None and self.left >= FEWEST_EXAMPLES and not self.search.over(self.longest)

    def round(self) -> bool:
        """Propose and measure one batch; False if there was nothing new, or nothing that what is left pays for."""
        self.spread, before = None, self.spent
        found, correction = self._corrected()
        proposed, last = self._proposed(correction), self.stages()[-1]
        ranked = sorted(zip(correction.at_observed().tolist(), range(len(found)), strict=True))
        again = [found[i] for value, i in ranked if found[i].count < last and value < 0][: self.options.batch // 4]
        if not proposed and not again:
            return False
        self.rounds += 1
        self._race([*proposed, *again])
        return self.spent > before

    def _proposed(self, correction: Correction) -> list[Record]:
        """New assignments: near the optimum of the mean correction, and optima of its draws."""
        several, rng = max(1, self.options.batch // 4), self.search.rng
        fresh: dict[bytes, IntArray] = {}
        for number in range(1 + self.options.batch - several):
            pool = self._near(correction.problem(rng if number else None))
            new = [a for a in pool if a.tobytes() not in self.records.known and a.tobytes() not in fresh]
            fresh |= {assignment.tobytes(): assignment for assignment in new[: 1 if number else several]}
        return [self.records.of(assignment) for assignment in fresh.values()]

    def _race(self, running: list[Record]) -> None:
        """Measure assignments stage by stage, fewer each time; the best of the last stage may become the answer."""
        running = list({id(record): record for record in running}.values())
        stages = self.stages()
        try:
            for number, count in enumerate(stages):
                for known in (self.best, self.anchor):
                    if known is not None:
                        self._measure(known, count)
                for record in running:
                    self._measure(record, count)
                if self.best is None:
                    self._take(min(running, key=self.records.mean))
                if number < len(stages) - 1:
                    running = self._ahead(running, max(1, len(running) // STAGE))
        except _OutOfBudget:
            pass
        self._judge()

    def _ahead(self, running: list[Record], keep: int) -> list[Record]:
        """The assignments of a stage that are expected to be the best."""
        chosen = {id(record) for record in running}
        return [record for _, record in self._expected() if id(record) in chosen][:keep]

    def _judge(self) -> None:
        """Make the assignment that is expected to be the best the answer, of those measured as closely as it."""
        if self.best is None:
            return
        for value, record in self._expected():
            if value < 0 and record.count >= self.best.count:
                self._take(record)
                return

    def _expected(self) -> list[tuple[float, Record]]:
        """Measured assignments except the best, with their expected differences to it, the least first."""
        found, correction = self._corrected()
        expected = correction.at_observed()
        return [(float(expected[i]), found[i]) for i in np.argsort(expected, kind="stable")]

    def _corrected(self) -> tuple[list[Record], Correction]:
        """The correction by everything measured, and the records that it observes."""
        assert self.best is not None  # noqa: S101 - begin() has set it
        found, observed = self.records.observations(self.best)
        correction = Correction(self.energies, observed, self.spread)
        self.spread = correction.spread  # looked for once in a round
        return found, correction

    def _measure(self, record: Record, count: int) -> None:
        """Measure, unless that would exceed what is left."""
        price = self.records.price(record, count)
        if price == 0:
            return
        if price > self.left or (self.best is not None and self.search.over()):
            raise _OutOfBudget
        new = record.count == 0
        if new and self.search.most_work(1) < 1:
            raise _OutOfBudget
        self.records.measure(record, count)
        self.search.work += int(new)

    def _take(self, record: Record) -> None:
        self.best = record
        self.search.settle(record.assignment)
        self.history.append(
            {
                "evaluations": self.spent,
                "loss": self.records.mean(record),
                "assignment": tuple(record.assignment.tolist()),
                "examples": record.count,
            }
        )

    def _near(self, problem: ChoiceProblem) -> list[IntArray]:
        """Assignments near the optimum of a problem, best first."""
        seed = int(self.search.rng.integers(2**62))
        return near_optima(problem, seed, lambda seconds: not self.search.over(seconds))

    def _solved(self, solver: Solver) -> list[IntArray]:
        """A simple solver's answer, if it finds one."""
        part = self.search.part()
        part.run(solver)
        if part.interrupted:
            raise KeyboardInterrupt
        return [] if part.best is None else [part.best]

    def figures(self) -> dict[str, Any]:
        return {
            "candidates_scored": len(self.records.known),
            "network_evaluations": self.spent,
            "rounds": self.rounds,
            "loss": np.inf if self.best is None else self.records.mean(self.best),
            "history": tuple(self.history),
        }


def _shared(problem: ChoiceProblem, share: float) -> ChoiceProblem:
    """The problem with a share of its pair energies."""
    if share == 0.0:
        return problem.without_interactions()
    factor = None if problem.factor is None else problem.factor * np.float32(np.sqrt(share))
    pairs = None if problem.pairs is None else problem.pairs * share
    return replace(problem, factor=factor, pairs=pairs)

"""Which method gives the best network at any number of network evaluations? Test loss of plans, without fine-tuning.

    python -m benchmarks.studies.evaluations
    python -m benchmarks.studies.evaluations --ratios 12 --evaluations 700000 --seeds 0
    python -m benchmarks.studies.evaluations table

An evaluation is one example forwarded through the whole network, whatever it is for: outputs of the uncompressed
network, every stage of every search, and the table. A table by ``products`` with S probes counts 1 + 3 S for every
example that it is measured on, as ``qc.estimate`` counts it: a forward pass, and for every probe a backward pass with
gradients by example. Every method may spend the same total:

- ``search``: a table of the whole pool, and the solver ``surrogate`` with what is left. A total of 2,000 does not pay
  for that table: all of it goes to a smaller one, and ``search`` is ``full``.
- ``full``, ``additive``, ``greedy``: no search; a table of as many examples as the total pays for, at most 2,048.
- ``full+2``: the table, and two more around the plan, with held-out checks, each on a part of the total.
- ``spdy``: squared displacements, which cost nothing, and the real loss on N / 350 images, at least 32.
- ``evopress``: the settings of ``benchmarks.studies.true_loss`` for few evaluations; ``evopress, published``: those of
  the paper, whose 150 generations need 698 thousand, as many generations as fit.
- ``reinforcement``: one episode per 64 images, at most 600 episodes, then more images.
- ``uniform``: costs nothing.

All minimise the divergence from the uncompressed network on images of the same pool, and are scored by cross-entropy on
the first ``--test`` test images, which chose nothing. Records are appended to ``benchmarks/results/evaluations.jsonl``;
what is there is not run again.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import qubo_compress as qc
from benchmarks.networks import Network, channels_last, load
from benchmarks.records import RESULTS, Record
from benchmarks.studies.evaluations_figures import draw, tables_text
from benchmarks.studies.true_loss import EVOPRESS, SLICE, WORST_LOSS
from benchmarks.study import Option, Options, Study
from qubo_compress.calibration.examples import read_examples
from qubo_compress.pipeline.refinement import Refinement, Round, refine
from qubo_compress.selection.candidates import Candidate
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.metrics.products import Products
from qubo_compress.sensitivity.specimen import Specimen

METHODS = (
    "search", "full", "additive", "greedy", "uniform", "spdy", "evopress", "evopress, published", "full+2",
    "reinforcement",
)  # fmt: skip
EVALUATIONS = (2_000, 24_000, 100_000, 700_000)
POOL = 2048
"""Calibration images that any method may use."""

TABLE_COST = 4
"""Evaluations for every example of a table with one probe."""

SEARCHED_FROM = 2 * TABLE_COST * POOL
"""``search`` runs the network from this total on. Below, further images say more in the table: near the optimum, losses
differ by a hundredth, and on 500 images that is less than their luck."""

COSTS_IMAGES = 384
"""Images of the table that gives menus and costs to the methods that do not look at its energies."""

SPDY_CANDIDATES, SPDY_IMAGES = 350, 32
EPISODES, EPISODE_IMAGES = 600, 64
PUBLISHED_FROM = 300_000
"""The published settings of EvoPress are run from this total on: below, too few of its generations fit."""

REFINED_SHARE = 16
"""``full+2``: three tables of this share of the total, and checks of a quarter as many held-out images."""

QUICK = 50_000
"""Up to this total, all ratios and seeds are run before any larger one."""

STUDY = Study(
    __doc__, "evaluations", network="cifar10-resnet20", ratios=[12.0, 10.0, 8.0], seeds=[0, 1, 2],
    evaluations=list(EVALUATIONS), methods=Option(list(METHODS), choices=METHODS), test=5000,
    time_limit=Option(2.0, "of every solve on a table, seconds"), threads=1,
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a method chose, and the evaluations that it spent."""

    assignment: np.ndarray
    evaluations: int


def cells(options: Options) -> Iterator[Record]:
    """The quick totals of all ratios and seeds first."""
    quick = [total for total in options.evaluations if total <= QUICK]
    for totals in (quick, *([total] for total in options.evaluations if total > QUICK)):
        for ratio, seed, total, method in itertools.product(options.ratios, options.seeds, totals, options.methods):
            if method != "evopress, published" or total >= PUBLISHED_FROM:
                yield {"network": options.network, "ratio": ratio, "seed": seed, "total": total, "method": method}


@STUDY.step(cells)
def losses(options: Options, network: str, ratio: float, seed: int, total: int, method: str) -> Record:
    """The test loss of one method's plan at one total."""
    begin, processor = time.perf_counter(), time.process_time()
    cell = Cell(options, network, ratio, seed, total)
    found = getattr(cell, method.replace("+", "_").replace(", ", "_"))()
    if found.evaluations > total:
        raise RuntimeError(f"{method} spent {found.evaluations} of {total} evaluations")
    seconds = {"cpu_seconds": round(time.process_time() - processor, 1), "wall": round(time.perf_counter() - begin, 1)}
    loss = scored(network, seed, options.test, tuple(found.assignment.tolist()))
    chosen = {"loss": loss, "test_images": options.test, "assignment": found.assignment.tolist()}
    return {"evaluations": found.evaluations} | chosen | seconds


@functools.lru_cache(maxsize=1)
def network_of(name: str, seed: int) -> Network:
    """A network with its calibration images drawn by the seed."""
    return channels_last(load(name, calibration_examples=POOL, seed=seed))


@functools.lru_cache(maxsize=6)
def table_of(name: str, seed: int, images: int) -> qc.SensitivityTable:
    """The table of some of the pool's first images."""
    network = network_of(name, seed)
    metric = Products(probes=1)
    return qc.measure(network.model, network.calibration, metric=metric, max_examples=images, progress=False)


@functools.lru_cache(maxsize=1)
def test_loss(name: str, seed: int, images: int) -> qc.StitchedLoss:
    """The cross-entropy on the first test images."""
    network, table = network_of(name, seed), table_of(name, seed, COSTS_IMAGES)
    return table.stitched_loss(network.model, network.test, "cross-entropy", max_examples=images, slice_size=SLICE)


@functools.lru_cache(maxsize=8)
def calibration_loss(name: str, seed: int, images: int) -> tuple[qc.StitchedLoss, int]:
    """The divergence on the pool's first images, and the evaluations that making it took."""
    network, table = network_of(name, seed), table_of(name, seed, COSTS_IMAGES)
    loss = table.stitched_loss(network.model, network.calibration, "kl", max_examples=images, slice_size=SLICE)
    return loss, loss.evaluations


@functools.lru_cache(maxsize=1000)
def scored(name: str, seed: int, images: int, assignment: tuple[int, ...]) -> float:
    """The test loss of an assignment."""
    return test_loss(name, seed, images)(np.array(assignment))


class Cell:
    """One ratio, seed and total; every method is a method of the same name.

    Args:
        options: of the command line.
        network: its name.
        ratio: original bytes over stored bytes.
        seed: draws the calibration images and seeds every method.
        total: evaluations that a method may spend.
    """

    def __init__(self, options: Options, network: str, ratio: float, seed: int, total: int) -> None:
        self.options, self.name, self.seed, self.total = options, network, seed, total
        self.network, self.budget = network_of(network, seed), qc.Budget(ratio=ratio)

    def table(self, images: int) -> qc.SensitivityTable:
        """The table of some images."""
        return table_of(self.name, self.seed, images)

    @property
    def affordable(self) -> int:
        """Images of a table that spends everything."""
        return min(POOL, self.total // TABLE_COST)

    def problem(self, images: int) -> qc.ChoiceProblem:
        """The problem of some images."""
        return self.table(images).problem(self.budget)

    def solved(self, problem: qc.ChoiceProblem, solver: str, evaluations: int) -> Found:
        """What a solver that runs no network chooses."""
        solution = qc.solve(problem, solver, time_limit=self.options.time_limit, seed=self.seed)
        return Found(solution.assignment, evaluations)

    def searched(self, problem: qc.ChoiceProblem, solver: str, images: int, before: int = 0, **given: Any) -> Found:
        """What a search on the network chooses, with the real loss on some images; ``before`` was spent on a table."""
        loss, made = calibration_loss(self.name, self.seed, images)
        solution = qc.solve(
            problem, solver, time_limit=1e6, seed=self.seed, loss=loss, most_evaluations=self.total - before - made,
            **given,
        )  # fmt: skip
        return Found(solution.assignment, before + made + solution.details["network_evaluations"])

    def search(self) -> Found:
        """The surrogate on the pool's table; the table alone where that takes the total."""
        if self.total < SEARCHED_FROM:
            return self.full()
        return self.searched(self.problem(POOL), "surrogate", POOL, TABLE_COST * POOL)

    def full(self) -> Found:
        """The table alone."""
        return self.solved(self.problem(self.affordable), "annealer", TABLE_COST * self.affordable)

    def additive(self) -> Found:
        """The table without interactions."""
        problem = self.problem(self.affordable).without_interactions()
        return self.solved(problem, "exact", TABLE_COST * self.affordable)

    def greedy(self) -> Found:
        """Greedy on the table."""
        return self.solved(self.problem(self.affordable), "greedy", TABLE_COST * self.affordable)

    def uniform(self) -> Found:
        """One choice for all groups; the table is not looked at."""
        return self.solved(self.problem(COSTS_IMAGES), "uniform", 0)

    def spdy(self) -> Found:
        """Squared displacements, as shares of the largest of the layer, under the real loss."""
        images = min(POOL, max(SPDY_IMAGES, self.total // SPDY_CANDIDATES))
        table = self.table(COSTS_IMAGES)
        network, starts = self.network, table.offsets[:-1]
        plain = qc.measure(
            network.model, network.calibration, metric="magnitude", max_examples=1, progress=False
        ).linear
        largest = np.repeat(np.maximum.reduceat(plain, starts), np.diff(table.offsets))
        errors = tuple(plain / np.maximum(largest, 1e-30))
        return self.searched(table.problem(self.budget), "spdy", images, errors=errors)

    def evopress(self) -> Found:
        """EvoPress with many small generations."""
        return self.searched(self.problem(COSTS_IMAGES), "evopress", self._sampled, generations=None, **EVOPRESS)

    def evopress_published(self) -> Found:
        """EvoPress as published."""
        return self.searched(self.problem(COSTS_IMAGES), "evopress", self._sampled)

    @property
    def _sampled(self) -> int:
        """Images that EvoPress samples from: their outputs before compression must not cost most of a small total."""
        return min(POOL, max(EVOPRESS["samples"][-1], self.total // 10))

    def full_2(self) -> Found:
        """The table, and two more around the plan; every one and every held-out check is charged."""
        images = min(POOL, self.total // (REFINED_SHARE * TABLE_COST) * 3)
        table, network = self.table(images), self.network
        held_out = HeldOut.of(
            network.model, read_examples(network.validation, max(16, images // 4), SLICE), "cross-entropy"
        )
        solve = functools.partial(qc.solve, solver="annealer", time_limit=self.options.time_limit, seed=self.seed)
        solution = solve(table.problem(self.budget))
        plan = table.plan(solution)
        only = Candidate("solver", plan, plan.predicted_loss, held_out.compare(plan.apply(network.model)))
        settings = Measurement(
            metric=Products(probes=1), loss="cross-entropy", max_examples=images, progress=False, seed=self.seed
        )
        history = refine(
            Specimen.of(network.model, network.calibration, settings), table,
            Round.of(table, solution, (only,), only), held_out, self.budget, solve, Refinement(2, 4, 2.0),
        )  # fmt: skip
        checks = 2 + sum(len(found.checked) + 1 for found in history[1:])
        evaluations = len(history) * TABLE_COST * images + checks * held_out.examples.count
        incumbent = [found for found in history if found.accepted][-1]
        return Found(table.assignment(incumbent.plan.choices), evaluations)

    def reinforcement(self) -> Found:
        """The agent's best episode by the real loss; every episode and the uniform start cost one score."""
        episodes = min(EPISODES, self.total // EPISODE_IMAGES - 2)
        images = min(POOL, self.total // (episodes + 2))
        loss, made = calibration_loss(self.name, self.seed, images)
        begin, best = loss.evaluations - made, (np.inf, np.zeros(0, dtype=np.int64))
        problem = self.problem(COSTS_IMAGES)

        def limited(assignment: np.ndarray, examples: int | None) -> float:
            nonlocal best
            value = loss(assignment, examples)
            if problem.is_feasible(assignment) and value < best[0]:
                best = value, assignment.copy()
            return min(value, WORST_LOSS)

        qc.solve(problem, "reinforcement", time_limit=1e6, work_limit=episodes, seed=self.seed, loss=limited)
        return Found(best[1], loss.evaluations - begin)


@STUDY.table
def tables(options: Options) -> str:
    """Medians over the seeds, and the pictures."""
    records = STUDY.records(network=options.network)
    for path in draw(records, RESULTS):
        print(path)
    return tables_text(records)


if __name__ == "__main__":
    STUDY.main()

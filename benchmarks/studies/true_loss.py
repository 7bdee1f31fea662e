"""Which method gives the best network at equal network evaluations? Test loss of plans, without fine-tuning.

    python -m benchmarks.studies.true_loss --tier quick
    python -m benchmarks.studies.true_loss --tier full

An evaluation is one example forwarded through the whole network. Measuring the table takes (choices + 1) x
examples of them, every run counted as a full one although most re-run only the end of the network: that number
E is what every search on the real loss may spend. Refinement costs more (two further sweeps, and the held-out
checks of its plans, E2 in all), so ``evopress`` is also shown when it has spent as much.

The model's methods see ``--examples`` calibration images and, for refinement, as many validation images.
Searches on the real loss score every candidate on those images (``spdy``, ``reinforcement``), or draw samples
from ``--pool`` images (``evopress``), which is more data than the table saw. All of them minimise the divergence
from the uncompressed network ("kl", as EvoPress publishes); ``evopress, cross-entropy`` minimises the loss
itself. ``spdy`` weighs squared displacements, which cost no evaluation. ``shrinkage=1``: linear terms from the
divergence, measured in the same sweep. ``checked``: the best on held-out images, which are charged, of the first
eight plans of the solver's pool, ``additive``, ``uniform`` and ``greedy``. These three are charged the table that
they read.

``--published RATIO`` runs evopress (150 generations of 128) and reinforcement (600 episodes) as they are
published, once. Test images serve only for the figures. Records are appended to
``benchmarks/results/true_loss.jsonl``; what is there already is not run again. Pictures:
``benchmarks/results/true_loss_NETWORK_RATIOx.png``.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qubo_compress as qc
from benchmarks.networks import Network, channels_last, load
from benchmarks.records import RESULTS, Record, append, environment, matching, read, write
from benchmarks.studies.true_loss_figures import draw, table_text
from benchmarks.study import Option, Options, command_line
from qubo_compress.calibration.evaluation import score_examples
from qubo_compress.calibration.examples import read_examples
from qubo_compress.pipeline.refinement import Refinement, Round, refine
from qubo_compress.plan import Plan
from qubo_compress.selection.candidates import Candidate, select
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.specimen import Specimen

PATH = RESULTS / "true_loss.jsonl"
SLICE = 64
"""Images forwarded at once: about 1.3 times as fast on a CPU as 250."""

CHECKPOINTS = 10
WORST_LOSS = 1e3
"""What an agent is told of a loss that is infinite."""

CURVE_IMAGES = 2000
PUBLISHED_IMAGES = 512
"""Calibration images on which every episode at the published settings is scored."""
EVOPRESS = {"offspring": 32, "survivors": (8, 2, 1), "samples": (8, 64, 256), "reach": 3, "least_traded": 0.0}
"""EvoPress where E evaluations are too few for many generations of its published size.

A menu of bits and sparsity has many more levels than the published one of bits, so switches pass up to three; and the
groups differ in size a hundredfold, so uneven trades are allowed. Tuned on validation images: at 12x, seed 0 and
97,500 evaluations the published settings reach a loss of 0.70, and 0.51 with ``reach=3`` alone."""

TABLE_METHODS = ("uniform", "greedy", "additive", "additive, shrinkage=1", "full", "full, shrinkage=1")
CHECKED_METHODS = ("full, checked", "full, shrinkage=1, checked")
"""The best plan by held-out divergence, as ``compress`` chooses it without refinement."""

REFINED_METHODS = ("full+2", "full+2, shrinkage=1")
SEARCHES = ("spdy", "evopress", "evopress, cross-entropy", "reinforcement")
AT_E2 = "evopress at E2"
FIRST_SEED_ONLY = ("evopress, cross-entropy",)
PUBLISHED = ("evopress, published", "reinforcement, published")


@dataclass(frozen=True)
class Found:
    """A method's plan, and what it cost.

    Attributes:
        method: its name.
        plan: what it chose.
        evaluations: examples forwarded through the network, the table included.
        seconds: wall time, the table not included.
        history: (evaluations, calibration loss, assignment) of every incumbent, for searches on the real loss.
    """

    method: str
    plan: Plan
    evaluations: int
    seconds: float
    history: tuple[tuple[int, float, tuple[int, ...]], ...] = ()


class Cell:
    """One calibration seed at one ratio: the network, its tables, and the methods.

    Args:
        options: of the command line.
        seed: draws the calibration images.
        ratio: original bytes over stored bytes.
    """

    def __init__(self, options: Options, seed: int, ratio: float) -> None:
        self.options, self.seed, self.budget = options, seed, qc.Budget(ratio=ratio)
        pool = max(options.pool, options.examples)
        self.network: Network = channels_last(load(options.network, calibration_examples=pool, seed=seed))
        self.table, self.shrunk = (measured(options, self.network, seed, share) for share in (0.0, 1.0))
        self.problem = self.table.problem(self.budget)
        self.sweep = self.table.provenance.evaluations * options.examples

    def table_plans(self, wanted: set[str]) -> Iterator[Found]:
        """Plans that need the table alone."""
        for suffix, table in (("", self.table), (", shrinkage=1", self.shrunk)):
            problem = table.problem(self.budget)
            solvers = {"full": "annealer", "additive": "exact"} | (
                {} if suffix else {"uniform": "uniform", "greedy": "greedy"}
            )
            for name, solver in solvers.items():
                if name + suffix in wanted:
                    begin = time.perf_counter()
                    given = problem.without_interactions() if name == "additive" else problem
                    solution = qc.solve(given, solver, time_limit=self.options.time_limit)
                    yield Found(name + suffix, table.plan(solution), self.sweep, time.perf_counter() - begin)

    def checked(self, shrinkage: float) -> Found:
        """The full model's best plan by the loss on held-out images; these are charged."""
        begin = time.perf_counter()
        table = self.shrunk if shrinkage else self.table
        examples = read_examples(self.network.validation, self.options.examples, SLICE)
        held_out, problem = HeldOut.of(self.network.model, examples, "cross-entropy"), table.problem(self.budget)
        solution = qc.solve(problem, "annealer", time_limit=self.options.time_limit)
        candidates, winner = select(table, problem, solution, held_out)
        evaluations = self.sweep + (len(candidates) + 1) * examples.count
        return Found(CHECKED_METHODS[1 if shrinkage else 0], winner.plan, evaluations, time.perf_counter() - begin)

    def refined(self, shrinkage: float) -> Found:
        """The full model after two rounds; every sweep and every held-out check is charged."""
        begin = time.perf_counter()
        table = self.shrunk if shrinkage else self.table
        method = REFINED_METHODS[1 if shrinkage else 0]
        count, limit = self.options.examples, self.options.time_limit
        validation = read_examples(self.network.validation, count)
        held_out = HeldOut.of(self.network.model, validation, "cross-entropy")
        solution = qc.solve(table.problem(self.budget), "annealer", time_limit=limit)
        plan = table.plan(solution)
        only = Candidate("solver", plan, plan.predicted_loss, held_out.compare(plan.apply(self.network.model)))
        settings = Measurement(
            metric="gauss-newton", loss="cross-entropy", max_examples=count, progress=False, shrinkage=shrinkage
        )
        history = refine(
            Specimen.of(self.network.model, self.network.calibration, settings), table,
            Round.of(table, solution, (only,), only), held_out, self.budget,
            lambda p: qc.solve(p, "annealer", time_limit=limit), Refinement(2, 4, 2.0),
        )  # fmt: skip
        evaluations = self.sweep + 2 * validation.count
        for found in history[1:]:
            # Both networks' outputs before the sweep; then the held-out plans, and the original's outputs beside them.
            evaluations += (found.table.provenance.evaluations + 2) * count
            evaluations += (len(found.checked) + 1) * validation.count
        incumbent = [found for found in history if found.accepted][-1]
        return Found(method, incumbent.plan, evaluations, time.perf_counter() - begin)

    def loss(self, kind: str, examples: int) -> qc.StitchedLoss:
        """The real loss on calibration images."""
        return self.table.stitched_loss(
            self.network.model, self.network.calibration, kind, max_examples=examples, slice_size=SLICE
        )

    def evopress(self, method: str, most: int | None, **options: Any) -> Found:
        """EvoPress on samples of the pool."""
        loss = self.loss("cross-entropy" if "cross-entropy" in method else "kl", self.options.pool)
        spent = loss.evaluations
        left = None if most is None else most - spent
        return self._searched(method, "evopress", spent, loss=loss, most_evaluations=left, **options)

    def spdy(self, most: int) -> Found:
        """SPDY on squared displacements, as shares of the largest of the layer."""
        plain = qc.measure(
            self.network.model, self.network.calibration, metric="magnitude", max_examples=1, progress=False
        ).linear
        largest = np.repeat(np.maximum.reduceat(plain, self.table.offsets[:-1]), np.diff(self.table.offsets))
        loss = self.loss("kl", self.options.examples)
        spent = loss.evaluations
        return self._searched(
            "spdy", "spdy", spent, loss=loss, errors=tuple(plain / np.maximum(largest, 1e-30)),
            most_evaluations=most - spent,
        )  # fmt: skip

    def _searched(self, method: str, solver: str, spent: int, **options: Any) -> Found:
        begin = time.perf_counter()
        solution = qc.solve(self.problem, solver, time_limit=1e6, seed=self.seed, **options)
        history = tuple(
            (spent + entry["evaluations"], entry["loss"], entry["assignment"]) for entry in solution.details["history"]
        )
        evaluations = spent + solution.details["network_evaluations"]
        return Found(method, self.table.plan(solution), evaluations, time.perf_counter() - begin, history)

    def reinforcement(self, method: str, examples: int, episodes: int) -> Found:
        """The agent's best episode by the real loss; every episode and the uniform start cost one score."""
        begin = time.perf_counter()
        loss = self.loss("kl", examples)
        history: list[tuple[int, float, tuple[int, ...]]] = []

        def limited(assignment: np.ndarray, examples: int | None) -> float:
            value = loss(assignment, examples)
            if self.problem.is_feasible(assignment) and (not history or value < history[-1][1]):
                history.append((loss.evaluations, value, tuple(int(k) for k in assignment)))
            return min(value, WORST_LOSS)

        most = loss.evaluations + (episodes + 1) * examples
        qc.solve(self.problem, "reinforcement", time_limit=1e6, work_limit=episodes, seed=self.seed, loss=limited)
        history = [entry for entry in history if entry[0] <= most]
        plan = self.plan_of(history[-1][2])
        return Found(method, plan, min(most, loss.evaluations), time.perf_counter() - begin, tuple(history))

    def plan_of(self, assignment: tuple[int, ...]) -> Plan:
        """The plan of an assignment of the problem."""
        return self.table.plan(self.problem.names_of(np.array(assignment)))

    def at(self, found: Found, evaluations: int, method: str) -> Found:
        """A search as it stood after a number of evaluations."""
        history = tuple(entry for entry in found.history if entry[0] <= evaluations)
        share = evaluations / max(1, found.evaluations)
        plan = self.plan_of(history[-1][2])
        return Found(method, plan, min(evaluations, found.evaluations), found.seconds * min(1.0, share), history)

    def curve(self, found: Found) -> list[tuple[int, float, float]]:
        """(evaluations, calibration loss, test loss on some images) of incumbents, evenly spaced in the logarithm."""
        test = self.table.stitched_loss(
            self.network.model, self.network.test, max_examples=CURVE_IMAGES, slice_size=SLICE
        )
        wanted = np.geomspace(found.history[0][0], found.evaluations, CHECKPOINTS)
        entries = {max(e for e in found.history if e[0] <= max(w, found.history[0][0])) for w in wanted}
        return [(count, value, test(np.array(assignment))) for count, value, assignment in sorted(entries)]


def measured(options: Options, network: Network, seed: int, shrinkage: float) -> qc.SensitivityTable:
    """The table of one seed; the sweep is read back from the cache where it was made before."""
    cache = options.cache / f"true_loss_{options.network}_{options.examples}_{seed}"
    return qc.measure(
        network.model, network.calibration, max_examples=options.examples, cache=cache, progress=False,
        shrinkage=shrinkage,
    )  # fmt: skip


def run_cell(options: Options, seed: int, ratio: float, methods: tuple[str, ...]) -> None:
    """Run what is missing of one cell and append its records."""
    torch.set_num_threads(1)
    cell = Cell(options, seed, ratio)
    test = read_examples(cell.network.test, 1 << 62, SLICE)
    known: dict[str, tuple[float, float]] = {}

    def record(found: Found) -> None:
        if found.method not in methods:
            return
        key = str(sorted(found.plan.choices.items()))
        if key not in known:
            score = score_examples(found.plan.apply(cell.network.model), test)
            known[key] = score.loss, 100 * score.accuracy
        loss, accuracy = known[key]
        entry: Record = {
            "network": options.network, "seed": seed, "ratio": ratio, "method": found.method, "loss": loss,
            "accuracy": accuracy, "bytes": found.plan.bytes, "evaluations": found.evaluations, "sweep": cell.sweep,
            "seconds": round(found.seconds, 2), "examples": options.examples, "pool": options.pool,
        }  # fmt: skip
        if found.history and (seed == options.seeds[0] or found.method in PUBLISHED):
            entry["curve"] = cell.curve(found)
        append(PATH, entry | environment())
        print(
            f"{seed} {ratio:g}x {found.method}: test loss {loss:.4f}, {accuracy:.2f} %, {found.evaluations}", flush=True
        )

    for found in cell.table_plans(set(methods)):
        record(found)
    second = max(
        (r["evaluations"] for r in records_of(options, seed, ratio) if r["method"] in REFINED_METHODS), default=0
    )
    for shrinkage, method in zip((0.0, 1.0), CHECKED_METHODS, strict=True):
        if method in methods:
            record(cell.checked(shrinkage))
    for shrinkage, method in zip((0.0, 1.0), REFINED_METHODS, strict=True):
        if method in methods:
            refined = cell.refined(shrinkage)
            second = max(second, refined.evaluations)
            record(refined)
    for search, method in searches(options, cell, max(second, cell.sweep)):
        if method in methods or (method == "evopress" and AT_E2 in methods):
            found = search()
            if method == "evopress":
                record(replace(found, method=AT_E2))
                found = cell.at(found, cell.sweep, method)
            record(found)


def searches(options: Options, cell: Cell, second: int) -> list[tuple[Callable[[], Found], str]]:
    """The searches on the real loss, each with its name."""
    few = EVOPRESS | {"generations": None}
    episodes = cell.sweep // options.examples - 2  # the uncompressed outputs and the uniform start cost one each
    return [
        (lambda: cell.spdy(cell.sweep), "spdy"),
        (lambda: cell.evopress("evopress", second, **few), "evopress"),
        (lambda: cell.evopress("evopress, cross-entropy", cell.sweep, **few), "evopress, cross-entropy"),
        (lambda: cell.reinforcement("reinforcement", options.examples, episodes), "reinforcement"),
        (lambda: cell.evopress("evopress, published", None), "evopress, published"),
        (lambda: cell.reinforcement("reinforcement, published", PUBLISHED_IMAGES, 600), "reinforcement, published"),
    ]


def records_of(options: Options, seed: int, ratio: float) -> list[Record]:
    """What was done of one cell, with these numbers of images."""
    said = {"network": options.network, "examples": options.examples, "pool": options.pool}
    return matching(read(PATH), seed=seed, ratio=ratio, **said)


def missing(options: Options) -> list[tuple[int, float, tuple[str, ...]]]:
    """(seed, ratio, methods) still to be run."""
    usual = (*TABLE_METHODS, *CHECKED_METHODS, *REFINED_METHODS, *SEARCHES, AT_E2)
    later = tuple(method for method in usual if method not in FIRST_SEED_ONLY)
    cells = [
        (seed, ratio, usual if seed == options.seeds[0] else later)
        for ratio in options.ratios
        for seed in options.seeds
    ]
    if options.published is not None:
        # One cell each, so that they run side by side.
        cells = [(options.seeds[0], options.published, (method,)) for method in PUBLISHED] + cells
    found = []
    for seed, ratio, methods in cells:
        done = {r["method"] for r in records_of(options, seed, ratio)}
        left = tuple(m for m in methods if m not in done and (available(m) or not m.startswith("reinforcement")))
        if left:
            found.append((seed, ratio, left))
    return found


@functools.cache
def available(method: str) -> bool:
    """Whether the solver of a method is in this copy of the library."""
    return method.partition(",")[0] in qc.solvers.names()


def run(options: Options) -> None:
    """Measure the tables, then run all cells that are not done, several at a time."""
    todo = missing(options)
    total = sum(len(methods) for _, _, methods in todo)
    print(f"{total} records to make in {len(todo)} cells; {options.workers} at a time", flush=True)
    if not total:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        tables = [pool.submit(prepare, options, seed) for seed in sorted({seed for seed, _, _ in todo})]
        for table in as_completed(tables):
            print(f"table ready after {table.result():.0f} s", flush=True)
        futures = {pool.submit(run_cell, options, *cell): cell for cell in todo}
        done = 0
        for future in as_completed(futures):
            future.result()
            done += len(futures[future][2])
            print(f"{100 * done / total:.0f} % done", flush=True)


def prepare(options: Options, seed: int) -> float:
    """Measure one seed's table; returns the seconds."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    pool = max(options.pool, options.examples)
    measured(options, channels_last(load(options.network, calibration_examples=pool, seed=seed)), seed, 0.0)
    return time.perf_counter() - begin


def main() -> None:
    """Command line."""
    options = command_line(
        __doc__, tier=Option("quick", "quick: seed 0 at 12x alone", ("quick", "full")), network="cifar10-resnet20",
        seeds=Option((), type=int), ratios=Option((), type=float), examples=192, pool=2048,
        published=Option(None, "also run the published settings at this ratio", type=float),
        time_limit=Option(3.0, "of every solve on a table, seconds"), workers=2, cache=Path("out/tables"),
        table=Option(False, "only write the table and the pictures"),
    )  # fmt: skip
    options.seeds = options.seeds or ([0] if options.tier == "quick" else [0, 1, 2])
    options.ratios = options.ratios or ([12.0] if options.tier == "quick" else [8.0, 10.0, 12.0])
    if not options.table:
        run(options)
    records = matching(read(PATH), network=options.network, examples=options.examples)
    write(f"true_loss_{options.network}.md", table_text(records))
    for path in draw(records, RESULTS):
        print(path)


if __name__ == "__main__":
    main()

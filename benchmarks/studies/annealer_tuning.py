"""The bench on which the annealer's settings were chosen: success and time to the best known, at equal time.

    python -m benchmarks.studies.annealer_tuning [--families real,dense20] [--seconds 1] [--seeds 3] [--tables FOLDER]

Training problems only: generated ones of seeds 0 to 9, and the tables measured on networks where a directory of them
is given. The problems of the published benchmarks (seeds 100 and up) are never used here. The best known energies
are kept beside the results and only ever improve; those of the measured tables are proven by ``exact``.

Tried, beside some 60 settings of the first version's schedules: 21 schedules at equal sweeps on three ResNet-20
tables and four 20 x 16 problems (hotter starts, softer and harder prices, walls, four times the trades: none reached
the optimum of the 12x table once in 16 runs); 8 settings of the kicks (chance of a second group 0 to 0.5, first
prices 0.03 to 1); pairs per unit of work 2 and 8; sweeps of the relaxation per unit 8 and 12; and three ways to share
time between kicks and annealing above 100 groups, on one problem of each kind.

One thread; compiling excluded. Figures of two settings can be compared when they come from one sitting on one machine:
the tool prints geometric means over runs of the gap and of the time to target, so that ratios are what one reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed, parallel_config

from benchmarks.records import RESULTS, markdown
from benchmarks.study import Option, command_line
from qubo_compress import ChoiceProblem, Solution, solve
from qubo_compress._internal.files import write_atomically
from qubo_compress.problem.generators import planted_problem, random_problem
from qubo_compress.solvers import Solver
from qubo_compress.solvers.annealer.annealer import Annealer, warm_up

BEST = RESULTS / "annealer_tuning_best.json"
CLOSE = 1e-6
"""A run is at the best known when its gap is at most this."""

GENERATED = {
    "dense20": [("dense", 20, seed) for seed in range(8)] + [("low-rank", 20, seed) for seed in range(4)],
    "100": [(kind, 100, seed) for kind in ("separable", "sparse", "dense", "low-rank") for seed in range(2)],
    "planted100": [("planted", 100, seed) for seed in range(2)],
    "500": [(kind, 500, 0) for kind in ("separable", "sparse", "dense", "low-rank", "planted")],
}


@dataclass(frozen=True)
class Instance:
    """A training problem.

    Attributes:
        name: unique.
        problem: the problem.
        optimum: proven least energy, or None.
        scale: what a gap is relative to: the distance from a typical random assignment to the best known energy,
            or on measured tables the size of the optimum.
    """

    name: str
    problem: ChoiceProblem
    optimum: float | None
    scale: float


def generated(family: str) -> Iterator[Instance]:
    """The generated problems of a family."""
    for kind, groups, seed in GENERATED[family]:
        optimum = None
        if kind == "planted":
            problem, planted = planted_problem(groups, 16, seed)
            optimum = problem.energy(planted)
        else:
            problem = random_problem(kind, groups, 16, seed)
        rng = np.random.default_rng(0)
        typical = float(np.mean([problem.energy(rng.integers(0, 16, groups)) for _ in range(20)]))
        quick = solve(problem, "greedy").energy
        yield Instance(f"{kind}-{groups}-{seed}", problem, optimum, typical - min(quick, typical - 1e-9))


def measured(directory: Path) -> Iterator[Instance]:
    """The tables measured on networks, with optima that ``exact`` proves."""
    known: dict[str, float] = json.loads(BEST.read_text()) if BEST.exists() else {}
    for path in sorted(directory.glob("*layer*.npz")):
        problem = ChoiceProblem.load(path)
        if path.stem not in known:
            proof = solve(problem, "exact", time_limit=60.0)
            if proof.status != "optimal":
                continue
            known[path.stem] = proof.energy
        yield Instance(path.stem, problem, known[path.stem], max(abs(known[path.stem]), 1e-3))
    keep_best(known)


def keep_best(energies: dict[str, float]) -> dict[str, float]:
    """Merge energies into the file of the best known ones; returns all of them."""
    best: dict[str, float] = json.loads(BEST.read_text()) if BEST.exists() else {}
    for name, energy in energies.items():
        best[name] = min(best.get(name, np.inf), energy)
    text = json.dumps(best, indent=1, sort_keys=True).encode()
    write_atomically(BEST, lambda handle: handle.write(text))
    return best


def time_to(solution: Solution, energy: float, scale: float) -> float:
    """Seconds after which the run was at an energy, or infinity."""
    return min((seconds for seconds, value, _ in solution.trace if value - energy <= CLOSE * scale), default=np.inf)


def measure(instances: list[Instance], solver: Solver, seconds: float, seeds: int) -> list[list[str]]:
    """Rows of the table: one per problem, with success, gap and time to target over the seeds."""
    tasks = [(i.problem, seed) for i in instances for seed in range(seeds)]
    found = Parallel()(delayed(solve)(problem, solver, time_limit=seconds, seed=seed) for problem, seed in tasks)
    runs = {i.name: found[k * seeds : (k + 1) * seeds] for k, i in enumerate(instances)}
    best = keep_best({i.name: min([r.energy for r in runs[i.name]] + [i.optimum or np.inf]) for i in instances})
    rows = []
    for instance in instances:
        target = best[instance.name]
        gaps = [max(0.0, run.energy - target) / instance.scale for run in runs[instance.name]]
        times = [min(seconds, time_to(run, target, instance.scale)) for run in runs[instance.name]]
        rows.append([
            instance.name,
            f"{sum(gap <= CLOSE for gap in gaps)}/{seeds}",
            f"{100 * np.mean(gaps):.4f}",
            f"{1e3 * float(np.median(times)):.0f}",
            f"{1e3 * max(times):.0f}",
            f"{np.mean([run.work for run in runs[instance.name]]):.0f}",
        ])  # fmt: skip
    return rows


def main() -> None:
    """Run from the command line."""
    options = command_line(
        __doc__, families=Option("real,dense20", f"of real, {', '.join(GENERATED)}"), seconds=1.0, seeds=3,
        tables=Option(Path("out/instances"), "folder of measured problems"),
        jobs=Option(1, "solves at once; more than one disturbs the times"),
    )  # fmt: skip
    warm_up()
    header = ["problem", "at best known", "mean gap %", "ms to best, median", "ms to best, worst", "sweeps"]
    for family in options.families.split(","):
        instances = list(measured(options.tables) if family == "real" else generated(family))
        with parallel_config(n_jobs=options.jobs):
            rows = measure(instances, Annealer(threads=1), options.seconds, options.seeds)
        print(markdown(header, rows), flush=True)


if __name__ == "__main__":
    main()

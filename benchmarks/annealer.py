"""The annealer against simulated annealing, tabu search and greedy on dense problems, at equal wall clock.

    python -m benchmarks.annealer [--quick] [--skip-long]

One thread each, two processes side by side, compiling excluded. The gap is (energy - best) / (random - best), where
best is the least energy that any solver reached, one long run of the annealer included (10 minutes in all: 20 s for
each of the small problems, 80 s for each of the large ones, kept in ``results/annealer_best.json``), and random is the
best of 1000 random assignments within the budget.

All solvers were tuned on other problems than these (seeds 0 to 5, here 100 and up), the annealer with the most effort:
its four schedules were chosen among some 60 settings over 12 problems of five kinds; temperatures, sweeps and penalty
of simulated annealing among 13 settings (domain wall) and 8 (one-hot) on four dense 20 x 16 problems; the time per
sample of tabu search among three settings per encoding on four dense problems. The samplers of binary models all run in
the same loop of price search, repair and fill.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import RESULTS, environment, markdown
from qubo_compress import ChoiceProblem, solve
from qubo_compress.files import write_atomically
from qubo_compress.problem_generators import random_problem
from qubo_compress.solvers import Solver
from qubo_compress.solvers.annealer import Annealer, warm_up
from qubo_compress.solvers.greedy import Greedy
from qubo_compress.solvers.simulated_annealing import SimulatedAnnealing
from qubo_compress.solvers.tabu import Tabu

SOLVERS: dict[str, Solver] = {
    "annealer": Annealer(threads=1),
    "simulated-annealing, domain wall": SimulatedAnnealing(),
    "simulated-annealing, one-hot": SimulatedAnnealing(encoding="one-hot"),
    "tabu, domain wall": Tabu(),
    "tabu, one-hot": Tabu(encoding="one-hot"),
    "greedy": Greedy(),
}
SIZES = {20: 10, 100: 5}
LONG_SECONDS = {20: 20.0, 100: 80.0}
CHOICES = 16
FIRST_SEED = 100
BEST = RESULTS / "annealer_best.json"


@dataclass(frozen=True)
class Cell:
    """One solve."""

    solver: str
    groups: int
    seed: int
    seconds: float


def problem_of(groups: int, seed: int) -> ChoiceProblem:
    """The benchmark's problem of that size and number."""
    return random_problem("dense", groups, CHOICES, seed)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Solve once; the record says what came of it."""
    problem = problem_of(cell.groups, cell.seed)
    solver: Solver = Annealer() if cell.solver == "long" else SOLVERS[cell.solver]
    warm_up()
    start = time.perf_counter()
    solution = solve(problem, solver, time_limit=cell.seconds, seed=1)
    taken = time.perf_counter() - start - solution.timing.get("compile", 0.0)
    figures = [
        int(word) for word in re.findall(r"\d+", " ".join(solution.notes)) if "samples drawn" in solution.notes[0]
    ]
    return {
        **cell.__dict__,
        "energy": solution.energy,
        "taken": taken,
        "work": solution.work,
        "feasible": problem.is_feasible(solution.assignment),
        "samples": figures[0] if figures else None,
        "valid": figures[1] if figures else None,
        "within": figures[2] if figures else None,
    }


def random_energy(groups: int, seed: int) -> float:
    """The best of 1000 random assignments within the budget."""
    problem, rng = problem_of(groups, seed), np.random.default_rng(seed)
    energies: list[float] = []
    while len(energies) < 1000:
        # Cheaper choices are drawn more often until enough fit.
        draw = (rng.random(groups) ** rng.uniform(0.3, 1.0) * CHOICES).astype(np.int64)
        if problem.is_feasible(draw):
            energies.append(problem.energy(draw))
    return min(energies)


def key(groups: int, seed: int) -> str:
    """Name of a problem in the file of best energies."""
    return f"dense-{groups}x{CHOICES}-seed{seed}"


def update_best(records: list[dict[str, Any]]) -> dict[str, float]:
    """Merge the energies of these records into the file of the best known ones."""
    best: dict[str, float] = json.loads(BEST.read_text()) if BEST.exists() else {}
    for record in records:
        name = key(record["groups"], record["seed"])
        best[name] = min(best.get(name, np.inf), record["energy"])
    text = json.dumps(best, indent=1, sort_keys=True).encode()
    write_atomically(BEST, lambda handle: handle.write(text))
    return best


def cells(sizes: dict[int, int], limits: tuple[float, ...]) -> Iterator[Cell]:
    """All solves of the table, solvers innermost so that a change in the machine's load hits all alike."""
    for groups, count in sizes.items():
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            for seconds in limits:
                for solver in SOLVERS:
                    yield Cell(solver, groups, seed, seconds)


def table(records: list[dict[str, Any]], best: dict[str, float], limits: tuple[float, ...]) -> str:
    """The markdown table: mean gap per size and time, and what share of the drawn samples could be used."""
    sizes = sorted({record["groups"] for record in records})
    random = {
        key(record["groups"], record["seed"]): random_energy(record["groups"], record["seed"])
        for record in records
        if record["solver"] == "annealer"
    }
    header = ["solver", *(f"{g} x {CHOICES}, {s:g} s" for g in sizes for s in limits), "answers within budget"]
    header += ["samples: groups valid", "samples: valid and within budget"]
    rows = []
    for solver in SOLVERS:
        row = [f"`{solver}`" if "," not in solver else solver]
        for groups in sizes:
            for seconds in limits:
                chosen = [
                    record
                    for record in records
                    if (record["solver"], record["groups"], record["seconds"]) == (solver, groups, seconds)
                ]
                gaps = []
                for record in chosen:
                    name = key(groups, record["seed"])
                    gaps.append(100 * (record["energy"] - best[name]) / (random[name] - best[name]))
                at_best = sum(gap < 1e-3 for gap in gaps)
                row.append(f"{np.mean(gaps):.2f} % ({at_best}/{len(gaps)} at best)")
        mine = [record for record in records if record["solver"] == solver]
        row.append(f"{100 * np.mean([record['feasible'] for record in mine]):.0f} %")
        drawn = sum(record["samples"] or 0 for record in mine)
        for name in ("valid", "within"):
            row.append(f"{100 * sum(record[name] or 0 for record in mine) / drawn:.0f} %" if drawn else "-")
        rows.append(row)
    return markdown(header, rows)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="2 + 1 problems, 1 s and 2 s, no long run")
    parser.add_argument("--skip-long", action="store_true", help="use the best energies that are on file")
    options = parser.parse_args()
    sizes, limits = ({20: 2, 100: 1}, (1.0, 2.0)) if options.quick else (SIZES, (1.0, 10.0))
    load = os.getloadavg()[0]
    records: list[dict[str, Any]] = []
    if not (options.quick or options.skip_long):
        for groups, count in sizes.items():
            for seed in range(FIRST_SEED, FIRST_SEED + count):
                records.append(run_cell(Cell("long", groups, seed, LONG_SECONDS[groups])))
                print(records[-1], flush=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for record in pool.imap(run_cell, list(cells(sizes, limits)), chunksize=1):
            records.append(record)
            print(record, flush=True)
    best = update_best(records)
    text = table([record for record in records if record["solver"] != "long"], best, limits)
    stem = "annealer_quick" if options.quick else "annealer"
    about = {**environment(), "load before": load, "load after": os.getloadavg()[0]}
    data = json.dumps({"environment": about, "records": records}, indent=1).encode()
    write_atomically(RESULTS / f"{stem}.json", lambda handle: handle.write(data))
    write_atomically(RESULTS / f"{stem}.md", lambda handle: handle.write(text.encode()))
    print(text)
    print(about, Path(RESULTS / f"{stem}.md"))


if __name__ == "__main__":
    main()

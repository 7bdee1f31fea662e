"""How far the exact solver reaches: nodes per minute, gaps over time, and the largest sizes proven.

    python -m benchmarks.studies.exact [--seconds 60] [--seeds 3] [--quick] [--tables FOLDER] [--record FILE.json]

Factor tables come from the low-rank generator (rank 64), separable and sparse ones from their generators, and, with
``--tables``, from every ``.npz`` file of a folder (problems measured on networks, written by ``ChoiceProblem.save``).
Times exclude compiling, which happens once per machine.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.study import Option, command_line
from qubo_compress import ChoiceProblem, Solution, solve
from qubo_compress.solvers.exact.exact import warm_up

FACTOR_SIZES = ((12, 10), (20, 15), (30, 15), (40, 15), (60, 15))
BAND_SIZES = ((100, 16, 1), (100, 16, 2), (100, 16, 3), (500, 16, 1))
SEPARABLE_SIZES = ((100, 16), (500, 16), (2000, 16), (2000, 40))


def timed(problem: ChoiceProblem, seconds: float) -> tuple[Solution, float]:
    """The exact solution within a time limit, and the seconds that it took."""
    start = time.perf_counter()
    solution = solve(problem, "exact", time_limit=seconds)
    return solution, time.perf_counter() - start - solution.timing["compile"]


def factor_table(seconds: float, seeds: int) -> Table:
    """Branch and bound on factor tables: the gap after a sixth of the time and at its end."""
    early = seconds / 6
    table = Table(title=f"branch and bound, low-rank factor tables, {seeds} seeds")
    columns = ("groups x choices", "root gap %", f"gap after {early:.0f} s %", f"gap after {seconds:.0f} s %", "proven")
    for column in (*columns, "seconds to proof (median)", "nodes per minute"):
        table.add_column(column, justify="right")
    for groups, choices in FACTOR_SIZES:
        rows = []
        for seed in range(seeds):
            problem = ChoiceProblem.random(kind="low-rank", groups=groups, choices=choices, seed=seed)
            solution, taken = timed(problem, seconds)
            bounds = [bound for _, _, bound in solution.trace if bound is not None]
            root = (solution.energy - bounds[0]) / abs(solution.energy)
            after, _ = (solution, taken) if taken <= early else timed(problem, early)
            rows.append(
                (root, after.gap, solution.gap, solution.status == "optimal", taken, 60 * solution.work / taken)
            )
        root, after, final, proven, taken, rate = (
            np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)
        )
        times = f"{np.median(taken[proven > 0]):.1f}" if proven.any() else "-"
        shown = [f"{100 * np.mean(values):.3g}" for values in (root, after, final)]
        table.add_row(f"{groups} x {choices}", *shown, f"{proven.sum():.0f}/{seeds}", times, f"{np.median(rate):,.0f}")
    return table


def separable_table(seconds: float, seeds: int) -> Table:
    """Dynamic programming without interactions."""
    table = Table(title=f"dynamic programming, no interactions, one budget, {seeds} seeds")
    for column in ("groups x choices", "proven", "seconds (worst)", "states (worst)", "largest relative gap"):
        table.add_column(column, justify="right")
    for groups, choices in SEPARABLE_SIZES:
        problems = [
            ChoiceProblem.random(kind="separable", groups=groups, choices=choices, seed=s) for s in range(seeds)
        ]
        answers = [timed(problem, seconds) for problem in problems]
        proven = sum(solution.status == "optimal" for solution, _ in answers)
        worst = max(taken for _, taken in answers)
        states = max(solution.work for solution, _ in answers)
        gap = max(solution.gap or 0.0 for solution, _ in answers)
        table.add_row(f"{groups} x {choices}", f"{proven}/{seeds}", f"{worst:.2f}", f"{states:,}", f"{gap:.1e}")
    return table


def sparse_table(seconds: float, seeds: int) -> Table:
    """Pair energies between near groups: dynamic programming over a band, one budget."""
    table = Table(title=f"sparse pair energies of reach w, one budget, {seeds} seeds")
    for column in ("groups x choices, w", "method", "proven", "seconds (worst)", "labels (worst)"):
        table.add_column(column, justify="right")
    for groups, choices, reach in BAND_SIZES:
        answers = [
            timed(ChoiceProblem.random("sparse", groups, choices, seed, neighbours=reach), seconds)
            for seed in range(seeds)
        ]
        proven = sum(solution.status == "optimal" for solution, _ in answers)
        worst = max(taken for _, taken in answers)
        labels = max(solution.work for solution, _ in answers)
        method = str(answers[0][0].details["method"])
        table.add_row(f"{groups} x {choices}, {reach}", method, f"{proven}/{seeds}", f"{worst:.2f}", f"{labels:,}")
    return table


def measured_records(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """One record for each problem in a folder."""
    records = []
    for path in sorted(folder.glob("*.npz")):
        problem = ChoiceProblem.load(path)
        solution, taken = timed(problem, seconds)
        bounds = [bound for _, _, bound in solution.trace if bound is not None]
        scale = max(abs(solution.energy), 1e-9)
        records.append(
            {
                "problem": path.stem,
                "groups": problem.num_groups,
                "choices": problem.num_choices,
                "method": solution.details["method"],
                "energy": solution.energy,
                "bound": solution.bound,
                "root gap": (solution.energy - bounds[0]) / scale if bounds else None,
                "gap": solution.gap,
                "seconds": taken,
                "seconds to proof": taken if solution.status == "optimal" else None,
                "nodes": solution.work,
                "nodes per minute": 60.0 * solution.work / max(taken, 1e-9),
                "time limit": seconds,
            }
        )
    return records


def measured_table(records: list[dict[str, Any]], seconds: float) -> Table:
    """The records as text; gaps are relative to energies that may be close to zero."""
    table = Table(title=f"problems measured on networks, {seconds:.0f} s")
    for column in ("problem", "groups", "choices", "method", "energy", "root gap %", "gap %", "proof s", "nodes/min"):
        table.add_column(column, justify="right")
    for record in records:
        shown = ["-" if record[key] is None else f"{100 * record[key]:.3g}" for key in ("root gap", "gap")]
        proof = record["seconds to proof"]
        table.add_row(
            record["problem"], str(record["groups"]), str(record["choices"]), record["method"],
            f"{record['energy']:.5g}", *shown, "-" if proof is None else f"{proof:.2f}",
            f"{record['nodes per minute']:,.0f}",
        )  # fmt: skip
    return table


def main() -> None:
    """Run from the command line."""
    options = command_line(
        __doc__, seconds=Option(60.0, "time limit of each solve"), seeds=Option(3, "problems of each size"),
        quick=Option(False, "2 seeds, 6 seconds"),
        tables=Option(None, "folder of problems measured on networks", type=Path),
        record=Option(None, "write the figures on those problems to this JSON file", type=Path),
    )  # fmt: skip
    seconds, seeds = (6.0, 2) if options.quick else (options.seconds, options.seeds)
    console = Console(width=140)
    console.print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}; warm-up {warm_up():.1f} s"
    )
    console.print(separable_table(seconds, seeds))
    console.print(sparse_table(seconds, seeds))
    console.print(factor_table(seconds, seeds))
    if options.tables is not None:
        records = measured_records(options.tables, seconds)
        console.print(measured_table(records, seconds))
        if options.record is not None:
            options.record.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How far the exact solver reaches: nodes per minute, gaps over time, and the largest sizes proven.

    python -m benchmarks.exact [--seconds 60] [--seeds 3] [--quick]

Factor tables come from the low-rank generator (rank 64), separable ones from the separable generator. Times exclude
compiling, which happens once per machine.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from qubo_compress import ChoiceProblem, Solution, solve
from qubo_compress.solvers.exact import warm_up

FACTOR_SIZES = ((12, 10), (20, 15), (30, 15), (40, 15), (60, 15))
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


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of each solve")
    parser.add_argument("--seeds", type=int, default=3, help="problems of each size")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 6 seconds")
    options = parser.parse_args()
    seconds, seeds = (6.0, 2) if options.quick else (options.seconds, options.seeds)
    console = Console(width=140)
    console.print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}; warm-up {warm_up():.1f} s"
    )
    console.print(separable_table(seconds, seeds))
    console.print(factor_table(seconds, seeds))


if __name__ == "__main__":
    main()

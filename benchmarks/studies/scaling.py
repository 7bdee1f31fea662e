"""How the annealer scales: a planted problem of 2000 groups x 16 choices and rank 512, and time per sweep against V r.

python -m benchmarks.studies.scaling [--seconds 60] [--quick]
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.records import environment, table, write
from benchmarks.study import Option, command_line
from qubo_compress import solve
from qubo_compress.problem.generators import planted_problem, random_problem
from qubo_compress.solvers.annealer import moves
from qubo_compress.solvers.annealer.annealer import warm_up
from qubo_compress.solvers.annealer.jobs import make_state
from qubo_compress.solvers.annealer.tables import FACTOR, make_tables

SHAPES = ((250, 64), (250, 512), (1000, 128), (1000, 512), (2000, 256), (2000, 512), (4000, 512))
CHOICES = 16


def planted(seconds: float, groups: int = 2000, rank: int = 512) -> dict[str, Any]:
    """Solve a problem with a proven optimum."""
    start = time.perf_counter()
    problem, optimum = planted_problem(groups, CHOICES, 0, rank=rank)
    built = time.perf_counter() - start
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, CHOICES, size=groups) for _ in range(20)]
    least, typical = problem.energy(optimum), float(np.mean([problem.energy(draw) for draw in draws]))
    record: dict[str, Any] = {"groups": groups, "choices": CHOICES, "rank": rank, "generated s": built}
    for name in ("greedy", "annealer"):
        start = time.perf_counter()
        solution = solve(problem, name, time_limit=seconds)
        above = solution.energy - least
        record[name] = {
            "seconds": time.perf_counter() - start - solution.timing.get("compile", 0.0),
            "of |optimum| %": 100 * above / abs(least),
            "of random to optimum %": 100 * above / (typical - least),
            "work": solution.work,
            "trace": [(s, 100 * (e - least) / abs(least)) for s, e, _ in solution.trace],
        }
    record["peak memory GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return record


def sweep_times(shapes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    """Time of a heat-bath sweep over every choice of every group, on one thread; best of several."""
    records = []
    for groups, rank in shapes:
        problem = random_problem("low-rank", groups, CHOICES, 0, rank=rank)
        tables = make_tables(problem)
        if tables.form != FACTOR and problem.factor is not None:  # small ones would be multiplied out
            tables = replace(tables, form=FACTOR, factor=problem.factor, dense=np.zeros((0, 0), dtype=np.float32))
        state = make_state(tables, np.random.default_rng(0), np.full(1, 1e-9))
        moves.anneal(tables, state, moves.Cooling(2, 0.05, 0.05, 0.5, 1.5, 0.0, 0), 0, 2)
        seconds = np.inf
        for _ in range(12):
            start = time.perf_counter()
            moves.anneal(tables, state, moves.Cooling(1, 0.05, 0.05, 0.5, 1.5, 0.0, 0), 0, 1)
            seconds = min(seconds, time.perf_counter() - start)
        products = problem.num_choices * rank
        records.append({
            "groups": groups, "rank": rank, "V r": products, "ms per sweep": 1e3 * seconds,
            "ns per V r": 1e9 * seconds / products, "GB/s read": 4 * products / seconds / 1e9,
        })  # fmt: skip
    return records


def main() -> None:
    """Run from the command line."""
    options = command_line(
        __doc__, seconds=Option(60.0, "time limit of the planted problem"),
        quick=Option(False, "300 groups, rank 64, 5 s"),
    )  # fmt: skip
    warm_up()
    load = os.getloadavg()[0]
    solved = planted(5.0, 300, 64) if options.quick else planted(options.seconds)
    sweeps = sweep_times(SHAPES[:2] if options.quick else SHAPES)
    columns = {
        "groups x choices": f"{{groups}} x {CHOICES}", "rank r": "{rank}",
        "V r (millions)": lambda r: f"{r['V r'] / 1e6:.2f}", "ms per sweep": "{ms per sweep:.2f}",
        "ns per V r": "{ns per V r:.2f}", "GB/s read": "{GB/s read:.1f}",
    }  # fmt: skip
    text = table(sweeps, columns)
    for name in ("greedy", "annealer"):
        figures = solved[name]
        text += (
            f"\n{name}, planted {solved['groups']} x {CHOICES}, rank {solved['rank']}: "
            f"{figures['of |optimum| %']:.3f} % above the optimum relative to its size, "
            f"{figures['of random to optimum %']:.2f} % of the way from random to optimum, "
            f"in {figures['seconds']:.1f} s ({figures['work']} units of work).\n"
        )
    text += f"\nPeak memory of the process: {solved['peak memory GB']:.2f} GB.\n"
    stem = "scaling_quick" if options.quick else "scaling"
    about = {**environment(), "load before": load, "load after": os.getloadavg()[0]}
    write(f"{stem}.json", {"environment": about, "planted": solved, "sweeps": sweeps})
    write(f"{stem}.md", text)


if __name__ == "__main__":
    main()

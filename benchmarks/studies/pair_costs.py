"""What pair costs of budgets take: annealer moves per CPU second with and without them, and answers of a few solvers.

1,000 groups x 4 choices, each group coupled to 10 others by energies; then the same with pair costs of one and of two
budgets, and channels of layers, where pair costs are what removal saves.

python -m benchmarks.studies.pair_costs [--seconds 10]
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from benchmarks.records import environment, table, write
from benchmarks.study import Option, command_line
from qubo_compress import ChoiceProblem, solve
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.annealer import moves
from qubo_compress.solvers.annealer.annealer import warm_up
from qubo_compress.solvers.annealer.jobs import make_state, trades_per_sweep
from qubo_compress.solvers.annealer.tables import make_tables

GROUPS, CHOICES, REACH, SWEEPS, REPEATS = 1000, 4, 5, 300, 3


def problems() -> dict[str, ChoiceProblem]:
    """Problems by name; pair costs of ``sparse`` ones couple the same groups as their energies."""
    shape = (GROUPS, CHOICES, 0)
    return {
        "one budget": random_problem("sparse", *shape, neighbours=REACH),
        "one budget, pair costs": random_problem("sparse", *shape, neighbours=REACH, pair_costs=0.5),
        "two budgets": random_problem("sparse", *shape, neighbours=REACH, budgets=2),
        "two budgets, pair costs": random_problem("sparse", *shape, neighbours=REACH, budgets=2, pair_costs=0.5),
        "channels": random_problem("channels", *shape, neighbours=REACH),
    }


def speeds(all_problems: dict[str, ChoiceProblem]) -> list[dict[str, Any]]:
    """Median moves per CPU second of a cooling run; problems take turns, so that the machine's load is shared."""
    seconds: dict[str, list[float]] = {name: [] for name in all_problems}
    moved: dict[str, int] = {}
    for _ in range(REPEATS):
        for name, problem in all_problems.items():
            tables = make_tables(problem)
            state = make_state(tables, np.random.default_rng(0), np.full(problem.num_budgets, 1e-6))
            trades = trades_per_sweep(tables)
            begin = time.process_time()
            moves.anneal(tables, state, moves.Cooling(SWEEPS, 1.0, 0.001, 0.8, 1.5, 0.05, trades), 0, SWEEPS)
            seconds[name].append(time.process_time() - begin)
            moved[name] = SWEEPS * (GROUPS + trades)
    first = moved["one budget"] / float(np.median(seconds["one budget"]))
    return [
        {
            "problem": name, "millions": moved[name] / float(np.median(seconds[name])) / 1e6,
            "relative": moved[name] / float(np.median(seconds[name])) / first,
        }
        for name in all_problems
    ]  # fmt: skip


def answers(all_problems: dict[str, ChoiceProblem], seconds: float) -> list[dict[str, Any]]:
    """Energies of a few solvers within the true budgets."""
    records = []
    for name, problem in all_problems.items():
        record: dict[str, Any] = {"problem": name}
        for solver in ("uniform", "greedy", "annealer"):
            options = {"threads": 1} if solver == "annealer" else {}
            solution = solve(problem, solver, time_limit=seconds, **options)
            record[solver] = solution.energy
            record[f"{solver} bound"] = solution.bound
        records.append(record)
    return records


def main() -> None:
    """Run from the command line."""
    options = command_line(__doc__, seconds=Option(10.0, "time limit of each solver"))
    warm_up()
    load = os.getloadavg()[0]
    found = problems()
    measured, solved = speeds(found), answers(found, options.seconds)
    columns = {"problem": "{problem}", "million moves per CPU s": "{millions:.2f}", "relative": "{relative:.2f}"}
    text = table(measured, columns) + "\n"
    text += table(solved, {"problem": "{problem}", **{s: f"{{{s}:.3f}}" for s in ("uniform", "greedy", "annealer")}})
    about = {**environment(), "load before": load, "load after": os.getloadavg()[0]}
    write("pair_costs.json", {"environment": about, "speeds": measured, "answers": solved})
    write("pair_costs.md", text)


if __name__ == "__main__":
    main()

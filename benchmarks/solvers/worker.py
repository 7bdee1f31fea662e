"""One contestant in a separate process: ``python -m benchmarks.solvers.worker NAME CORE``.

Reads one job a line, ``{"instance", "seconds", "seed"}``, and answers with ``{"ready": true}``, when the problem is
built and the clock starts, and then with the record. Everything is pinned to one core, child processes included.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from typing import IO, Any

from benchmarks.solvers.contenders import CONTENDERS
from benchmarks.solvers.public import INSTANCES
from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import QuboCompressError
from qubo_compress.problem.generators import random_problem

_TRACE_POINTS = 60
_WARM_SECONDS = 2.0


def solved(problem: ChoiceProblem, contender: str, seconds: float, seed: int) -> dict[str, Any]:
    """Solve once; what came of it. Bounds are rounded up where all energies are whole, for everybody alike."""
    before, start = cpu_seconds(), time.perf_counter()
    try:
        solution = solve(problem, CONTENDERS[contender](), time_limit=seconds, seed=seed)
    except Exception as error:  # whatever a contender raises is its result
        return {
            "error": f"{type(error).__name__}: {error}",
            "taken": time.perf_counter() - start,
            "cpu_seconds": cpu_seconds() - before,
        }
    compiling = solution.timing.get("compile", 0.0)
    trace = [[round(at, 4), energy] for at, energy, _ in solution.trace if math.isfinite(energy)]
    step = max(1, len(trace) // _TRACE_POINTS)
    bound = solution.bound
    if bound is not None and whole(problem):
        bound = float(math.ceil(bound - 1e-9 * max(1.0, abs(bound))))
    return {
        "energy": solution.energy,
        "bound": bound,
        "proven": solution.status == "optimal" or (bound is not None and solution.energy <= bound),
        "assignment": solution.assignment.tolist(),
        "taken": time.perf_counter() - start - compiling,
        "cpu_seconds": cpu_seconds() - before,
        "compile": compiling,
        "trace": trace[::step] + trace[-1:],
        "resolution": solution.details.get("resolution"),
        "notes": [note for note in solution.notes if "claimed" in note or "dropped" in note],
    }


def whole(problem: ChoiceProblem) -> bool:
    """Whether every energy is a whole number."""
    if problem.factor is not None:
        return False
    pairs = [] if problem.pairs is None else [problem.pairs.data]
    return all(bool((values == values.round()).all()) for values in [problem.linear, *pairs])


def cpu_seconds() -> float:
    """Used so far by this process and by its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _warm_up(contender: str) -> float:
    """Import and compile for every structure that the instances have; seconds that took."""
    start = time.perf_counter()
    for kind in ("separable", "sparse", "dense"):
        for budgets in (0, 1, 3):
            problem = random_problem(kind, groups=5, choices=3, seed=0, budgets=budgets)
            try:
                solve(problem, CONTENDERS[contender](), time_limit=_WARM_SECONDS)
            except QuboCompressError:
                continue
    return time.perf_counter() - start


def main() -> None:
    """Work until the input ends."""
    name, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # solvers print
    _say(answers, {"started": _warm_up(name)})
    for line in sys.stdin:
        job = json.loads(line)
        problem = INSTANCES[job["instance"]].make()
        _say(answers, {"ready": True})
        _say(answers, solved(problem, name, job["seconds"], job["seed"]))


def _say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main()

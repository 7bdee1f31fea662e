"""Every solver on the same problems, with the same wall clock and one core: ``python -m benchmarks.solvers``.

The time limit includes building, embedding and decoding; only compiling and importing, which happen once per machine,
are excluded (each solver first solves a tiny problem). Each solve runs pinned to one core, two side by side on two
cores, in an order in which a change in the machine's load hits all solvers alike. Records go to
``benchmarks/results/solvers.jsonl`` one by one; what is there is not run again. Tables and pictures are made by
``python -m benchmarks.solvers.tables``.

Tiers:

* ``quick``: six instances, three seeds, 1 s and 10 s. At most an hour on two cores.
* ``dense20``: 20 problems of 20 x 16, half of them with a planted optimum: ``annealer`` with ten seeds and 1 s; on the
  first six of them the others with one seed and 10 s, for times to target; and for the best known energies of those
  without a planted optimum, ``annealer`` once more with another seed and a minute each, ten minutes in all.
* ``large``: 100 and 500 groups of every kind at 1 and 10 s, one seed, and four solvers at 60 s.
* ``full``: all instances, ten seeds, 1, 10 and 60 s. Days; says which share is done.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.networks import NetworkUnavailable
from benchmarks.processes import peak_memory, reset_peak_memory
from benchmarks.records import RESULTS, append, environment, read
from benchmarks.solvers.contestants import CONTESTANTS, available
from benchmarks.solvers.instances import FIRST_SEED, generated_name, names, problem_of
from benchmarks.study import Option, command_line
from qubo_compress import ChoiceProblem, solve
from qubo_compress._internal.processors import usable_processors
from qubo_compress.errors import QuboCompressError
from qubo_compress.problem.generators import random_problem

PATH = RESULTS / "solvers.jsonl"

QUICK = (
    "cifar10-resnet20/layer/12x",
    "digits/filter/10x",
    generated_name("dense", 20, FIRST_SEED),
    generated_name("dense", 100, FIRST_SEED),
    generated_name("sparse", 100, FIRST_SEED),
    generated_name("separable", 500, FIRST_SEED),
)
LONGEST_OF_LARGE = ("annealer", "auto", "exact", "steepest-descent")
LONG_SEED = 1000
_TRACE_POINTS = 200


@dataclass(frozen=True)
class Cell:
    """One solve."""

    instance: str
    solver: str
    seed: int
    seconds: float


def cells(tier: str) -> Iterator[Cell]:
    """All solves of a tier, the solvers innermost."""
    solvers = available()
    if tier == "dense20":
        dense = [generated_name(kind, 20, FIRST_SEED + i) for i in range(10) for kind in ("dense", "planted")]
        for seed in range(10):
            for instance in dense:
                yield Cell(instance, "annealer", seed, 1.0)
        for instance in dense[:6]:
            for solver in solvers:
                if solver not in ("annealer", "random"):
                    yield Cell(instance, solver, 0, 10.0)
        for instance in dense[::2]:
            yield Cell(instance, "annealer", LONG_SEED, 60.0)
        return
    instances: tuple[str, ...]
    if tier == "quick":
        instances, seeds, limits = QUICK, range(3), (1.0, 10.0)
    elif tier == "large":
        kinds = ("separable", "sparse", "dense", "low-rank", "planted")
        instances = tuple(generated_name(kind, groups, FIRST_SEED) for groups in (100, 500) for kind in kinds)
        seeds, limits = range(1), (1.0, 10.0)
    else:
        instances, seeds, limits = tuple(names()), range(10), (1.0, 10.0, 60.0)
    for seconds in limits:
        for seed in seeds:
            for instance in instances:
                for solver, contestant in solvers.items():
                    if seed == 0 or contestant.random:
                        yield Cell(instance, solver, seed, seconds)
    if tier == "large":
        for instance in instances:
            for solver in LONGEST_OF_LARGE:
                yield Cell(instance, solver, 0, 60.0)


def run_cell(cell: Cell) -> dict[str, Any] | None:
    """Solve once; the record says what came of it, None when the solver is not run on such a problem."""
    problem = _problem(cell.instance)
    contestant = CONTESTANTS[cell.solver]
    if not contestant.takes(problem):
        return None
    solver = contestant.make()
    _warm_up(cell.solver)
    reset_peak_memory()
    resident = _peak_memory()
    record: dict[str, Any] = {**asdict(cell), "load": round(os.getloadavg()[0], 2)}
    start = time.perf_counter()
    try:
        solution = solve(problem, solver, time_limit=cell.seconds, seed=cell.seed)
    except Exception as error:  # whatever a contestant raises is its result, and no reason to lose the others'
        taken = time.perf_counter() - start
        return {**record, "error": f"{type(error).__name__}: {error}", "taken": taken, "memory": _peak_memory()}
    taken = time.perf_counter() - start
    compiling = solution.timing.get("compile", 0.0)
    trace = [point for point in solution.trace if point[1] < float("inf")]
    step = max(1, len(trace) // _TRACE_POINTS)
    kept = trace[::step] + trace[-1:]
    return {
        **record,
        "energy": solution.energy,
        "bound": solution.bound,
        "taken": taken - compiling,
        "work": solution.work,
        "assignment": solution.assignment.tolist(),
        "trace": [[round(seconds, 5), energy] for seconds, energy, _ in kept],
        "timing": {name: round(seconds, 5) for name, seconds in solution.timing.items()},
        "details": {name: value for name, value in solution.details.items() if isinstance(value, int | float | str)},
        "memory": _peak_memory(),
        "memory_added": round(max(0.0, _peak_memory() - resident), 1),
        "notes": [note for note in solution.notes if "claimed" in note or "dropped" in note],
    }


@lru_cache(maxsize=4)
def _problem(instance: str) -> ChoiceProblem:
    return problem_of(instance)


@lru_cache
def _warm_up(solver: str) -> None:
    """Import and compile: once for each solver and process."""
    for kind in ("separable", "sparse", "dense", "low-rank"):
        problem = random_problem(kind, groups=4, choices=3, seed=0)
        if CONTESTANTS[solver].takes(problem):
            try:
                solve(problem, CONTESTANTS[solver].make(), time_limit=0.3)
            except QuboCompressError:
                continue  # it is the real solve that is recorded


def _peak_memory() -> float:
    """Peak resident memory in MB since the last reset."""
    return round(peak_memory() * 1.024**2, 1)


def _pin(cores: Any) -> None:
    """One core and one thread for this worker."""
    core = cores.get()
    os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)


def missing(tier: str, path: Path = PATH) -> list[Cell]:
    """Cells of a tier that have no record yet and can be run here."""
    done = {(r["instance"], r["solver"], r["seed"], r["seconds"]) for r in read(path)}
    wanted = [c for c in cells(tier) if (c.instance, c.solver, c.seed, c.seconds) not in done]
    runnable: dict[str, bool] = {}
    for instance in dict.fromkeys(cell.instance for cell in wanted):
        try:
            _problem(instance)
            runnable[instance] = True
        except NetworkUnavailable as reason:
            print(f"{instance}: skipped, {reason}")
            runnable[instance] = False
    return [
        cell for cell in wanted if runnable[cell.instance] and CONTESTANTS[cell.solver].takes(_problem(cell.instance))
    ]


def run(tier: str, workers: int, minutes: float) -> None:
    """Run what is missing, until the time is used up."""
    left = missing(tier)
    about = environment()
    seconds = sum(cell.seconds for cell in left) / workers
    print(f"{tier}: {len(left)} solves, at most {seconds / 60:.0f} minutes on {workers} cores", flush=True)
    context = multiprocessing.get_context("spawn")
    cores: Any = context.Queue()
    for core in sorted(os.sched_getaffinity(0))[:workers]:
        cores.put(core)
    deadline = time.monotonic() + 60 * minutes
    with context.Pool(workers, initializer=_pin, initargs=(cores,)) as pool:
        for number, record in enumerate(pool.imap(run_cell, left, chunksize=1), 1):
            if record is not None:
                append(PATH, {**record, "tier": tier, **about})
                shown = record.get("energy", record.get("error"))
                print(
                    f"{number}/{len(left)} {record['instance']} {record['solver']} {record['seconds']:g} s: {shown}",
                    flush=True,
                )
            if time.monotonic() > deadline:
                print(f"stopped after {minutes:g} minutes: {number} of {len(left)} done; run again to go on")
                pool.terminate()
                return


def main() -> None:
    """Run from the command line."""
    options = command_line(
        __doc__, tier=Option("quick", choices=("quick", "dense20", "large", "full")),
        workers=min(2, usable_processors()), minutes=Option(60.0, "stop after so long; run again to go on"),
    )  # fmt: skip
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers, before they import anything
    run(options.tier, options.workers, options.minutes)
    total = len(list(cells(options.tier)))
    print(json.dumps({"tier": options.tier, "cells": total, "not yet run": len(missing(options.tier))}))

"""What is proven, on one core: dense pairs, budgets that exclude each other, and ``auto`` against its parts.

    python -m benchmarks.studies.proofs [dense] [infeasible] [mixed] [table] [--seconds 10]

``dense``: 20 random problems of 12 x 8 to 16 x 10 with pair energies between all groups and one or two budgets. How
many does each solver prove, and how far apart are its answer and its bound where it does not?
``infeasible``: six problems that a linear program refutes and three that only parity refutes. Is that proven?
``mixed``: 30 problems of five kinds. Is ``auto`` ever worse than ``annealer`` or ``exact`` alone with the same time?

Everything runs on one core (affinity, where the system has it). Seconds are those of the processor, of this process
and of those it starts, without compiling, because a shared machine stretches the wall clock; the limit is on the wall
clock.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from benchmarks.records import Record, newest
from benchmarks.study import Option, Options, Study, grid
from qubo_compress import ChoiceProblem, Solution, solve
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound
from qubo_compress.problem.energy_scale import energy_scale

SIZES = ((12, 8), (13, 9), (14, 10), (15, 10), (16, 10))
DENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("exact", {}),
    "exact without cfn": ("exact", {"cfn": False}),
    "cfn": ("cfn", {}),
    "cfn, toulbar2 alone": ("cfn", {"local_search": False}),
    "scip": ("scip", {}),
    "annealer": ("annealer", {}),
    "auto": ("auto", {}),
}
"""Contestants by name: the registered solver and its options."""

STUDY = Study(__doc__, "proofs", field="step", seconds=10.0, solvers=Option(list(DENSE), "of the dense problems"))

INFEASIBLE = ("exact", "auto", "annealer", "greedy", "cfn")
PARTS = ("annealer", "exact", "auto")
KINDS = ("separable", "sparse", "dense", "low-rank", "planted")
MIXED_SIZES = ((12, 6), (30, 8), (60, 10))


def one_core() -> None:
    """Run on one core from here on, with everything that is started."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def processor_seconds() -> float:
    """Of this process and of those that it started and waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def timed(problem: ChoiceProblem, solver: str, seconds: float, **options: Any) -> tuple[Solution | None, str, float]:
    """The solution, or None and why there is none, and the processor seconds."""
    one_core()
    begin = processor_seconds()
    solution, outcome = None, ""
    try:
        solution = solve(problem, solver, time_limit=seconds, **options)
        outcome = solution.status
    except InfeasibleBudget:
        outcome = "infeasible"
    except NoFeasibleFound:
        outcome = "nothing found"
    return solution, outcome, processor_seconds() - begin


def compiled(solve_once: Callable[[], object]) -> None:
    """Compile outside the measurement."""
    one_core()
    with contextlib.suppress(NoFeasibleFound):  # a loaded machine may not even start a process in that time
        solve_once()


@STUDY.step(lambda o: grid(size=[list(s) for s in SIZES], budgets=[1, 2], seed=[0, 1], solver=o.solvers))
def dense(options: Options, size: list[int], budgets: int, seed: int, solver: str) -> Record:
    """One solver on one dense problem."""
    groups, choices = size
    name, settings = DENSE[solver]
    tiny = ChoiceProblem.random(kind="dense", groups=4, choices=3, seed=0)
    compiled(lambda: solve(tiny, name, time_limit=0.5, **settings))
    problem = ChoiceProblem.random(kind="dense", groups=groups, choices=choices, seed=seed, budgets=budgets)
    solution, outcome, used = timed(problem, name, options.seconds, **settings)
    assert solution is not None
    return {"outcome": outcome, "energy": solution.energy, "bound": solution.bound, "gap": solution.gap, "used": used}


def opposed(groups: int, budgets: int, seed: int) -> ChoiceProblem:
    """Costs that add up to at least 50 per budget and group, and limits that leave one less in total."""
    rng = np.random.default_rng(seed)
    total = 4 * groups
    costs = rng.integers(1, 99, size=(budgets, total))
    lack = 50 * budgets - costs.sum(axis=0)
    costs[rng.integers(budgets, size=total), np.arange(total)] += np.maximum(lack, 0)
    limits = np.full(budgets, 50 * groups)
    limits[0] -= 1
    return with_pairs(groups, 4, costs, limits, seed)


def parity(groups: int, seed: int) -> ChoiceProblem:
    """Even costs in two budgets, which have to add up to exactly an odd number."""
    rng = np.random.default_rng(seed)
    half = rng.integers(1, 10**4, size=(groups, 3))
    costs = 2 * np.stack([half, 10**4 - half]).reshape(2, -1)
    middle = int(costs[0].reshape(groups, 3).mean(axis=1).sum()) // 2 * 2 + 1
    return with_pairs(groups, 3, costs, np.array([middle, 2 * 10**4 * groups - middle]), seed)


def with_pairs(groups: int, choices: int, costs: np.ndarray, limits: np.ndarray, seed: int) -> ChoiceProblem:
    """These budgets on the energies of a random problem with sparse pairs."""
    drawn = ChoiceProblem.random(kind="sparse", groups=groups, choices=choices, seed=seed)
    return ChoiceProblem(drawn.linear, drawn.group_offsets, costs, limits, pairs=drawn.pairs)


EXCLUDED: dict[str, Callable[[], ChoiceProblem]] = {
    **{
        f"linear program, {groups} groups, {budgets} budgets": lambda g=groups, b=budgets: opposed(g, b, g)
        for groups, budgets in ((12, 2), (20, 3), (30, 2), (40, 4), (60, 3), (100, 2))
    },
    **{f"parity, {groups} groups, 2 budgets": lambda g=groups: parity(g, g) for groups in (15, 25, 40)},
}


@STUDY.step(lambda o: grid(problem=EXCLUDED, solver=INFEASIBLE))
def infeasible(options: Options, problem: str, solver: str) -> Record:
    """One solver on one problem that has no feasible assignment."""
    tiny = ChoiceProblem.random(kind="sparse", groups=4, choices=3, seed=0, budgets=2)
    compiled(lambda: solve(tiny, solver, time_limit=0.5))
    _, outcome, used = timed(EXCLUDED[problem](), solver, options.seconds)
    return {"outcome": outcome, "used": used}


def mixed_problems(_: Options) -> Iterable[Record]:
    """30 problems and who solves them."""
    return grid(kind=KINDS, size=[list(size) for size in MIXED_SIZES], budgets=[1, 2], solver=PARTS)


@STUDY.step(mixed_problems)
def mixed(options: Options, kind: str, size: list[int], budgets: int, solver: str) -> Record:
    """One solver on one problem, with half of the time."""
    groups, choices = size
    more = {} if kind == "planted" else {"budgets": budgets}  # those with a planted optimum have one budget
    seed = 10 * groups + budgets
    tiny = ChoiceProblem.random(kind=kind, groups=4, choices=3, seed=0, **more)
    compiled(lambda: solve(tiny, solver, time_limit=0.5))
    problem = ChoiceProblem.random(kind=kind, groups=groups, choices=choices, seed=seed, **more)
    solution, outcome, used = timed(problem, solver, options.seconds / 2)
    assert solution is not None
    scale = energy_scale(problem.without_constant())
    return {
        "outcome": outcome, "energy": solution.energy, "gap": solution.gap, "used": used,
        "reach": scale.reach(solution.energy - problem.constant),
    }  # fmt: skip


def _sized(step: str) -> list[Record]:
    """The records of a step, with sizes that can be keys."""
    return [record | {"size": tuple(record["size"])} for record in STUDY.records(step)]


def dense_table() -> Iterator[str]:
    """Who proves what."""
    records = newest(_sized("dense"), "size", "budgets", "seed", "solver")
    yield "## Dense pairs, 12 x 8 to 16 x 10, one and two budgets, one core\n"
    yield "| solver | proven | median CPU s | most CPU s | median gap where open | worst gap |"
    yield "| --- | --: | --: | --: | --: | --: |"
    for solver in DENSE:
        found = [r for r in records if r["solver"] == solver]
        if not found:
            continue
        used = [r["used"] for r in found]
        gaps = [r["gap"] if r["gap"] is not None else np.inf for r in found if r["outcome"] != "optimal"]
        shown = [f"{100 * statistics.median(gaps):.3g} %", f"{100 * max(gaps):.3g} %"] if gaps else ["-", "-"]
        proven = len(found) - len(gaps)
        yield (
            f"| `{solver}` | {proven} of {len(found)} | {statistics.median(used):.2f} | {max(used):.2f} | "
            f"{shown[0]} | {shown[1]} |"
        )
    yield ""
    yield "| problem | optimum | " + " | ".join(f"bound of `{solver}`" for solver in DENSE) + " |"
    yield "| --- | --: |" + " --: |" * len(DENSE)
    for size, budgets, seed in dict.fromkeys((r["size"], r["budgets"], r["seed"]) for r in records):
        row = [r for r in records if (r["size"], r["budgets"], r["seed"]) == (size, budgets, seed)]
        by_solver = {r["solver"]: r for r in row}
        proven = [r["energy"] for r in row if r["outcome"] == "optimal"]
        bounds = [_shown(by_solver.get(solver, {}).get("bound")) for solver in DENSE]
        yield (
            f"| {size[0]} x {size[1]}, {budgets} budgets, seed {seed} | {_shown(min(proven, default=None))} | "
            f"{' | '.join(bounds)} |"
        )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def infeasible_table() -> Iterator[str]:
    """Which problems are proven to be infeasible, by whom, in how many seconds."""
    records = newest(STUDY.records("infeasible"), "problem", "solver")
    yield "\n## Budgets that exclude each other: processor seconds to the proof\n"
    yield "| problem | " + " | ".join(f"`{solver}`" for solver in INFEASIBLE) + " |"
    yield "| --- |" + " --: |" * len(INFEASIBLE)
    for name in EXCLUDED:
        cells = []
        for solver in INFEASIBLE:
            found = [r for r in records if r["problem"] == name and r["solver"] == solver]
            said = found[-1] if found else {"outcome": "-", "used": 0.0}
            cells.append(f"{said['used']:.2f}" if said["outcome"] == "infeasible" else said["outcome"])
        yield f"| {name} | {' | '.join(cells)} |"


def mixed_table() -> Iterator[str]:
    """How far ``auto`` is from the better of its parts."""
    records = newest(_sized("mixed"), "kind", "size", "budgets", "solver")
    yield "\n## `auto` against its parts on 30 problems, half of the time each, one core\n"
    yield "| problem | proven by | `annealer` | `exact` | `auto` | `auto` above the better one |"
    yield "| --- | --- | --: | --: | --: | --: |"
    worst = 0.0
    for kind, size, budgets in dict.fromkeys((r["kind"], r["size"], r["budgets"]) for r in records):
        row = {r["solver"]: r for r in records if (r["kind"], r["size"], r["budgets"]) == (kind, size, budgets)}
        if set(row) != set(PARTS):
            continue
        apart = row["auto"]["energy"] - min(row["annealer"]["energy"], row["exact"]["energy"])
        share = apart / row["auto"]["reach"]
        worst = max(worst, share)
        proven = ", ".join(solver for solver in PARTS if row[solver]["outcome"] == "optimal") or "nobody"
        energies = " | ".join(f"{row[solver]['energy']:.6f}" for solver in PARTS)
        yield f"| {kind}, {size[0]} x {size[1]}, {budgets} | {proven} | {energies} | {100 * share:.4f} % |"
    yield f"\nThe worst: {100 * worst:.4f} % above the better of the two."


@STUDY.table
def tables(_: Options) -> str:
    """All tables of what is on record."""
    return "\n".join(["# Proofs\n", *dense_table(), *infeasible_table(), *mixed_table(), ""])


if __name__ == "__main__":
    STUDY.main()

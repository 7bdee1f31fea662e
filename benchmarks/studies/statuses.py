"""Are bounds and statuses right at every scale? Random problems against enumeration.

    python -m benchmarks.studies.statuses --problems 2000

Each random problem, small enough to be enumerated, is solved at scales of its energies from 1e-12 to 1e9 and with
constants up to 1e9, by every solver that claims bounds. Counted are answers called optimal that are not, bounds above
the optimum (claims that `solve` dropped included), and proofs that one scale has and another lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from benchmarks.study import command_line
from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound
from qubo_compress.solvers import Solution, names
from qubo_compress.solvers.exact.certificates import least_energy
from qubo_compress.testing.solvers import rescaled

SCALES = (1e-12, 1e-7, 1e-3, 1.0, 1e4, 1e9)
CONSTANTS = (0.0, 1.0, -1e6, 1e9)
SOLVERS = ("exact", "annealer", "auto", "scip", "clado")
MOST_COMBINATIONS = 20_000
WORK = {"annealer": 200, "auto": 2000}
"""Work limits of solvers that go on to the end of the time where their bound does not prove the answer.

Whether the annealer's bound, computed beside it, arrives before the work is done is a matter of time: its proofs are
not compared between scales."""

FALSE_OPTIMAL = 1e-5
"""How far above the optimum, as a share of its distance from the least linear terms, `optimal` is false: ten gaps."""


@dataclass
class Tally:
    """What was found, by solver."""

    runs: Counter[str] = field(default_factory=Counter)
    proven: Counter[str] = field(default_factory=Counter)
    false_optimal: Counter[str] = field(default_factory=Counter)
    invalid_bounds: Counter[str] = field(default_factory=Counter)
    lost_proofs: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def random_small(rng: np.random.Generator) -> ChoiceProblem:
    """A problem of any structure with up to three budgets and at most `MOST_COMBINATIONS` assignments."""
    while True:
        sizes = rng.integers(1, 7, size=int(rng.integers(1, 11)))
        if np.prod(sizes.astype(float)) <= MOST_COMBINATIONS:
            break
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    linear = _linear(rng, total)
    budgets = int(rng.integers(0, 4))
    costs = rng.integers(0, int(rng.choice([3, 50, 10**6, 10**12])), size=(budgets, total))
    problem = ChoiceProblem(
        linear=linear, group_offsets=offsets, costs=costs, limits=np.full(budgets, 2**52), **_pairs(rng, offsets)
    )
    least = problem.smallest_totals()
    most = np.array([np.maximum.reduceat(row, offsets[:-1]).sum() for row in costs], dtype=np.int64)
    share = rng.choice([0.1, 0.3, 0.6, 1.0] if rng.random() < 0.9 else [0.0, 0.1], size=budgets)
    return problem.with_limits((least + share * (most - least)).astype(np.int64))


def _linear(rng: np.random.Generator, total: int) -> np.ndarray:
    kind = rng.integers(5)
    if kind == 0:
        return np.zeros(total)
    if kind == 1:
        return rng.integers(0, 4, size=total).astype(float)  # ties, and an optimum of zero
    if kind == 2:
        return np.exp(rng.normal(0.0, 4.0, size=total))  # losses of very unlike sizes
    return rng.normal(size=total) * (1.0 if kind == 3 else 30.0)


def _pairs(rng: np.random.Generator, offsets: np.ndarray) -> dict[str, object]:
    total, kind = int(offsets[-1]), rng.integers(4)
    if kind == 0:
        return {}
    if kind == 1:
        return {"factor": rng.normal(size=(total, int(rng.integers(1, 9)))).astype(np.float32)}
    group = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    table = rng.normal(size=(total, total)) * rng.choice([0.1, 1.0, 10.0])
    table = np.triu(table, 1) + np.triu(table, 1).T
    apart = np.abs(group[:, None] - group[None, :])
    near = apart <= 2 if kind == 2 else apart > 0
    return {"pairs": sparse.csr_array(np.where(near & (apart > 0), table, 0.0))}


def judge(problem: ChoiceProblem, solution: Solution, optimum: float) -> list[str]:
    """What is wrong with a solution of a problem without a constant, whose optimum is known."""
    base = float(np.minimum.reduceat(problem.linear, problem.group_offsets[:-1]).sum())
    sizes = np.abs(problem.diagonal).sum() + (0.0 if problem.pairs is None else np.abs(problem.pairs.data).sum())
    rounding = 1e-14 * float(sizes) + 4e-16 * abs(solution.energy)
    wrong = []
    energy = problem.energy(solution.assignment)
    if solution.status == "optimal" and energy > optimum + FALSE_OPTIMAL * abs(optimum - base) + rounding:
        wrong.append("false optimal")
    return wrong + (["invalid bound"] if any("bound" in note and "dropped" in note for note in solution.notes) else [])


def variants(problem: ChoiceProblem, rng: np.random.Generator) -> Iterator[tuple[float, float, ChoiceProblem]]:
    """The problem as it is, at two other scales, with a constant, and with both."""
    first, second = rng.choice([scale for scale in SCALES if scale != 1.0], size=2, replace=False).tolist()
    constant = float(rng.choice(CONSTANTS[1:]))
    for scale, added in ((1.0, 0.0), (first, 0.0), (second, 0.0), (1.0, constant), (first, constant)):
        yield scale, added, rescaled(problem, scale, added)


def run(problems: int, seed: int, time_limit: float, solvers: tuple[str, ...] = SOLVERS) -> Tally:
    """Solve random problems at several scales and count what is wrong."""
    rng, tally = np.random.default_rng(seed), Tally()
    for number in range(problems):
        if number and number % 100 == 0:
            print(f"{number} problems, {len(tally.faults)} faults so far", flush=True)
        problem = random_small(rng)
        made = list(variants(problem, rng))
        for solver in solvers:
            statuses = [_one(number, solver, *variant, time_limit, tally) for variant in made]
            if "optimal" in statuses and "feasible" in statuses and solver not in WORK:
                tally.lost_proofs[solver] += 1
                tally.faults.append(f"problem {number}, {solver}: {statuses}")
    return tally


def _one(
    number: int, solver: str, scale: float, constant: float, problem: ChoiceProblem, limit: float, tally: Tally
) -> str:
    bare = problem.without_constant()
    optimum = least_energy(bare)
    tally.runs[solver] += 1
    where = f"problem {number}, {solver}, scale {scale:g}, constant {constant:g}"
    try:
        solution = solve(problem, solver, time_limit=limit, work_limit=WORK.get(solver), seed=number)
    except (InfeasibleBudget, NoFeasibleFound) as refusal:
        if optimum < np.inf and isinstance(refusal, InfeasibleBudget):
            tally.false_optimal[solver] += 1
            tally.faults.append(f"{where}: falsely infeasible")
        return "infeasible" if isinstance(refusal, InfeasibleBudget) else "nothing found"
    tally.proven[solver] += solution.status == "optimal"
    for wrong in judge(bare, solution, optimum):
        counter = tally.false_optimal if wrong == "false optimal" else tally.invalid_bounds
        counter[solver] += 1
        gap = problem.without_constant().energy(solution.assignment) - optimum
        tally.faults.append(f"{where}: {wrong}; {problem.structure}, {gap:.3g} above {optimum:.9g}; {solution.notes}")
    if solution.bound is not None:
        above = (solution.bound - constant) - optimum
        slack = 1e-9 * abs(optimum) + 1e-12 * float(np.abs(problem.diagonal).sum()) + 1e-15 * abs(constant)
        if above > slack:
            tally.invalid_bounds[solver] += 1
            tally.faults.append(f"{where}: bound {above:.3g} above the optimum {optimum:.9g}; {solution.notes}")
    return solution.status


def main() -> None:
    """Print the counts, and every fault."""
    known = [name for name in SOLVERS if name in names()]
    given = command_line(__doc__, problems=100, seed=0, time_limit=20.0, solvers=known)
    tally = run(given.problems, given.seed, given.time_limit, tuple(given.solvers))
    for fault in tally.faults:
        print(fault)
    for solver in given.solvers:
        print(
            f"{solver}: {tally.runs[solver]} runs, {tally.proven[solver]} proven, "
            f"{tally.false_optimal[solver]} false optimal, {tally.invalid_bounds[solver]} invalid bounds, "
            f"{tally.lost_proofs[solver]} problems with a proof at one scale and none at another"
        )


if __name__ == "__main__":
    main()

"""Assignments near the optimum of a corrected problem, by the annealer's first two runs.

Without its threads and its bound: hundreds of corrected problems are solved, and the answers must not depend on when a
bound arrives.
"""

from __future__ import annotations

from collections.abc import Callable

from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.energy_scale import standardise
from qubo_compress.solvers.annealer.jobs import OPENING, PILOT, Job, first_candidate, run_length
from qubo_compress.solvers.annealer.opening import Opening
from qubo_compress.solvers.annealer.tables import make_tables


def near_optima(problem: ChoiceProblem, seed: int, keep_going: Callable[[float], bool]) -> list[IntArray]:
    """(G,) assignments within the budgets, distinct, the best first; none where none was found.

    Args:
        problem: to be solved.
        seed: of both runs.
        keep_going: asked with the seconds that the next step will take.

    Example:
        >>> from qubo_compress.solvers.annealer.annealer import warm_up
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> _ = warm_up(problem.structure)  # the seconds it took
        >>> all(problem.is_feasible(found) for found in near_optima(problem, 0, lambda seconds: True))
        True
    """
    standard = standardise(problem).problem
    tables = make_tables(standard)
    results = [first_candidate(tables, seed)]
    if problem.num_groups > 1:
        results.append(Opening(standard, tables, OPENING, seed).run(keep_going, run_length(OPENING)))
        results.append(Job(tables, PILOT, seed, None).run(keep_going, run_length(PILOT)))
    every = [chosen - problem.group_offsets[:-1] for result in results for _, chosen in result.found]
    distinct = {a.tobytes(): a for a in every if problem.is_feasible(a)}
    return sorted(distinct.values(), key=standard.energy)

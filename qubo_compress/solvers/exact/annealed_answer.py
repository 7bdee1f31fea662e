"""The annealer's answer as the start of a proof: the better the start, the more of the tree is pruned."""

from __future__ import annotations

from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.solvers.search import Search
from qubo_compress.solvers.solver import make_solver

_MOST_SWEEPS = 6000
"""Most sweeps: fixed, so that the same total work gives the same answer."""
_MOST_VISITS = 240_000
"""Most visits to groups in those sweeps, so that large problems do not spend all their time on them."""
_MOST_OPERATIONS = 2e9
"""Most multiplications of pair energies in those sweeps: about half a second, so that the clock rarely ends them."""

_FEW_GROUPS = 12
"""Up to this many groups, a local search finds the optimum, or the proof does soon."""
_SHARE = 0.2
"""Largest share of the time for the annealer's answer."""


def annealing_sweeps(problem: ChoiceProblem) -> int:
    """Sweeps of the annealer before a proof begins: a function of the problem alone."""
    rank = 1 if problem.factor is None else max(1, problem.factor.shape[1])
    # From a table of all pairs or from the rows of the factor, whichever is cheaper, as the annealer does it.
    sweep = problem.num_choices * min(rank, problem.num_choices)
    most = min(_MOST_VISITS // problem.num_groups, int(_MOST_OPERATIONS / sweep))
    return min(_MOST_SWEEPS, most + 1)


def annealed(search: Search, threads: int | None) -> Search | None:
    """What the annealer finds in a share of the time for many coupled groups, as a part of the search; else None.

    With a work limit, whose unit is the proof's nodes, a local search has to do.
    """
    problem = search.problem
    if problem.structure == "separable" or problem.num_groups <= _FEW_GROUPS or search.limits.work is not None:
        return None
    part = search.part(limits=search.left(_SHARE * search.limits.seconds, annealing_sweeps(problem)))
    part.run(make_solver("annealer", threads=threads))
    search.spend("annealer", part.elapsed)
    return part

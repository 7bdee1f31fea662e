"""Random choice problems with realistic costs, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from qubo_compress._internal.checks import refuse_unknown
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.random_values import RandomOptions, planted_values, random_values


def random_problem(
    kind: str = "dense",
    groups: int = 20,
    choices: int = 16,
    seed: int = 0,
    **options: Any,
) -> ChoiceProblem:
    """A random problem of a given interaction structure.

    Args:
        kind: ``"separable"`` (no pair energies), ``"sparse"`` (groups g and h coupled where
            ``|g - h| <= neighbours``), ``"dense"`` (every pair, indefinite), ``"low-rank"`` (a
            positive semidefinite factor; ``keep`` everywhere is the unconstrained optimum),
            ``"planted"`` (a factor with a proven optimum, see :func:`planted_problem`) or ``"channels"`` (layers of
            ``neighbours`` channels; removing one saves weights of the next layer, which are pair costs).
        groups: number of groups.
        choices: choices in each group; the first one is ``keep``, with zero energy.
        seed: of the whole problem.
        options: the fields of :class:`~qubo_compress.problem.random_values.RandomOptions`.

    Raises:
        UnknownName: for another kind.
        InvalidProblem: for a number out of range.

    Example:
        >>> problem = random_problem("sparse", groups=6, choices=4, seed=3)
        >>> problem.num_choices, problem.structure, problem.energy([0] * 6)
        (24, 'pairs', 0.0)
    """
    refuse_unknown(random_problem, options, (field.name for field in fields(RandomOptions)))
    return ChoiceProblem(**random_values(kind, groups, choices, seed, RandomOptions(**options)))


def tiny_problem(structure: str) -> ChoiceProblem:
    """Three groups of two choices with the structure that a problem says of itself: what warm-ups solve."""
    kind = {"separable": "separable", "pairs": "dense", "factor": "low-rank"}[structure]
    return random_problem(kind, groups=3, choices=2, seed=0, rank=2)


def planted_problem(
    groups: int = 20,
    choices: int = 16,
    seed: int = 0,
    *,
    rank: int | None = None,
    budget_fraction: float = 0.45,
    budgets: int = 1,
) -> tuple[ChoiceProblem, IntArray]:
    """A problem in factor form with an assignment that is proven optimal.

    With rows A, the planted x*, s* = sum A[x*], prices p > 0 and margins m >= 0 that vanish on x*, set

        linear[v] = 1/2 |A_v|^2 - A_v . s* - p . cost_v + mu_g + m_v   and   limits = cost(x*).

    Then energy(x) - energy(x*) = 1/2 |s(x) - s*|^2 + p . (limits - cost(x)) + sum of m over x, which
    is never negative for a feasible x. The constants mu_g make the linear term of ``keep`` zero.

    Args:
        groups: number of groups.
        choices: choices in each group.
        seed: of the whole problem.
        rank: columns of the factor; None: the smaller of 64 and V.
        budget_fraction: approximate cost of the planted assignment, relative to keeping everything.
        budgets: number of budgets, all of them tight at the optimum.

    Example:
        >>> import numpy as np
        >>> problem, optimum = planted_problem(groups=5, choices=4, seed=0)
        >>> problem.is_feasible(optimum)
        True
        >>> rng = np.random.default_rng(0)
        >>> draws = [rng.integers(0, 4, size=5) for _ in range(200)]
        >>> all(problem.energy(x) >= problem.energy(optimum) for x in draws if problem.is_feasible(x))
        True
    """
    values, optimum = planted_values(groups, choices, seed, rank=rank, budget_fraction=budget_fraction, budgets=budgets)
    return ChoiceProblem(**values), optimum

"""CLADO as published: clip the measured pairs to a convex quadratic form, and solve that to optimality.

Deng et al. (arXiv 2307.05657) put single losses on the diagonal and pair losses off it,

    loss(x) = 1/2 x . M x,    M[v, v] = 2 linear[v],    M[v, w] = pairs[v, w],

which gives the problem's energies, because x[v]^2 = x[v] on assignments. Measured pairs make M indefinite, which their
integer quadratic programs could not handle, so they clip the negative part of its spectrum. The optimum of the clipped
form may not be that of the measured one: this solver shows the cost of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray
from qubo_compress.solvers.exact import exact
from qubo_compress.solvers.local_search.descent import LocalSearch
from qubo_compress.solvers.solver import Search, Solver, solvers

LARGEST_SPECTRUM = 4000
"""Most choices for which the spectrum of all pairs is computed (several arrays of 8 bytes per pair)."""

_SECONDS_PER_CUBE = 1.5e-9  # of an eigendecomposition on one core, a generous estimate
_ROUNDING = 1e-9


@solvers.register
@dataclass(frozen=True)
class Clado(Solver):
    """Solve the problem with its pairs clipped to positive semidefinite, exactly; the reported energy is the true one.

    With ``pairs``, the quadratic form of CLADO is clipped by its eigenvalues and solved by ``exact``; only the clipped
    form's optimum is returned, as published, and no bound is claimed unless nothing was clipped. A ``factor`` is
    positive semidefinite by construction and a separable problem has no pairs: then nothing is clipped, and the answer
    is that of ``exact``. The work is the number of nodes.

    ``details`` holds ``clipped_share`` (of the sum of the eigenvalues' sizes), ``least_eigenvalue``,
    ``clipped_energy`` (of the answer in the clipped form) and ``clipped_bound``.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> solution = solve(problem, "clado", time_limit=20.0)
        >>> solution.bound is None, solution.details["clipped_share"] > 0.0
        (True, True)
    """

    name: ClassVar[str] = "clado"

    def run(self, search: Search) -> None:
        """Clip, then branch and bound until there is a proof, no time or work (nodes) left, or an interrupt."""
        with search.compiling():
            exact.warm_up()
        problem = search.problem
        seconds = _SECONDS_PER_CUBE * problem.num_choices**3
        if problem.structure != "pairs":
            search.details["clipped_share"] = 0.0
            search.spend("build", 0.0)
            exact.Exact().run(search)
        elif problem.num_choices > LARGEST_SPECTRUM or seconds > search.limits.seconds:
            _find_local_optimum(search, seconds)
        else:
            try:
                with search.stage("build"):
                    clipped = clip(problem)
            except KeyboardInterrupt:
                _find_local_optimum(search, seconds)
                raise
            _solve_clipped(search, clipped)


@dataclass(frozen=True, eq=False)
class Clipped:
    """A problem without the negative part of its quadratic form.

    Attributes:
        problem: energy constant + 1/2 |sum of the factor rows|^2, and the same budgets.
        share: sum of the sizes of the negative eigenvalues over that of all.
        least: the least eigenvalue.
        slack: upper bound on how far the true energy of an assignment is below the clipped one.
    """

    problem: ChoiceProblem
    share: float
    least: float
    slack: float

    @property
    def changed(self) -> bool:
        """Whether anything beyond rounding was clipped."""
        return self.share > _ROUNDING


def quadratic_form(problem: ChoiceProblem) -> FloatArray:
    """(V, V) matrix M with energy = constant + 1/2 x . M x on assignments, single losses on the diagonal.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=3, choices=3, seed=0)
        >>> x = np.zeros(9)
        >>> x[problem.selected([0, 1, 2])] = 1.0
        >>> bool(np.isclose(problem.constant + 0.5 * x @ quadratic_form(problem) @ x, problem.energy([0, 1, 2])))
        True
    """
    matrix = np.zeros((problem.num_choices,) * 2) if problem.pairs is None else problem.pairs.toarray()
    matrix[np.diag_indices_from(matrix)] = 2.0 * problem.linear
    return np.asarray(matrix, dtype=np.float64)


def clip(problem: ChoiceProblem) -> Clipped:
    """Set the negative eigenvalues of a problem's quadratic form to zero."""
    matrix = quadratic_form(problem)
    values, vectors = np.linalg.eigh(matrix)
    positive = values > 0.0
    factor = (vectors[:, positive] * np.sqrt(values[positive])).astype(np.float32)
    size = float(np.abs(values).sum())
    rows = factor.astype(np.float64)
    starts = problem.group_offsets[:-1]
    # Least difference of each pair of groups: their sum bounds the error from clipping and rounding.
    difference = matrix - rows @ rows.T
    least = np.minimum.reduceat(np.minimum.reduceat(difference, starts, axis=0), starts, axis=1)
    own = np.minimum.reduceat(np.diag(difference), starts)
    slack = -0.5 * float(least.sum() - np.trace(least) + own.sum())
    convex = ChoiceProblem(
        # So that only the squared norm of the sum is left: see the energy of a factor.
        linear=0.5 * np.einsum("vr,vr->v", rows, rows),
        group_offsets=problem.group_offsets,
        costs=problem.costs,
        limits=problem.limits,
        fixed_costs=problem.fixed_costs,
        factor=factor,
        budget_names=problem.budget_names,
        constant=problem.constant,
    )
    negative = float(-values[~positive].sum())
    return Clipped(convex, negative / size if size else 0.0, float(values[0]), max(0.0, slack))


def _solve_clipped(search: Search, clipped: Clipped) -> None:
    """The clipped optimum as an answer to the problem itself."""
    part = search.part(clipped.problem, rng=search.rng)
    part.run(exact.Exact())
    search.work, search.infeasible, search.interrupted = part.work, part.infeasible, part.interrupted
    search.notes += part.notes
    if clipped.changed:
        share = f"{clipped.share:.1%} of the spectrum was negative and clipped"
        search.notes.append(f"{share}; the clipped form was solved")
    elif part.bound is not None:
        search.bound = part.bound - clipped.slack
    search.details |= part.details | {
        "clipped_share": clipped.share,
        "least_eigenvalue": clipped.least,
        "clipped_energy": None if part.best is None else part.energy,
        "clipped_bound": part.bound,
    }
    if part.best is not None:
        search.keep(part.best)


def _find_local_optimum(search: Search, seconds: float) -> None:
    """A local optimum, if there is no time or memory for the spectrum."""
    problem, local = search.problem, LocalSearch(search.problem, search.rng)
    search.notes.append(
        f"the spectrum of {problem.num_choices} choices takes about {seconds:.0f} s (largest: "
        f"{LARGEST_SPECTRUM} choices): nothing was clipped or solved, this is a local optimum"
    )
    local.place(np.array([int(np.argmin(part)) for part in np.split(problem.linear, problem.group_offsets[1:-1])]))
    if local.repair():
        local.descend(np.inf, pairs=False)
        search.keep(local.assignment)

"""The exact solver: an answer with a proof, or with the best bound when time runs out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress._internal import compiling
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.problem.generators import random_problem, tiny_problem
from qubo_compress.solvers.exact import bounds
from qubo_compress.solvers.exact.band_programming import undominated
from qubo_compress.solvers.exact.branch_and_bound import Tree
from qubo_compress.solvers.exact.convex_relaxation import convex_form
from qubo_compress.solvers.exact.pair_cost_proof import prove_with_pair_costs
from qubo_compress.solvers.exact.proof import Proof, ProofOptions
from qubo_compress.solvers.exact.relaxation_kernels import is_definite
from qubo_compress.solvers.local_search import descent as local_search
from qubo_compress.solvers.local_search.descent import LocalSearch
from qubo_compress.solvers.solver import Search, SearchLimits, Solver, solvers


@solvers.register
@dataclass(frozen=True)
class Exact(Solver):
    """Find the optimum and prove it, by the method that suits the structure; a note says which.

    Without interactions and with at most one budget: dynamic programming over exact integer costs; with several
    budgets, 500 nodes of branch and bound, then mixed-integer programming (HiGHS). Pair energies in a narrow band and
    at most one budget: dynamic programming over labels. More than 12 groups with other interactions: the annealer's
    answer first. Pair energies: message passing, branch and bound on its bounds, toulbar2 if groups have three partners
    or more and pytoulbar2 is installed (a note says where it is missing), then, if they are sparse, HiGHS. Otherwise,
    and for what all these leave open: branch and bound on the convex relaxation; if that does not finish soon, the root
    is bounded again with the better answer and a strengthened relaxation, which raises the bound and excludes choices,
    and a new tree continues with the remaining choices. When the time runs out, the best answer comes with a valid
    lower bound. Interactions among more choices than ``LARGEST_GRAM`` (4000; 1500 with pairs) get only the first answer
    and a bound, and a note says so.

    Budgets with pair costs: enumeration of up to 100,000 combinations, or mixed-integer programming in which products
    of choices are linearised; no certificate.

    Args:
        first: an assignment to start from, instead of a local search's and the annealer's.
        threads: how many nodes are bounded at a time; None for one per processor that this process may use. The tree is
            the same with any number.
        certificate: keep a certificate in ``Solution.details["certificate"]``, with which a separate checker can
            verify the proof of a branch and bound; see :mod:`qubo_compress.solvers.exact.certificates`.
        cfn: try toulbar2 for pairs, where pytoulbar2 is installed.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=8, choices=5, seed=0)
        >>> solution = solve(problem, Exact(), time_limit=20.0)
        >>> solution.status, solution.gap <= 1e-6
        ('optimal', True)
    """

    name: ClassVar[str] = "exact"
    accepts_pair_costs: ClassVar[bool] = True
    optimises: ClassVar[bool] = True
    first: tuple[int, ...] | None = None
    threads: int | None = None
    certificate: bool = False
    cfn: bool = True

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InvalidSolverOption(f"threads must be at least 1; got {self.threads}")

    def run(self, search: Search) -> None:
        """Search until proven, out of time, out of work (nodes or states) or interrupted."""
        with search.compiling():
            warm_up_for(search.problem)
        if search.problem.pair_costs is not None:
            with search.standardised() as standard:
                prove_with_pair_costs(standard, self.first)
            return
        with search.standardised() as standard:
            proof = Proof(standard, ProofOptions(self.first, self.threads, self.certificate, self.cfn))
            try:
                proof.solve()
            finally:
                proof.tell()


@compiling.once
def warm_up(structure: str) -> None:
    """Compile (or load from the disk cache) every kernel that a structure needs, on tiny problems.

    Without interactions, these are the kernels for one budget; several budgets need a tree, like a factor.
    """
    local_search.warm_up(structure)
    bounds.warm_up(structure)
    rng = np.random.default_rng(0)
    if structure == "separable":
        Proof(Search(tiny_problem(structure), SearchLimits(60.0), rng), ProofOptions()).solve()
        return
    # One problem with too many combinations to enumerate, so that nodes are bounded and queued, and one enumerated.
    for groups, work in ((13, 4), (3, 1)):
        problem = random_problem("low-rank", groups=groups, choices=2, seed=0, rank=2)
        Tree(problem, convex_form(problem), LocalSearch(problem, rng), None).run(np.inf, work)
    is_definite(np.eye(2))  # for strengthening, which only long runs reach
    if structure == "pairs":
        undominated(np.zeros(1, dtype=np.int64), np.zeros(1))


def warm_up_for(problem: ChoiceProblem) -> None:
    """Warm up for the methods that a problem may need."""
    warm_up(problem.structure)
    if problem.structure == "separable" and problem.num_budgets > 1:
        warm_up("factor")

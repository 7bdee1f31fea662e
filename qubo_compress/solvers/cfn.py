"""toulbar2: proofs for pair energies by soft local consistency, which dense pairs need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.errors import ProblemTooLarge
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.solvers.exact import bounds
from qubo_compress.solvers.exact.cost_network import MOST_NETWORK_ENTRIES, network_entries
from qubo_compress.solvers.exact.first_answer import first_answers
from qubo_compress.solvers.exact.toulbar2 import prove_by_network, toulbar2_is_installed
from qubo_compress.solvers.local_search import descent
from qubo_compress.solvers.local_search.descent import LocalSearch
from qubo_compress.solvers.solver import Search, Solver, solvers


@solvers.register
@dataclass(frozen=True)
class Cfn(Solver):
    """Branch and bound by toulbar2 on a cost function network; needs ``pip install 'qubo_compress[cfn]'``.

    Groups are variables, pair energies are tables of two variables (for a factor: of all pairs of groups), and budgets
    are multiple-choice knapsack constraints with exact weights. Energies are rounded down to multiples of
    ``details["resolution"]``, which is fine enough for a proof, so that every bound holds for the real energies.
    toulbar2 runs in a separate process, on one core, and is stopped at the time limit; its bound and best assignment
    are kept then.

    It proves dense pairs of up to about twenty groups within seconds, and sparse ones far beyond that. Work is counted
    in backtracks. The same seed and work give the same answer; if the clock ended the search, ``details["repeats"]`` is
    False, because the local search and toulbar2 share the time. toulbar2: https://toulbar2.github.io/toulbar2.

    Args:
        first: an assignment to start from.
        local_search: start from a local optimum, too; False leaves everything to toulbar2.

    Raises:
        MissingDependency: when pytoulbar2 is not installed.
        ProblemTooLarge: when the tables would have more than four million entries.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> solution = solve(ChoiceProblem.random(kind="dense", groups=12, choices=8, seed=0), Cfn())
        >>> solution.status, solution.details["resolution"] < 1e-6
        ('optimal', True)
    """

    name: ClassVar[str] = "cfn"
    optimises: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("pytoulbar2",)
    first: tuple[int, ...] | None = None
    local_search: bool = True

    @property
    def threads(self) -> int:
        """One: toulbar2 searches sequentially."""
        return 1

    def run(self, search: Search) -> None:
        """Search until proven, out of time, out of work (backtracks) or interrupted."""
        if not toulbar2_is_installed():
            require("pytoulbar2", "cfn")
        _check_size(search.problem)
        if self.local_search:
            with search.compiling():
                descent.warm_up(search.problem.structure)
                bounds.warm_up(search.problem.structure)
        with search.standardised() as standard:
            self._prove(standard, self._start(standard))

    def _start(self, search: Search) -> IntArray | None:
        if self.first is not None:
            given = np.array(self.first, dtype=np.int64)
            if search.problem.is_feasible(given):
                search.keep(given)
        if self.local_search:
            for found in first_answers(search, LocalSearch(search.problem, search.rng), self.first):
                search.add(found)
        return search.best

    def _prove(self, search: Search, first: IntArray | None) -> None:
        proof = prove_by_network(search.problem, first, search.deadline, search.limits.work)
        answer = proof.answer
        if proof.assignment is not None:
            search.keep(proof.assignment)
        search.work += answer.work
        search.bound = proof.bound if np.isfinite(proof.bound) else None
        search.infeasible = proof.bound == np.inf
        search.details["repeats"] = not (answer.late or answer.ended)
        unit = 1.0 if search.standard is None else search.standard.unit
        search.details["resolution"] = unit * proof.unit
        if answer.ended:
            search.notes.append("toulbar2 overran its time limit or failed, and was ended")
        if answer.interrupted:
            raise KeyboardInterrupt


def _check_size(problem: ChoiceProblem) -> None:
    entries = network_entries(problem)
    if entries > MOST_NETWORK_ENTRIES:
        raise ProblemTooLarge(
            f"cfn takes tables of at most {MOST_NETWORK_ENTRIES:,} entries and this problem needs {entries:,}; "
            "use exact for a bound or annealer for an answer"
        )

"""The choice problem as a dimod constrained quadratic model: exact, without penalties."""

from __future__ import annotations

import dimod
import numpy as np
from scipy import sparse

from qubo_compress.encodings.encoding import Couplings, Decoder
from qubo_compress.encodings.one_hot import OneHot
from qubo_compress.encodings.quadratic import binary_model, pair_energies
from qubo_compress.problem.choice_problem import ChoiceProblem


def to_cqm(problem: ChoiceProblem) -> tuple[dimod.ConstrainedQuadraticModel, Decoder]:
    """A constrained quadratic model (one discrete constraint per group, one inequality per budget) and its inverse.

    Variable v is the global number of a choice. A budget with pair costs is a quadratic inequality.

    Example:
        >>> problem = ChoiceProblem.random(kind="sparse", groups=3, choices=3, seed=0)
        >>> cqm, decode = to_cqm(problem)
        >>> len(cqm.variables), sorted(cqm.discrete), cqm.constraints["bytes"].sense.name
        (9, ['group0', 'group1', 'group2'], 'Le')
    """
    cqm = dimod.ConstrainedQuadraticModel()  # type: ignore[no-untyped-call]
    cqm.set_objective(binary_model(problem.linear, pair_energies(problem), problem.constant))
    # Groups do not overlap; dimod's check takes time quadratic in their number.
    for g, name in enumerate(problem.group_names):
        cqm.add_discrete(
            range(problem.group_offsets[g], problem.group_offsets[g + 1]), label=name, check_overlaps=False
        )
    for b, name in enumerate(problem.budget_names):
        spent = dimod.BinaryQuadraticModel.from_numpy_vectors(
            problem.costs[b].astype(float), _pair_costs(problem, b), 0.0, dimod.BINARY
        )
        room = float(problem.limits[b] - problem.fixed_costs[b])
        cqm.add_constraint_from_model(spent, "<=", rhs=room, label=_free_label(cqm, name), copy=False)
    return cqm, Decoder(problem, OneHot(), problem.num_choices)


def _pair_costs(problem: ChoiceProblem, budget: int) -> Couplings:
    """The pair costs of a budget, each pair once."""
    matrix = None if problem.pair_costs is None else problem.pair_costs[budget]
    if matrix is None:
        return Couplings(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    upper = sparse.triu(matrix, k=1).tocoo()
    return Couplings(upper.row.astype(np.int64), upper.col.astype(np.int64), upper.data.astype(np.float64))


def _free_label(cqm: dimod.ConstrainedQuadraticModel, name: str) -> str:
    """The budget's name, with a mark if a group or another budget already has it."""
    while name in cqm.constraints:
        name = f"budget {name}"
    return name

"""What a notebook shows of a choice problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qubo_compress._internal.notebook import fragment

if TYPE_CHECKING:
    from qubo_compress.problem.choice_problem import ChoiceProblem


def problem_html(problem: ChoiceProblem) -> str:
    """Sizes, the form of the pair energies, and every budget with what is possible under it."""
    energies = "Without pair energies."
    if problem.factor is not None:
        energies = f"Pair energies are inner products of rows of length {problem.factor.shape[1]:,}."
    elif problem.pairs is not None:
        energies = f"{problem.pairs.nnz // 2:,} pair energies are stored."
    digits = float(np.log10(problem.group_sizes.astype(np.float64)).sum())
    if problem.pair_costs is not None:
        energies += " Pairs cost, too."
    return fragment(
        f"ChoiceProblem: {problem.num_choices:,} choices in {problem.num_groups:,} groups, one to be picked in each",
        [f"About 10^{digits:.0f} assignments. {energies}"],
        ["budget", "at most", "smallest total", "largest"] if problem.limits.size else [],
        _budgets(problem),
    )


def _budgets(problem: ChoiceProblem) -> list[list[str]]:
    smallest, starts = problem.smallest_totals(), problem.group_offsets[:-1]
    rows = []
    for number, (name, limit) in enumerate(zip(problem.budget_names, problem.limits.tolist(), strict=True)):
        most = int(problem.fixed_costs[number]) + int(np.maximum.reduceat(problem.costs[number], starts).sum())
        paired = problem.pair_costs is not None and problem.pair_costs[number] is not None
        rows.append([name, f"{limit:,}", f"{int(smallest[number]):,}", "–" if paired else f"{most:,}"])
    return rows

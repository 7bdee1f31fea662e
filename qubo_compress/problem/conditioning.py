"""A problem over some of the groups, with the choices of all others held: what decompositions solve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress.errors import InvalidAssignment
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A block of groups and the way back.

    For every assignment of the block, ``problem.energy(block) == whole.energy(lift(block))`` and both are
    feasible or neither is.

    Attributes:
        problem: the block's problem: what the held choices do to it stands in its linear energies, its constant
            and its fixed costs.
        groups: (H,) numbers of the block's groups in the whole problem, rising.
        held: (G,) the assignment that the block was conditioned on.
    """

    problem: ChoiceProblem
    groups: IntArray
    held: IntArray

    def lift(self, assignment: npt.ArrayLike) -> IntArray:
        """(G,) the held assignment with the block's choices put in.

        Raises:
            InvalidAssignment: when it is not one existing choice for every group of the block.
        """
        self.problem.selected(assignment)
        whole = self.held.copy()
        whole[self.groups] = np.asarray(assignment, dtype=np.int64)
        return whole

    def lower(self) -> IntArray:
        """(H,) the block's part of the held assignment."""
        return self.held[self.groups]


def condition(problem: ChoiceProblem, assignment: npt.ArrayLike, groups: npt.ArrayLike) -> Conditioned:
    """The problem over a block of groups when all others keep their present choices.

    With R the selected choices outside the block and Q the pair energies,

        linear'[v] = linear[v] + sum_{w in R} Q[v, w]
        constant'  = energy of R alone
        fixed'     = fixed costs + costs of R

    Args:
        problem: the whole problem.
        assignment: (G,) the present choices.
        groups: numbers of the block's groups, distinct, at least one.

    Raises:
        InvalidAssignment: when the assignment is not one of the problem's, or a group is repeated or unknown.

    Example:
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=5, choices=4, seed=0)
        >>> block = condition(problem, [1, 2, 3, 0, 1], groups=[4, 1])
        >>> block.problem.num_groups, block.lift([3, 0]).tolist()
        (2, [1, 3, 3, 0, 0])
        >>> bool(abs(block.problem.energy([3, 0]) - problem.energy([1, 3, 3, 0, 0])) < 1e-9)
        True
    """
    chosen = problem.selected(assignment)
    members = _checked(problem, groups)
    inside = np.zeros(problem.num_groups, dtype=np.bool_)
    inside[members] = True
    rest = chosen[~inside]
    kept = np.flatnonzero(np.repeat(inside, problem.group_sizes))
    pull, constant = _pull_of(problem, rest, kept)
    block = ChoiceProblem(
        linear=problem.linear[kept] + pull,
        group_offsets=np.concatenate([[0], np.cumsum(problem.group_sizes[members])]).astype(np.int64),
        costs=problem.costs[:, kept],
        limits=problem.limits,
        fixed_costs=problem.fixed_costs + problem.costs[:, rest].sum(axis=1),
        factor=None if problem.factor is None else problem.factor[kept],
        pairs=None if problem.pairs is None else problem.pairs[kept][:, kept],
        group_names=tuple(problem.group_names[g] for g in members),
        choice_names=tuple(problem.choice_names[v] for v in kept),
        budget_names=problem.budget_names,
        constant=constant,
    )
    return Conditioned(block, members, chosen - problem.group_offsets[:-1])


def _checked(problem: ChoiceProblem, groups: npt.ArrayLike) -> IntArray:
    given = np.asarray(groups)
    members = np.unique(given.astype(np.int64))
    if members.size != given.size or not members.size or members[0] < 0 or members[-1] >= problem.num_groups:
        raise InvalidAssignment(
            f"a block is made of distinct group numbers from 0 to {problem.num_groups - 1}, at least one; "
            f"got {given.tolist()[:8]}"
        )
    return members


def _pull_of(problem: ChoiceProblem, rest: IntArray, kept: IntArray) -> tuple[FloatArray, float]:
    """(len(kept),) pair energies of the kept choices with the held ones, and the energy of the held ones alone."""
    alone = problem.constant + float(problem.diagonal[rest].sum())
    if problem.factor is not None:
        total = problem.factor[rest].sum(axis=0, dtype=np.float64)
        # In slices, so that no second copy of a large factor is made in float64.
        slices = [problem.factor[kept[a : a + 4096]].astype(np.float64) @ total for a in range(0, kept.size, 4096)]
        return np.concatenate(slices), alone + 0.5 * float(total @ total)
    if problem.pairs is not None:
        pull = np.asarray(problem.pairs[kept][:, rest].sum(axis=1), dtype=np.float64).ravel()
        return pull, alone + 0.5 * float(problem.pairs[rest][:, rest].sum())
    return np.zeros(kept.size), alone

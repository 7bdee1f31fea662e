"""Smaller problems from a choice problem, and back: over a block of its groups, or over some of its choices.

Conditioning holds the choices of all other groups; decompositions solve such problems. Reductions remove choices that
are proven to be unnecessary, so the optimum stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.errors import InvalidAssignment
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.pair_costs import PairCosts, costs_beside, pair_totals, without_negative

_ROUNDING = 1e-13
"""A proof must hold with a margin of this share of its terms' magnitudes."""


@dataclass(frozen=True, eq=False)
class Subproblem:
    """A smaller problem and its relation to the whole one.

    For each of its assignments, ``problem.energy(small) == whole.energy(lift(small))``, and both are feasible or
    neither is: the linear energies, the constant, the costs and the fixed costs include the held choices.

    Attributes:
        problem: the smaller problem.
        groups: (H,) numbers of its groups in the whole problem, rising.
        kept: (V',) global numbers of its choices in the whole problem, rising.
        held: (G,) choices of the groups that are not in it; entries of its own groups are ignored.
        offsets: (G + 1,) group offsets of the whole problem.
    """

    problem: ChoiceProblem
    groups: IntArray
    kept: IntArray
    held: IntArray
    offsets: IntArray

    @property
    def removed(self) -> int:
        """How many choices of the whole problem are not in it."""
        return int(self.offsets[-1]) - self.kept.size

    def lift(self, assignment: npt.ArrayLike) -> IntArray:
        """(G,) the assignment of the whole problem for an assignment of this one.

        Raises:
            InvalidAssignment: if it is not one existing choice for every group.
        """
        whole = self.held.copy()
        whole[self.groups] = self.kept[self.problem.selected(assignment)] - self.offsets[self.groups]
        return whole

    def lower(self, assignment: npt.ArrayLike) -> IntArray:
        """(H,) this problem's part of an assignment of the whole one: the inverse of :meth:`lift`.

        Raises:
            InvalidAssignment: if it uses a removed choice.
        """
        chosen = (np.asarray(assignment, dtype=np.int64) + self.offsets[:-1])[self.groups]
        places = np.searchsorted(self.kept, chosen)
        lost = np.flatnonzero(self.kept[np.minimum(places, self.kept.size - 1)] != chosen)
        if lost.size:
            name = self.problem.group_names[int(lost[0])]
            raise InvalidAssignment(f"group {name!r} uses a choice that was removed; lower only lifted assignments")
        return np.asarray(places - self.problem.group_offsets[:-1], dtype=np.int64)


def whole(problem: ChoiceProblem) -> Subproblem:
    """The problem itself as a subproblem, for callers that may not have a smaller one."""
    groups = np.arange(problem.num_groups)
    return Subproblem(problem, groups, np.arange(problem.num_choices), np.zeros_like(groups), problem.group_offsets)


def _part(
    problem: ChoiceProblem, groups: IntArray, kept: IntArray, sizes: IntArray, **changes: object
) -> ChoiceProblem:
    """The problem over some groups and some of their choices, with the values in ``changes``."""
    values: dict[str, Any] = {
        "linear": problem.linear[kept],
        "group_offsets": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        "costs": problem.costs[:, kept],
        "limits": problem.limits,
        "fixed_costs": problem.fixed_costs,
        "pair_costs": _pair_costs_of(problem, kept),
        "factor": None if problem.factor is None else problem.factor[kept],
        "pairs": None if problem.pairs is None else problem.pairs[kept][:, kept],
        "group_names": tuple(problem.group_names[g] for g in groups),
        "choice_names": tuple(problem.choice_names[v] for v in kept),
        "budget_names": problem.budget_names,
        "constant": problem.constant,
    }
    return ChoiceProblem(**{**values, **changes})


def _pair_costs_of(problem: ChoiceProblem, kept: IntArray) -> PairCosts | None:
    if problem.pair_costs is None:
        return None
    return tuple(None if matrix is None else matrix[kept][:, kept] for matrix in problem.pair_costs)


def condition(problem: ChoiceProblem, assignment: npt.ArrayLike, groups: npt.ArrayLike) -> Subproblem:
    """The problem over a block of groups, with all others held at their present choices.

    With R the selected choices outside the block and Q the pair energies,

        linear'[v] = linear[v] + sum_{w in R} Q[v, w]
        constant'  = energy of R alone
        fixed'     = fixed costs + costs of R

    Pair costs are folded into costs and fixed costs in the same way. Where a group's least cost becomes negative, it
    is moved to the fixed costs.

    Args:
        problem: the whole problem.
        assignment: (G,) the present choices.
        groups: numbers of the block's groups, distinct, at least one.

    Raises:
        InvalidAssignment: if the assignment is not valid for the problem, or a group is repeated or unknown.

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
    energies, constant = _energies_with(problem, rest, kept)
    costs, fixed = _costs_with(problem, rest, kept)
    block = _part(
        problem, members, kept, problem.group_sizes[members], linear=problem.linear[kept] + energies, constant=constant,
        costs=costs, fixed_costs=fixed,
    )  # fmt: skip
    return Subproblem(block, members, kept, chosen - problem.group_offsets[:-1], problem.group_offsets)


def _checked(problem: ChoiceProblem, groups: npt.ArrayLike) -> IntArray:
    given = np.asarray(groups)
    members = np.unique(given.astype(np.int64))
    if members.size != given.size or not members.size or members[0] < 0 or members[-1] >= problem.num_groups:
        raise InvalidAssignment(
            f"a block is made of distinct group numbers from 0 to {problem.num_groups - 1}, at least one; "
            f"got {given.tolist()[:8]}"
        )
    return members


def _energies_with(problem: ChoiceProblem, rest: IntArray, kept: IntArray) -> tuple[FloatArray, float]:
    """(len(kept),) pair energies of the kept choices with the held ones, and the energy of the held ones alone."""
    alone = problem.constant + float(problem.diagonal[rest].sum())
    if problem.factor is not None:
        total = problem.factor[rest].sum(axis=0, dtype=np.float64)
        # In slices, to avoid a float64 copy of a large factor.
        slices = [problem.factor[kept[a : a + 4096]].astype(np.float64) @ total for a in range(0, kept.size, 4096)]
        return np.concatenate(slices), alone + 0.5 * float(total @ total)
    if problem.pairs is not None:
        energies = np.asarray(problem.pairs[kept][:, rest].sum(axis=1), dtype=np.float64).ravel()
        return energies, alone + 0.5 * float(problem.pairs[rest][:, rest].sum())
    return np.zeros(kept.size), alone


def _costs_with(problem: ChoiceProblem, rest: IntArray, kept: IntArray) -> tuple[IntArray, IntArray]:
    """(B, len(kept)) costs of the kept choices beside the held ones, and (B,) the fixed costs with the held ones."""
    fixed = problem.fixed_costs + problem.costs[:, rest].sum(axis=1)
    if problem.pair_costs is None:
        return problem.costs[:, kept], fixed
    costs = costs_beside(problem, rest)[:, kept]
    sizes = np.bincount(np.searchsorted(problem.group_offsets, kept, side="right") - 1)
    offsets = np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
    return without_negative(costs, fixed + pair_totals(problem.pair_costs, rest), offsets)


def reduce_dominated(problem: ChoiceProblem) -> Subproblem:
    """Remove every choice that another choice of its group beats in each budget and every possible context.

    Choice w beats v when it costs no more under any budget, whatever the other groups choose, and

        linear[w] - linear[v] + sum over other groups h of max_{u in h} (Q[w, u] - Q[v, u]) <= 0,

    so replacing v by w is never worse, whatever the other groups choose. Of choices that beat each
    other, exactly one stays. Each removal rules out contexts, so this repeats until no choice is removed.

    Example:
        >>> problem = ChoiceProblem(
        ...     linear=[0.0, 1.0, 2.0, 0.5], group_offsets=[0, 3, 4], costs=[[8, 4, 5, 1]], limits=[9])
        >>> reduction = reduce_dominated(problem)
        >>> reduction.kept.tolist(), reduction.lift([1, 0]).tolist()
        ([0, 1, 3], [1, 0])
    """
    alive = np.ones(problem.num_choices, dtype=np.bool_)
    offsets = problem.group_offsets
    # A group is examined again only after another group has lost a choice.
    stale = np.ones(problem.num_groups, dtype=np.bool_)
    coupled = problem.structure != "separable" or problem.pair_costs is not None
    typical = _typical_context(problem, alive)
    while stale.any():
        group = int(np.argmax(stale))
        stale[group] = False
        members = np.flatnonzero(alive[offsets[group] : offsets[group + 1]]) + offsets[group]
        if members.size < 2:
            continue
        beaten = _beaten(problem, members, alive, group, typical)
        if beaten.size:
            alive[beaten] = False
            stale[np.arange(problem.num_groups) != group] = coupled
            typical = _typical_context(problem, alive)
    return restrict(problem, np.flatnonzero(alive))


def _typical_context(problem: ChoiceProblem, alive: npt.NDArray[np.bool_]) -> FloatArray:
    """(V,) energy of each choice if every other group is an even mixture of its remaining choices.

    The worst context is no better than this one, so one comparison decides most pairs of choices.
    """
    sizes = np.add.reduceat(alive.astype(np.float64), problem.group_offsets[:-1])
    shares = np.where(alive, np.repeat(1.0 / sizes, problem.group_sizes), 0.0)
    if problem.factor is not None:
        rows = problem.factor * shares[:, None].astype(np.float32)
        means = np.add.reduceat(rows, problem.group_offsets[:-1], axis=0, dtype=np.float64)
        others = (means.sum(axis=0) - means).astype(np.float32)
        spans = zip(problem.group_offsets[:-1], problem.group_offsets[1:], strict=True)
        coupled = [problem.factor[a:b] @ others[g] for g, (a, b) in enumerate(spans)]
        return np.asarray(problem.linear + np.concatenate(coupled), dtype=np.float64)
    return np.asarray(problem.linear + (0.0 if problem.pairs is None else problem.pairs @ shares), dtype=np.float64)


def _beaten(
    problem: ChoiceProblem, members: IntArray, alive: npt.NDArray[np.bool_], group: int, typical: FloatArray
) -> IntArray:
    slack = 1e-4 * float(np.abs(typical[members]).max())
    costs, linear = problem.costs[:, members], problem.linear[members]
    gone = np.zeros(members.size, dtype=np.bool_)
    for loser in reversed(range(members.size)):  # in a tie the first stays
        for winner in range(members.size):
            if winner == loser or gone[winner]:
                continue
            if problem.pair_costs is None and (costs[:, winner] > costs[:, loser]).any():
                continue
            if typical[members[winner]] - typical[members[loser]] > slack:
                continue
            if problem.pair_costs is not None and _may_cost_more(problem, members[winner], members[loser], alive):
                continue
            rise = linear[winner] - linear[loser]
            if problem.structure != "separable":
                worst, magnitude = _worst_context(problem, int(members[winner]), int(members[loser]), alive, group)
                margin = _ROUNDING * (magnitude + (abs(rise) if magnitude else 0.0))
                rise += worst + margin
            if rise <= 0.0:
                gone[loser] = True
                break
    return members[gone]


def _may_cost_more(problem: ChoiceProblem, winner: int, loser: int, alive: npt.NDArray[np.bool_]) -> bool:
    """Whether the winner costs more than the loser under some budget beside some choices of the other groups."""
    for budget, matrix in enumerate(problem.pair_costs or ()):
        rise = int(problem.costs[budget, winner] - problem.costs[budget, loser])
        if matrix is not None:
            rows = matrix[[winner, loser]].toarray()
            # Within a group nothing is stored: the group itself adds zero.
            worst = np.where(alive, rows[0] - rows[1], np.iinfo(np.int64).min)
            rise += int(np.maximum.reduceat(worst, problem.group_offsets[:-1]).sum())
        if rise > 0:
            return True
    return False


def _worst_context(
    problem: ChoiceProblem, winner: int, loser: int, alive: npt.NDArray[np.bool_], group: int
) -> tuple[float, float]:
    """Sum over other groups of the largest difference of interactions, and the sum of its magnitudes."""
    offsets = problem.group_offsets
    differences = _difference(problem, winner, loser)
    magnitude = np.maximum.reduceat(np.abs(differences), offsets[:-1])
    largest = np.maximum.reduceat(np.where(alive, differences, -np.inf), offsets[:-1])
    largest[group] = magnitude[group] = 0.0
    if problem.factor is not None:
        # Inner products are rounded in proportion to the norms, not to their own size.
        rows = problem.factor[[winner, loser]].astype(np.float64)
        apart = float(np.linalg.norm(rows[0] - rows[1]))
        norms = np.sqrt(np.maximum(0.0, 2.0 * (problem.linear - problem.diagonal)))
        magnitude = apart * np.maximum.reduceat(norms, offsets[:-1])
    return float(largest.sum()), float(magnitude.sum())


def _difference(problem: ChoiceProblem, winner: int, loser: int) -> FloatArray:
    """(V,) Q[winner] - Q[loser]; exactly zero where they are equal."""
    if problem.factor is not None:
        apart = problem.factor[winner].astype(np.float64) - problem.factor[loser]
        if not apart.any():
            return np.zeros(problem.num_choices)
        chunks = [problem.factor[a : a + 4096] @ apart for a in range(0, problem.num_choices, 4096)]
        return np.asarray(np.concatenate(chunks), dtype=np.float64)
    if problem.pairs is None:
        return np.zeros(problem.num_choices)
    rows = problem.pairs[[winner, loser]].toarray()
    return np.asarray(rows[0] - rows[1], dtype=np.float64)


def restrict(problem: ChoiceProblem, kept: IntArray) -> Subproblem:
    """The problem with only the choices ``kept`` (ascending global numbers, some of every group)."""
    group = np.searchsorted(problem.group_offsets, kept, side="right") - 1
    groups = np.arange(problem.num_groups)
    smaller = _part(problem, groups, kept, np.bincount(group, minlength=problem.num_groups))
    return Subproblem(smaller, groups, kept, np.zeros_like(groups), problem.group_offsets)

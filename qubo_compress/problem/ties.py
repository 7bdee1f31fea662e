"""Ties groups together: a smaller problem in which several groups share one choice.

Filters of one layer that all take the same choice are a layer-wise plan, priced and judged by the filters' own table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.errors import InvalidProblem
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.pair_costs import refuse_pair_costs


@dataclass(frozen=True, eq=False)
class TiedProblem:
    """A problem whose groups are sets of groups of another one.

    For each of its assignments, ``problem.energy(small) == original.energy(lift(small))``, and both are feasible or
    neither is.

    Attributes:
        problem: the smaller problem; a group is named after the first one of its set.
        set_of: (G,) for every group of the original problem, the number of its set.
        originals: for every set, (n, K) local choices in the original problem: a row for each of its groups, a column
            for each common choice.
        members: for every set, (n,) numbers of its groups.
    """

    problem: ChoiceProblem
    set_of: IntArray
    members: tuple[IntArray, ...]
    originals: tuple[IntArray, ...]

    def lift(self, assignment: npt.ArrayLike) -> IntArray:
        """(G,) the assignment of the original problem for an assignment of this one."""
        chosen = self.problem.selected(assignment) - self.problem.group_offsets[:-1]
        lifted = np.zeros(self.set_of.size, dtype=np.int64)
        for groups, local, choice in zip(self.members, self.originals, chosen, strict=True):
            lifted[groups] = local[:, choice]
        return lifted


def tie(problem: ChoiceProblem, sets: Sequence[Sequence[int]]) -> TiedProblem:
    """One choice for all groups of each set, by the choices' names.

    Args:
        problem: the problem.
        sets: numbers of groups; every group belongs to one set.

    Raises:
        InvalidProblem: when a group belongs to no set or to several, when the groups of a set have no choice name in
            common, or when the problem has pair costs.

    Example:
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=4, choices=3, seed=0)
        >>> tied = tie(problem, [[0, 1], [2, 3]])
        >>> tied.lift([1, 2]).tolist()
        [1, 1, 2, 2]
        >>> bool(np.isclose(tied.problem.energy([1, 2]), problem.energy([1, 1, 2, 2])))
        True
    """
    refuse_pair_costs(problem, "tied groups", "solve the problem as it is")
    members = tuple(np.array(sorted(groups), dtype=np.int64) for groups in sets)
    if sorted(np.concatenate([*members, np.zeros(0, np.int64)]).tolist()) != list(range(problem.num_groups)):
        raise InvalidProblem(f"every one of the {problem.num_groups} groups must belong to exactly one set")
    named = [_common_choices(problem, groups) for groups in members]
    originals = tuple(local for _, local in named)
    sizes = [local.shape[1] for local in originals]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows = np.concatenate(
        [
            np.repeat(np.arange(start, start + size)[None], len(groups), axis=0).ravel()
            for start, size, groups in zip(offsets, sizes, members, strict=False)
        ]
    )
    columns = np.concatenate(
        [
            (problem.group_offsets[groups][:, None] + local).ravel()
            for groups, local in zip(members, originals, strict=True)
        ]
    )
    shape = (int(offsets[-1]), problem.num_choices)
    sums = sparse.csr_array((np.ones(rows.size), (rows, columns)), shape=shape)
    names = {
        "group_offsets": offsets,
        "group_names": tuple(problem.group_names[groups[0]] for groups in members),
        "choice_names": tuple(name for names, _ in named for name in names),
    }
    small = _summed(problem, sums, names)
    set_of = np.zeros(problem.num_groups, dtype=np.int64)
    for number, groups in enumerate(members):
        set_of[groups] = number
    return TiedProblem(small, set_of, members, originals)


def _common_choices(problem: ChoiceProblem, groups: IntArray) -> tuple[list[str], IntArray]:
    """The names of the choices that all groups of a set have, and (n, K) their local numbers."""
    numbers = []
    for group in groups:
        start, stop = problem.group_offsets[group : group + 2]
        numbers.append({name: local for local, name in enumerate(problem.choice_names[start:stop])})
    names = [name for name in numbers[0] if all(name in known for known in numbers[1:])]
    if not names:
        raise InvalidProblem(f"group {problem.group_names[groups[0]]!r} and those tied to it have no choice in common")
    return names, np.array([[known[name] for name in names] for known in numbers], dtype=np.int64)


def _summed(problem: ChoiceProblem, sums: sparse.csr_array, names: dict[str, Any]) -> ChoiceProblem:
    """The problem whose choices are sums of choices; pairs within a set become linear."""
    offsets = names["group_offsets"]
    linear, factor, pairs = sums @ problem.linear, None, None
    if problem.factor is not None:
        factor = np.asarray(sums @ problem.factor.astype(np.float64), dtype=np.float32)
        # The diagonal is linear - 1/2 |factor|^2, and sums up: the sum's own square contains the pairs within the set.
        linear = sums @ problem.diagonal + 0.5 * np.einsum("vr,vr->v", factor, factor, dtype=np.float64)
    elif problem.pairs is not None:
        between = sparse.coo_array(sums @ problem.pairs @ sums.T)
        set_of_choice = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
        apart = set_of_choice[between.row] != set_of_choice[between.col]
        linear = linear + 0.5 * (sums @ problem.pairs).multiply(sums).sum(axis=1)
        pairs = sparse.csr_array((between.data[apart], (between.row[apart], between.col[apart])), shape=between.shape)
    integers = sums.astype(np.int64)
    costs = np.asarray((integers @ problem.costs.T).T)
    return replace(problem, linear=linear, costs=costs, factor=factor, pairs=pairs, **names)

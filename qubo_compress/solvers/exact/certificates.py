"""An independent, slow and simple checker of bounds and proofs: numpy only, no code shared with the solvers.

Small problems are enumerated. A branch and bound that kept a certificate is replayed: at each node, the solver's
mixture x and prices p >= 0 give the dual bound

    constant - 1/2 x.Gx - p . room + sum over groups of min_v (d[v] + (Gx)[v] + p . cost[v]),

the choices that it excludes are recomputed, and each choice of the branching group must be excluded, beyond the
budgets, or a node. The leaves then cover all assignments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.energy_scale import energy_scale
from qubo_compress.solvers.exact.branch_nodes import Slots
from qubo_compress.solvers.solution import Solution

LARGEST_ENUMERATION = 2_000_000
"""Most combinations to enumerate for a check."""

_LEAF_ENUMERATION = 4096
"""A node with at most this many combinations is enumerated, as in the solver."""
_CHUNK = 100_000
"""Combinations evaluated at a time, which limits memory."""
_ROUNDING = 1e-12
_TOLERANCE = 5e-7
"""A leaf's bound may be below the answer by this relative distance: half of an optimal gap's tolerance."""


@dataclass(frozen=True, eq=False)
class CertificateNode:
    """One bounded node of a tree.

    Attributes:
        support: choices with a share in the mixture.
        shares: their shares; they sum to one in each group.
        price: (B,) price per unit of each budget, never negative.
        children: choice -> number of the child node that takes it.
    """

    support: IntArray
    shares: FloatArray
    price: FloatArray
    children: dict[int, int] = field(default_factory=dict)


Certificate = Mapping[int, CertificateNode]
"""Node number -> node; the root is 0."""


@dataclass(frozen=True)
class BoundCheck:
    """The result of a check.

    Attributes:
        verified: whether the bound of the solution was confirmed.
        how: ``"enumeration"``, ``"dual certificate"`` or ``"not checked"``.
        value: the checker's own bound; ``-inf`` if there is none.
        leaves: number of verified leaves of the tree.
    """

    verified: bool
    how: str
    value: float
    leaves: int = 0


class CertificateRecord:
    """Collects the nodes of a tree while it grows; see ``Exact(certificate=True)``."""

    def __init__(self) -> None:
        self.nodes: dict[int, CertificateNode] = {}

    def write(self, number: int, slots: Slots, place: int) -> None:
        """Record the node in one of the slots."""
        support = np.flatnonzero(slots.x[place])
        shares, price = slots.x[place, support].copy(), slots.price[place].copy()
        self.nodes[number] = CertificateNode(support, shares, price)
        if slots.parent[place] >= 0:
            self.nodes[int(slots.parent[place])].children[int(slots.choice[place])] = number

    def certificate(self) -> Certificate:
        """The certificate of the nodes recorded so far."""
        return self.nodes


def check_bound(problem: ChoiceProblem, solution: Solution, most: int = LARGEST_ENUMERATION) -> BoundCheck:
    """Verify the bound of a solution independently of the solver that claimed it.

    Args:
        problem: the problem that was solved.
        solution: the solution; uses ``details["certificate"]`` if present.
        most: most combinations to enumerate.

    Example:
        >>> from qubo_compress import solve
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=6, choices=4, seed=0)
        >>> check_bound(problem, solve(problem, "exact")).how
        'enumeration'
    """
    if solution.bound is None:
        return BoundCheck(False, "not checked", -np.inf)
    # All figures leave out the constant, which would swamp the digits of the energies.
    problem, constant = problem.without_constant(), problem.constant
    claimed = solution.bound - constant
    if np.log(problem.group_sizes).sum() <= np.log(most):
        value = least_energy(problem)
        slack = _slack(problem, value) + _ROUNDING * abs(constant)
        return BoundCheck(claimed <= value + slack, "enumeration", constant + value)
    certificate = solution.details.get("certificate")
    if certificate is None or problem.structure == "pairs":
        return BoundCheck(False, "not checked", -np.inf)
    check = _Replay(problem, certificate, problem.energy(solution.assignment)).check(
        claimed - _ROUNDING * abs(constant)
    )
    return replace(check, value=constant + check.value)


def least_energy(problem: ChoiceProblem) -> float:
    """The least energy within the budgets over all combinations, vectorised; ``inf`` if nothing fits."""
    groups = [np.arange(a, b) for a, b in zip(problem.group_offsets[:-1], problem.group_offsets[1:], strict=True)]
    return _enumerate(problem, groups)


def _slack(problem: ChoiceProblem, value: float) -> float:
    return _ROUNDING * (abs(value) + float(np.abs(problem.linear).max(initial=0.0)) * problem.num_groups)


def _enumerate(problem: ChoiceProblem, groups: list[IntArray]) -> float:
    """The least energy over all combinations of the remaining choices."""
    sizes = [group.size for group in groups]
    total = int(np.prod([float(size) for size in sizes]))
    least = np.inf
    room = problem.limits - problem.fixed_costs
    matrix = problem.pairs.toarray() if problem.pairs is not None and problem.num_choices <= 4000 else None
    for start in range(0, total, _CHUNK):
        places = np.unravel_index(np.arange(start, min(total, start + _CHUNK)), sizes)
        chosen = np.stack([group[place] for group, place in zip(groups, places, strict=True)], axis=1)
        chosen = chosen[(problem.costs[:, chosen].sum(axis=2) <= room[:, None]).all(axis=0)]
        if chosen.shape[0] == 0:
            continue
        energy = problem.constant + problem.linear[chosen].sum(axis=1)
        if problem.factor is not None:
            total_rows = np.zeros((chosen.shape[0], problem.factor.shape[1]))
            for column in chosen.T:
                total_rows += problem.factor[column]
            energy += 0.5 * (total_rows**2).sum(axis=1) + (problem.diagonal - problem.linear)[chosen].sum(axis=1)
        elif matrix is not None:
            for first in range(chosen.shape[1]):
                for second in range(first):
                    energy += matrix[chosen[:, first], chosen[:, second]]
        elif problem.pairs is not None:
            energy = np.array([problem.energy(row - problem.group_offsets[:-1]) for row in chosen])
        least = min(least, float(energy.min()))
    return least


@dataclass(frozen=True, eq=False)
class _Box:
    """Remaining choices of each group, the node that divides them, and the bound that they inherit."""

    number: int
    groups: list[IntArray]
    bound: float


class _Replay:
    """One pass over a certificate."""

    def __init__(self, problem: ChoiceProblem, certificate: Certificate, energy: float) -> None:
        self.problem, self.certificate = problem, certificate
        self.factor = np.zeros((problem.num_choices, 1))
        if problem.factor is not None:
            self.factor = problem.factor.astype(np.float64)
        self.largest = np.abs(problem.costs).max(axis=1, initial=1).astype(np.float64)
        self.costs = problem.costs / 2.0 ** np.ceil(np.log2(self.largest))[:, None]
        self.room = problem.limits - problem.fixed_costs
        self.scaled_room = self.room / 2.0 ** np.ceil(np.log2(self.largest))
        self.target = energy - energy_scale(problem).tolerance(energy, _TOLERANCE)
        self.lowest = np.inf
        self.leaves = 0
        self.visited: set[int] = set()

    def check(self, claimed: float) -> BoundCheck:
        """Walk the tree from its root; the claimed bound holds if every leaf is bounded by it or by the target."""
        self.target = min(self.target, claimed)
        spans = zip(self.problem.group_offsets[:-1], self.problem.group_offsets[1:], strict=True)
        whole = [np.arange(a, b) for a, b in spans]
        waiting: list[_Box] = [_Box(0, whole, -np.inf)]
        while waiting:
            below = self._visit(waiting.pop())
            if below is None:
                return BoundCheck(False, "dual certificate", -np.inf, self.leaves)
            waiting += below
        return BoundCheck(claimed <= self.lowest + _slack(self.problem, claimed), "dual certificate", self.lowest,
                          self.leaves)  # fmt: skip

    def _visit(self, box: _Box) -> list[_Box] | None:
        """The children to visit, or None if some choice is not covered."""
        if box.bound >= self.target:
            return self._close(box.bound)
        groups = self._affordable(box.groups)
        if any(group.size == 0 for group in groups):
            self.leaves += 1
            return []
        if _combinations(groups) <= _LEAF_ENUMERATION:
            return self._close(_enumerate(self.problem, groups))
        # A tree visits each node once; a cycle would never end.
        node = None if box.number in self.visited else self.certificate.get(box.number)
        if node is None or not self._is_mixture(node):
            return None
        self.visited.add(box.number)
        bound, rise = self._bound(node, groups)
        if bound >= self.target:
            return self._close(bound)
        left = []
        for group, above in zip(groups, rise, strict=True):
            excluded = bound + above >= self.target
            if excluded.any():
                self.lowest = min(self.lowest, bound + float(above[excluded].min()))
            left.append(group[~excluded])
        if any(group.size == 0 for group in left):
            self.leaves += 1
            return []
        if _combinations(left) <= _LEAF_ENUMERATION:
            return self._close(_enumerate(self.problem, left))
        return self._children(node, left, max(bound, box.bound))

    def _children(self, node: CertificateNode, left: list[IntArray], bound: float) -> list[_Box] | None:
        for g, group in enumerate(left):
            if all(int(choice) in node.children for choice in group):
                return [_Box(node.children[int(v)], [*left[:g], np.array([v]), *left[g + 1 :]], bound) for v in group]
        return None

    def _close(self, bound: float) -> list[_Box]:
        self.leaves += 1
        self.lowest = min(self.lowest, bound)
        return []

    def _affordable(self, groups: list[IntArray]) -> list[IntArray]:
        """Remove choices that do not fit even if all others are the cheapest; in exact integers."""
        costs = self.problem.costs
        while True:
            least = np.array([costs[:, group].min(axis=1) for group in groups]).T.reshape(costs.shape[0], len(groups))
            spare = self.room - least.sum(axis=1)
            fits = [
                group[(costs[:, group] - least[:, [g]] <= spare[:, None]).all(axis=0)] for g, group in enumerate(groups)
            ]
            if any(group.size == 0 for group in fits) or all(
                a.size == b.size for a, b in zip(fits, groups, strict=True)
            ):
                return fits
            groups = fits

    def _is_mixture(self, node: CertificateNode) -> bool:
        support, shares, price = node.support, node.shares, node.price
        if support.dtype.kind not in "iu" or support.ndim != 1 or support.size == 0 or shares.shape != support.shape:
            return False
        if shares.dtype.kind not in "iuf" or price.dtype.kind not in "iuf" or price.shape != self.room.shape:
            return False
        inside = support.min() >= 0 and support.max() < self.problem.num_choices
        numbers = all(isinstance(child, (int, np.integer)) for child in node.children.values())
        return bool(inside and numbers and np.isfinite(shares).all() and (price >= 0.0).all())

    def _bound(self, node: CertificateNode, groups: list[IntArray]) -> tuple[float, list[FloatArray]]:
        """The dual bound over the remaining choices, less rounding, and how far each choice is above it."""
        total = node.shares @ self.factor[node.support]
        slopes = self.problem.diagonal + self.factor @ total + node.price @ self.costs
        lows = np.array([slopes[group].min() for group in groups])
        charge = float(node.price @ self.scaled_room)
        bound = self.problem.constant - 0.5 * float(total @ total) - charge + float(lows.sum())
        magnitude = float(total @ total) + charge + float(np.abs(lows).sum()) + abs(self.problem.constant)
        return bound - _ROUNDING * magnitude, [slopes[g] - low for g, low in zip(groups, lows, strict=True)]


def _combinations(groups: list[IntArray]) -> float:
    return float(np.prod(np.array([group.size for group in groups], dtype=np.float64)))


__all__ = ["BoundCheck", "Certificate", "CertificateNode", "CertificateRecord", "check_bound", "least_energy"]

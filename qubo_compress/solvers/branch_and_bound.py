"""Branch and bound on the convex relaxation: exact for coupled choices and for several budgets.

Nodes are explored by least bound. A node's relaxation fixes what its reduced costs exclude, the group whose mixture
hides the most energy is branched on, one child per choice left, and once few combinations remain they
are enumerated. The bound is at every moment the least over all open nodes.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass, field

import numpy as np

from qubo_compress.problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers import branch_kernels as kernels
from qubo_compress.solvers.local_search import LocalSearch
from qubo_compress.solvers.relaxation import ConvexForm, relax, start_at

_PRUNE = 1e-7
"""Nodes within this relative distance of the best answer are closed; an optimal gap is 1e-6."""

_ENUMERATE = 4096
"""Combinations that are enumerated rather than branched on."""

_MOST_OPEN = 400_000
"""Open nodes above which the search dives instead of widening, about 100 bytes each and 2 kB per parent."""

_ROUND_EVERY = 32
_PAIRED_GROUPS = 50
"""Most groups for which a rounded mixture is improved by double changes too."""


@dataclass(frozen=True)
class _Parent:
    """What the children of a node share."""

    offsets: IntArray
    choices: IntArray
    support: IntArray
    shares: FloatArray
    multipliers: FloatArray


@dataclass
class Tree:
    """One search, advanced in place so that an interruption loses nothing.

    Args:
        problem: the problem.
        form: its convex form, which may have been strengthened.
        search: for rounding mixtures to assignments.
        incumbent: a feasible assignment, or None.
    """

    problem: ChoiceProblem
    form: ConvexForm
    search: LocalSearch
    incumbent: IntArray | None
    best: float = np.inf
    root_bound: float = -np.inf
    nodes: int = 0
    pool: list[IntArray] = field(default_factory=list)
    trace: list[tuple[float, float, float | None]] = field(default_factory=list)
    _open: list[tuple[float, int, _Parent, int]] = field(default_factory=list)
    _closed: float = np.inf
    _current: float = np.inf
    _count: int = 0
    _started: bool = False
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._stiffness = self.form.stiffness
        incumbent, self.incumbent = self.incumbent, None
        if incumbent is not None:
            self._offer(incumbent)

    @property
    def bound(self) -> float:
        """True lower bound at this moment; ``inf`` when the tree is exhausted without an answer."""
        least = min(self._open[0][0] if self._open else np.inf, self._closed, self._current)
        if not self._started:
            least = -np.inf
        return max(self.root_bound, min(least, self.best))

    @property
    def finished(self) -> bool:
        """Whether no open node could still improve the answer."""
        return self._started and self._current == np.inf and (not self._open or self._open[0][0] >= self._cutoff())

    def run(self, deadline: float, work: int | None) -> None:
        """Explore until proven, out of time or out of work."""
        if not self._started:
            self._plant(deadline)
        longest = 0.0
        while not self.finished and (work is None or self.nodes < work):
            begin = time.perf_counter()
            if begin + longest >= deadline:
                break
            self._step()
            longest = max(0.9 * longest, time.perf_counter() - begin)

    def _plant(self, deadline: float) -> None:
        form = self.form
        offsets, choices = kernels.drop_unaffordable(form.offsets, np.arange(form.diagonal.size), form.costs, form.room)
        if choices.size == 0:
            self.root_bound, self._started = np.inf, True
            return
        seed = self.incumbent if self.incumbent is not None else np.zeros(self.problem.num_groups, dtype=np.int64)
        mixture = start_at(form, self.problem.selected(seed))
        self.root_bound = relax(form, mixture, deadline)[0]
        self._note()
        support = np.flatnonzero(mixture.x)
        parent = _Parent(offsets, choices, support, mixture.x[support], mixture.multipliers)
        heapq.heappush(self._open, (self.root_bound, 0, parent, -1))
        self._started = True

    def _cutoff(self) -> float:
        return self.best - _PRUNE * max(abs(self.best), 1e-9) if np.isfinite(self.best) else np.inf

    def _step(self) -> None:
        # While a node is in the hand it counts as open, so that an interruption at any moment loses no bound.
        self._current = self._open[0][0]
        # Entry 0 has the least bound; the newest entry is the deepest, and diving needs no memory.
        if len(self._open) < _MOST_OPEN:
            inherited, _, parent, choice = heapq.heappop(self._open)
        else:
            newest = max(range(len(self._open) - 64, len(self._open)), key=lambda i: self._open[i][1])
            inherited, _, parent, choice = self._open[newest]
            self._open[newest] = self._open[-1]
            self._open.pop()
            heapq.heapify(self._open)
        if inherited >= self._cutoff():
            self._closed = min(self._closed, inherited)
        else:
            self._expand(inherited, parent, choice)
        self._current = np.inf

    def _expand(self, inherited: float, parent: _Parent, choice: int) -> None:
        self.nodes += 1
        form, cutoff = self.form, self._cutoff()
        offsets, choices = _restricted(parent, form.offsets, choice)
        offsets, choices = kernels.drop_unaffordable(offsets, choices, form.costs, form.room)
        if choices.size == 0:
            return
        if self._few(offsets):
            self._enumerate(offsets, choices)
            return
        start = np.zeros(form.diagonal.size)
        start[parent.support] = parent.shares
        value, shares, reduced, multipliers = kernels.bound_node(
            form.constant, form.diagonal, form.gram, form.costs, form.room, self._stiffness, offsets, choices,
            start, parent.multipliers, cutoff, 25,
        )  # fmt: skip
        value = max(value, inherited)
        if value >= cutoff:
            self._closed = min(self._closed, value)
            return
        if self.nodes <= _ROUND_EVERY or self.nodes % _ROUND_EVERY == 0:
            self._round(offsets, choices, shares)
            cutoff = self._cutoff()
        keep = value + reduced < cutoff
        if not keep.all():
            self._closed = min(self._closed, float((value + reduced[~keep]).min()))
            members = np.add.reduceat(keep.astype(np.int64), offsets[:-1])
            if not members.all():  # the incumbent improved while rounding and closes the node
                return
            offsets, choices = np.concatenate([[0], np.cumsum(members)]), choices[keep]
            shares, reduced = shares[keep], reduced[keep]
            if self._few(offsets):
                self._enumerate(offsets, choices)
                return
        group = int(kernels.widest_group(form.gram, offsets, choices, shares))
        used = np.flatnonzero(shares > 1e-7)
        child = _Parent(offsets, choices, choices[used], shares[used], multipliers)
        for position in range(offsets[group], offsets[group + 1]):
            self._count += 1
            entry = (float(value + reduced[position]), -self._count, child, int(choices[position]))
            heapq.heappush(self._open, entry)

    def _few(self, offsets: IntArray) -> bool:
        return bool(np.log(np.diff(offsets)).sum() <= np.log(_ENUMERATE) + 1e-9)

    def _enumerate(self, offsets: IntArray, choices: IntArray) -> None:
        form = self.form
        _, answer = kernels.enumerate_rest(
            form.constant, form.diagonal, form.gram, form.costs, form.room, offsets, choices, self.best
        )
        if answer[0] >= 0:
            self._offer(answer - form.offsets[:-1])

    def _round(self, offsets: IntArray, choices: IntArray, shares: FloatArray) -> None:
        picks = [choices[a + int(np.argmax(shares[a:b]))] for a, b in itertools.pairwise(offsets)]
        self.search.place(np.array(picks) - self.form.offsets[:-1])
        if self.search.repair():
            self.search.descend(np.inf, pairs=self.problem.num_groups <= _PAIRED_GROUPS)
            self._offer(self.search.assignment)

    def _offer(self, assignment: IntArray) -> None:
        if not self.problem.is_feasible(assignment):
            return
        energy = self.problem.energy(assignment)
        if energy < self.best:
            self.best, self.incumbent = energy, assignment.copy()
            self.pool.insert(0, self.incumbent)
            self._note()

    def _note(self) -> None:
        bound = self.bound if self._started else self.root_bound
        self.trace.append((time.perf_counter() - self.start, self.best, bound if np.isfinite(bound) else None))


def _restricted(parent: _Parent, all_offsets: IntArray, choice: int) -> tuple[IntArray, IntArray]:
    """The parent's choices with one group decided; the root's with none."""
    if choice < 0:
        return parent.offsets, parent.choices
    group = int(np.searchsorted(all_offsets, choice, side="right")) - 1
    start, stop = parent.offsets[group], parent.offsets[group + 1]
    choices = np.concatenate([parent.choices[:start], [choice], parent.choices[stop:]])
    offsets = parent.offsets.copy()
    offsets[group + 1 :] -= stop - start - 1
    return offsets, choices

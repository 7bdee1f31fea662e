"""Branch and bound on the convex relaxation: exact for coupled choices and for several budgets.

Nodes are explored by least bound. The reduced costs of a node's relaxation exclude choices. The search branches on the
group whose mixture hides the most energy, with one child per remaining choice, and enumerates once few combinations
remain. The bound is always the least over all open nodes.

The queue, the bounding and the enumeration are compiled and work on plain arrays. Nodes are bounded in batches, which
threads share; a batch's size depends only on the number of nodes done, so the tree is the same with any
number of threads.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from qubo_compress._internal.processors import usable_processors
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.energy_scale import energy_scale
from qubo_compress.solvers.exact import branch_kernels as kernels
from qubo_compress.solvers.exact.branch_nodes import (
    ByteArray,
    Families,
    Slots,
    enlarged,
    make_families,
    make_slots,
    put,
    row_bytes,
    take,
)
from qubo_compress.solvers.exact.convex_relaxation import bound_at, relax, start_at
from qubo_compress.solvers.exact.relaxation_kernels import ConvexForm
from qubo_compress.solvers.local_search.descent import LocalSearch

PRUNE = 1e-7
"""Nodes within this relative distance of the best answer are closed; an optimal gap is 1e-6."""

_BATCH = 32
"""Most nodes bounded at a time."""
_LOOKS = 25
"""Most bounds per node before it is branched on."""
_FIRST_ROWS = 512
"""Rows for open nodes at the start; they grow when used up."""
_MOST_BYTES = 512 * 1024**2
"""Memory for open nodes; when it is used up, the search dives, which needs no more."""

_ROUND_EVERY = 32
"""The mixtures of this many first nodes are rounded, then one in as many."""
_PAIRED_GROUPS = 50
"""Most groups for which double changes improve every rounded mixture."""

_MOST_PAIRED_GROUPS = 400
"""Most groups for which double changes improve a rounded mixture that is the best so far."""


class NodeRecord(Protocol):
    """Records what a certificate needs of every node of a tree."""

    def write(self, number: int, slots: Slots, place: int) -> None:
        """Record the node in one of the slots; nodes are numbered from 0."""
        ...


@dataclass
class Tree:
    """One search tree, advanced in place so that an interruption loses nothing.

    Args:
        problem: the problem.
        form: its convex form, possibly strengthened.
        search: for rounding mixtures to assignments.
        incumbent: a feasible assignment, or None.
        threads: how many nodes are bounded at a time; None for one per processor that this process may use.
        record: records each bounded node for a certificate, or None.
        closed: least bound of everything cut off here or excluded before.
        root_bound: a known bound, then the one proven at the root.
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
    start: float = field(default_factory=time.perf_counter)
    threads: int | None = None
    record: NodeRecord | None = None
    closed: float = np.inf
    _current: float = np.inf
    _started: bool = False
    _deadline: float = np.inf

    def __post_init__(self) -> None:
        form = self.form
        self._scale = energy_scale(self.problem)
        self._most_rows = max(4 * _BATCH, _MOST_BYTES // row_bytes(form.offsets, form.room.size))
        self._families: Families = make_families(min(_FIRST_ROWS, self._most_rows), form.offsets, form.room.size)
        self._slots: Slots = make_slots(_BATCH, form.offsets, form.room.size)
        incumbent, self.incumbent = self.incumbent, None
        if incumbent is not None:
            self._offer(incumbent)

    @property
    def bound(self) -> float:
        """Valid lower bound at this moment; ``inf`` when the tree is exhausted without an answer."""
        least = min(self._least_open(), self.closed, self._current)
        if not self._started:
            least = -np.inf
        return max(self.root_bound, min(least, self.best))

    @property
    def finished(self) -> bool:
        """Whether no open node could still improve the answer."""
        return self._started and self._current == np.inf and self._least_open() >= self.cutoff

    def run(self, deadline: float, work: int | None) -> None:
        """Explore until proven, out of time or out of work."""
        self._deadline = deadline
        if not self._started:
            self._plant(deadline)
        longest = 0.0
        with ThreadPoolExecutor(max_workers=self._workers()) as executor:
            while not self.finished and (work is None or self.nodes < work):
                begin = time.perf_counter()
                if begin + longest >= deadline:
                    break
                most = max(1, min(_BATCH, self.nodes // 4))
                self._step(most if work is None else min(most, work - self.nodes), executor)
                longest = max(0.9 * longest, time.perf_counter() - begin)

    def _workers(self) -> int:
        return self.threads or min(_BATCH, usable_processors())

    def _least_open(self) -> float:
        families = self._families
        if families.counts[0] == 0:
            return np.inf
        row = families.heap[0]
        return float(families.bounds[row, families.next_child[row]])

    def _plant(self, deadline: float) -> None:
        form, slots = self.form, self._slots
        offsets, choices = form.offsets.copy(), np.arange(form.diagonal.size)
        if not kernels.drop_unaffordable(form, offsets, choices):
            self.root_bound, self._started = np.inf, True
            return
        seed = self.incumbent if self.incumbent is not None else np.zeros(self.problem.num_groups, dtype=np.int64)
        mixture = start_at(form, self.problem.selected(seed))
        self.root_bound = max(self.root_bound, relax(form, mixture, deadline)[0])
        self._note()
        # The root goes directly into the first slot, where the first step finds it.
        slots.x[0], slots.multipliers[0] = mixture.x, mixture.multipliers
        slots.inherited[0], slots.parent[0], slots.choice[0] = self.root_bound, -1, -1
        slots.allowed[0] = 0
        slots.allowed[0, choices[: offsets[-1]]] = 1
        self._current = self.root_bound
        self._started = True

    @property
    def cutoff(self) -> float:
        """The bound from which on a node cannot improve the answer by more than the tolerance."""
        return self.best - self._scale.tolerance(self.best, PRUNE) if np.isfinite(self.best) else np.inf

    def _step(self, most: int, executor: Executor) -> None:
        """Bound a batch of nodes and queue their children."""
        families, slots, cutoff = self._families, self._slots, self.cutoff
        if self.nodes == 0:
            taken = 1
        else:
            # Nodes being bounded still count as open, so that an interruption at any moment loses no bound.
            self._current = self._least_open()
            full = families.counts[1] < _BATCH and families.heap.size >= self._most_rows
            taken = take(families, slots, self.form.offsets, 1 if full else most, cutoff, full)
        self._expand(taken, cutoff, executor)
        first, self.nodes = self.nodes, self.nodes + taken
        for i in range(taken):
            if self.record is not None:
                self.record.write(first + i, slots, i)
            if slots.answer[i, 0] >= 0:
                self._offer(slots.answer[i])
            number = first + i + 1
            if slots.children[i, 0] >= 0 and (number <= _ROUND_EVERY or number % _ROUND_EVERY == 0):
                self._round(slots.x[i], slots.allowed[i])
        if families.counts[1] < taken:
            self._families = families = enlarged(families, 2 * families.heap.size)
        self.closed = min(self.closed, float(put(families, slots, taken, first, self.cutoff)))
        self._current = np.inf

    def _expand(self, count: int, cutoff: float, executor: Executor) -> None:
        """Bound the nodes in the first slots, using all threads."""
        form = self.form
        parts = min(self._workers(), max(1, count // 4))
        edges = [count * part // parts for part in range(parts + 1)]
        jobs = [
            executor.submit(kernels.expand, form, self._slots, first, stop, cutoff, self.best, _LOOKS)
            for first, stop in itertools.pairwise(edges[1:])
        ]
        kernels.expand(form, self._slots, 0, edges[1], cutoff, self.best, _LOOKS)
        for job in jobs:
            job.result()

    def _round(self, x: FloatArray, allowed: ByteArray) -> None:
        """Round a mixture to an assignment, improve it, and offer it as the incumbent."""
        shares = np.where(allowed, x, -1.0)
        picks = [int(np.argmax(shares[a:b])) for a, b in itertools.pairwise(self.form.offsets)]
        self.search.place(np.array(picks))
        if self.search.repair():
            groups = self.problem.num_groups
            self.search.descend(self._deadline, pairs=groups <= _PAIRED_GROUPS)
            if _PAIRED_GROUPS < groups <= _MOST_PAIRED_GROUPS and self.search.energy < self.best:
                self.search.descend(self._deadline)
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


def choices_left(form: ConvexForm, vertex: IntArray, cutoff: float) -> IntArray:
    """Choices that the root relaxation cannot exclude at the cutoff, and those of ``vertex``."""
    mixture = start_at(form, vertex)
    _, price = relax(form, mixture, np.inf)
    bound = bound_at(form, mixture, np.arange(form.diagonal.size), price)
    slopes = form.diagonal + form.gram @ mixture.x + form.costs @ price
    rise = slopes - np.repeat(np.minimum.reduceat(slopes, form.offsets[:-1]), np.diff(form.offsets))
    left = bound + rise - 1e-12 * (np.abs(slopes) + abs(bound)) < cutoff
    left[vertex] = True
    return np.flatnonzero(left)

"""Branch and bound on message passing: proofs for dense pairs without other software.

A node holds the remaining choices of the undecided groups and the tables between them, in the form that the messages
of its parent left. Deciding a group adds its pair energies to the other groups' single terms and drops its tables; a
few more passes of messages, and prices of the budgets, then raise the bound again. What a choice's single term is above
its group's least one is a bound's rise if that choice must be used, so it excludes choices and orders the children.

Nodes are explored depth first, the least bound of the children first; the bound is the least over all open children.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.energy_scale import energy_scale
from qubo_compress.solvers.exact import price_kernels
from qubo_compress.solvers.exact.branch_and_bound import PRUNE
from qubo_compress.solvers.exact.convex_relaxation import scaled_costs
from qubo_compress.solvers.exact.message_passing import _blocks, _least_pairs, _shake_hands

LARGEST_TREE_BLOCKS = 400_000
"""Most entries of the coupled tables: more take milliseconds a node."""

_ROOT_PASSES, _PASSES = 200, 6
_LEAST_GAIN = 0.02
"""Passes go on while each closes at least this share of the gap that is left."""

_ROUNDING = 2.3e-16
"""Relative error of an addition, doubled: counted once for every term and pass."""


@dataclass(frozen=True, eq=False)
class _Node:
    """Undecided groups, with messages already passed.

    Attributes:
        energy: of the decided groups, with what was moved to it.
        groups: numbers of the undecided groups.
        kept: (V',) global numbers of their remaining choices.
        offsets: (G' + 1,) offsets of these groups in ``kept``.
        singles: (V',) single terms, with prices charged.
        tables: of pairs of undecided groups, by their places in ``groups``, the lower first.
        price: (B,) charged in ``singles``.
        room: (B,) left by the decided groups.
        decided: (G,) global choice of each decided group, -1 for the others.
    """

    energy: float
    groups: IntArray
    kept: IntArray
    offsets: IntArray
    singles: FloatArray
    tables: dict[tuple[int, int], FloatArray]
    price: FloatArray
    room: FloatArray
    decided: IntArray


@dataclass
class MessageTree:
    """One search tree; every attribute is valid at any moment.

    Args:
        problem: a standardised problem with pairs, whose tables have at most :data:`LARGEST_TREE_BLOCKS` entries.
        best: a feasible assignment, or None.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=5, choices=3, seed=0)
        >>> tree = MessageTree(problem, None)
        >>> tree.run(np.inf, None)
        >>> tree.finished, bool(problem.energy(tree.best) - tree.bound < 1e-6)
        (True, True)
    """

    problem: ChoiceProblem
    best: IntArray | None
    nodes: int = 0
    pool: list[IntArray] = field(default_factory=list)
    finished: bool = False
    closed: float = np.inf

    def __post_init__(self) -> None:
        self._costs, room, _ = scaled_costs(self.problem)
        self._least = np.inf if self.best is None else self.problem.energy(self.best)
        root = _root(self.problem, room)
        self._margin = _margin(self.problem, root)
        self._open: list[tuple[float, _Node, int]] = [(-np.inf, root, -1)]
        self._current = np.inf

    @property
    def bound(self) -> float:
        """Lower bound on all energies at this moment; infinite if nothing fits."""
        return min([self.closed, self._current, self._least, *(bound for bound, _, _ in self._open)])

    def run(self, deadline: float, work: int | None) -> None:
        """Explore until proven, out of time or out of work (nodes)."""
        while self._open and (work is None or self.nodes < work) and time.perf_counter() < deadline:
            self._current, parent, choice = self._open[-1]
            self._open.pop()
            if self._current < self._cutoff():
                self.nodes += 1
                node = parent if choice < 0 else _decided(parent, choice, self._costs)
                self._expand(node, self._current, _ROOT_PASSES if choice < 0 else _PASSES)
            else:
                self.closed = min(self.closed, self._current)
            self._current = np.inf
        self.finished = not self._open

    def offer(self, assignment: IntArray) -> None:
        """Take a feasible assignment from elsewhere if it is better."""
        energy = self.problem.energy(assignment)
        if energy < self._least:
            self._least, self.best = energy, assignment

    def _cutoff(self) -> float:
        if self.best is None:
            return np.inf
        return self._least - energy_scale(self.problem).tolerance(self._least, PRUNE)

    def _expand(self, node: _Node, known: float, passes: int) -> None:
        """Bound a node, and open its children."""
        cutoff = self._cutoff()
        while True:
            bound, here, node = _tightened(node, self._costs, passes, cutoff + self._margin)
            known = max(known, bound - self._margin)
            if known >= cutoff:
                self.closed = min(self.closed, known)
                return
            if node.groups.size == 0:
                self._offer(node)
                return
            used = here - self._margin + _rises(node)  # bounds if a choice must be used
            left = (used < cutoff) & _affordable(node, self._costs)
            self.closed = min(self.closed, float(used[used >= cutoff].min(initial=np.inf)))
            group = np.repeat(np.arange(node.groups.size), np.diff(node.offsets))
            counts = np.bincount(group[left], minlength=node.groups.size)
            if (counts == 0).any():
                return
            removed = int((~left).sum())
            if removed:
                node = _restricted(node, left, counts)
            if (counts == 1).all():
                self._offer(node)
                return
            if removed * 4 < left.size:  # otherwise the smaller tables give a better bound
                break
        self._branch(node, known, here - self._margin, cutoff)

    def _branch(self, node: _Node, known: float, here: float, cutoff: float) -> None:
        rise = _rises(node)
        gap = cutoff - known if np.isfinite(cutoff) else max(float(rise.max()), 1e-12)
        shares = np.add.reduceat(np.minimum(rise / gap, 1.0), node.offsets[:-1])
        sizes = np.diff(node.offsets)
        # Where all but a few choices are nearly excluded, few children remain soon.
        hard = sizes - shares
        pick = int(np.argmin(np.where(sizes > 1, hard, np.inf)))
        start, stop = node.offsets[pick], node.offsets[pick + 1]
        children = [(max(known, here + float(rise[v])), node, int(v)) for v in range(start, stop)]
        self._open += sorted(children, key=lambda child: -child[0])

    def _offer(self, node: _Node) -> None:
        """Compare the only assignment that a node leaves with the best one."""
        chosen = node.decided.copy()
        chosen[node.groups] = node.kept
        assignment = chosen - self.problem.group_offsets[:-1]
        if not self.problem.is_feasible(assignment):
            return
        energy = self.problem.energy(assignment)
        self.closed = min(self.closed, energy)
        if energy < self._least:
            self.offer(assignment)
            self.pool.insert(0, assignment)


def _rises(node: _Node) -> FloatArray:
    """(V',) each single term less the least one of its group."""
    least = np.minimum.reduceat(node.singles, node.offsets[:-1])
    return np.asarray(node.singles - np.repeat(least, np.diff(node.offsets)), dtype=np.float64)


def _root(problem: ChoiceProblem, room: FloatArray) -> _Node:
    blocks = _blocks(problem)
    sizes = problem.group_sizes
    tables = {
        (int(g), int(h)): blocks.values[a:b].reshape(sizes[g], sizes[h])
        for g, h, a, b in zip(blocks.lower, blocks.upper, blocks.starts[:-1], blocks.starts[1:], strict=True)
    }
    groups = np.arange(problem.num_groups)
    return _Node(
        problem.constant, groups, np.arange(problem.num_choices), problem.group_offsets.copy(), problem.linear.copy(),
        tables, np.zeros(room.size), room, np.full(groups.size, -1, dtype=np.int64),
    )  # fmt: skip


def _margin(problem: ChoiceProblem, root: _Node) -> float:
    """Largest rounding error of a bound, however many passes led to it."""
    starts = problem.group_offsets[:-1]
    reach = float(np.maximum.reduceat(np.abs(problem.linear), starts).sum())
    reach += sum(float(np.abs(table).max()) for table in root.tables.values())
    terms = 2 * len(root.tables) + problem.num_groups + 60
    passes = 2 * _ROOT_PASSES + 4 * _PASSES * problem.num_groups
    return _ROUNDING * reach * (terms + passes)


def _decided(parent: _Node, place: int, costs: FloatArray) -> _Node:
    """The node in which one choice of ``parent.kept`` is used."""
    pick = int(np.searchsorted(parent.offsets, place, side="right")) - 1
    row, groups = place - int(parent.offsets[pick]), parent.groups
    start, stop = int(parent.offsets[pick]), int(parent.offsets[pick + 1])
    keep = np.ones(parent.kept.size, dtype=np.bool_)
    keep[start:stop] = False
    singles = parent.singles.copy()
    tables = {}
    for (g, h), table in parent.tables.items():
        if g == pick:
            singles[parent.offsets[h] : parent.offsets[h + 1]] += table[row]
        elif h == pick:
            singles[parent.offsets[g] : parent.offsets[g + 1]] += table[:, row]
        else:
            tables[(g - (g > pick), h - (h > pick))] = table
    choice = int(parent.kept[place])
    decided = parent.decided.copy()
    decided[groups[pick]] = choice
    sizes = np.delete(np.diff(parent.offsets), pick)
    # The charge of the decided choice is taken back; its cost leaves the room instead.
    energy = parent.energy + float(parent.singles[place]) - float(parent.price @ costs[choice])
    return _Node(
        energy, np.delete(groups, pick), parent.kept[keep], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        singles[keep], tables, parent.price, parent.room - costs[choice], decided,
    )  # fmt: skip


def _restricted(node: _Node, left: npt.NDArray[np.bool_], counts: IntArray) -> _Node:
    """The node without some choices."""
    spans = [left[a:b] for a, b in zip(node.offsets[:-1], node.offsets[1:], strict=True)]
    whole = [bool(span.all()) for span in spans]
    tables = {}
    for (g, h), table in node.tables.items():
        kept = table if whole[g] else table[spans[g]]
        tables[(g, h)] = kept if whole[h] else kept[:, spans[h]]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return _Node(
        node.energy, node.groups, node.kept[left], offsets, node.singles[left], tables, node.price, node.room,
        node.decided,
    )  # fmt: skip


def _affordable(node: _Node, costs: FloatArray) -> npt.NDArray[np.bool_]:
    """(V',) choices that fit if all other groups take their cheapest ones; exact, because costs are whole."""
    here = costs[node.kept]
    if here.shape[1] == 0 or node.groups.size == 0:
        return np.ones(node.kept.size, dtype=np.bool_)
    least = np.minimum.reduceat(here, node.offsets[:-1], axis=0)
    spare = node.room - least.sum(axis=0)
    return np.asarray((here - np.repeat(least, np.diff(node.offsets), axis=0) <= spare).all(axis=1))


def _tightened(node: _Node, costs: FloatArray, passes: int, enough: float) -> tuple[float, float, _Node]:
    """The best bound of a node, that of its last form, and the node in this form."""
    if node.groups.size == 0:
        energy = node.energy if (node.room >= 0).all() else np.inf
        return energy, energy, node
    keys = list(node.tables)
    lower = np.array([g for g, _ in keys], dtype=np.int64)
    upper = np.array([h for _, h in keys], dtype=np.int64)
    values = np.concatenate([np.zeros(0), *(node.tables[key].ravel() for key in keys)])
    starts = np.concatenate([[0], np.cumsum([node.tables[key].size for key in keys])]).astype(np.int64)
    here, choices = np.ascontiguousarray(costs[node.kept]), np.arange(node.kept.size)
    singles, price, best = node.singles.copy(), node.price, -np.inf
    for turn in range(passes + 1):
        free = singles - here @ price
        raised = price.copy()
        value = price_kernels.polish_prices(free, node.offsets, choices, here, node.room, raised, 4)
        singles, price = free + here @ raised, raised
        bound = node.energy + value + _least_pairs(values, starts)
        gain, best = bound - best, max(best, bound)
        if bound >= enough or not keys or turn == passes:
            break
        if turn and gain < _LEAST_GAIN * (enough - bound if np.isfinite(enough) else abs(bound) + 1e-9):
            break
        for forward in (True, False):
            _shake_hands(singles, values, starts, lower, upper, node.offsets, forward)
    tables = {
        key: values[a:b].reshape(node.tables[key].shape)
        for key, a, b in zip(keys, starts[:-1], starts[1:], strict=True)
    }
    last = _Node(node.energy, node.groups, node.kept, node.offsets, singles, tables, price, node.room, node.decided)
    return best, bound, last

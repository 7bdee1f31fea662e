"""Storage of a branch and bound tree in plain arrays, and the compiled queue over it.

An open family is a bounded node whose children still have to be looked at, best child first. Only the next child
of a family is in the queue, so that a family takes one row of memory whatever its number of children.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import FIRST, compiled
from qubo_compress.problem.choice_problem import FactorArray, FloatArray, IntArray

SHARES_PER_GROUP = 4
"""Most shares per group, on average, that a family remembers of its mixture as the start of its children."""

ByteArray = npt.NDArray[np.uint8]
ShortArray = npt.NDArray[np.int32]


class Families(NamedTuple):
    """All open families; row r of every array but the last two belongs to family r.

    Attributes:
        allowed: (R, V) whether a choice is left.
        support: (R, S) choices with a share in the mixture, -1 behind the last.
        shares: (R, S) their shares.
        multipliers: (R, B) prices to start from.
        children: (R, K) choices of the group that is branched on, best first, -1 behind the last.
        bounds: (R, K) lower bounds of the children.
        next_child: (R,) how many children have been taken.
        node: (R,) number of the node whose children these are.
        born: (R,) running number.
        heap: (R,) rows in heap order of the next child's bound; the newest first where tied.
        free: (R,) stack of unused rows.
        counts: (3,) rows in the heap, unused rows, families born so far.
    """

    allowed: ByteArray
    support: ShortArray
    shares: FactorArray
    multipliers: FloatArray
    children: ShortArray
    bounds: FloatArray
    next_child: IntArray
    node: IntArray
    born: IntArray
    heap: IntArray
    free: IntArray
    counts: IntArray


class Slots(NamedTuple):
    """Nodes at work; row i of every array belongs to one node.

    Attributes:
        allowed: (P, V) whether a choice is left; narrowed while the node is bounded.
        x: (P, V) mixture: where the search starts, then where it ended.
        multipliers: (P, B) prices: where the search starts, then where it ended.
        price: (P, B) prices that prove the bound.
        inherited: (P,) the bound that is known before the node is looked at.
        bound: (P,) the bound that x and price prove; infinite where nothing fits the budgets.
        children: (P, K) choices to branch on, best first, -1 behind the last.
        bounds: (P, K) their bounds.
        closed: (P,) least bound of what was cut off.
        answer: (P, G) best combination found by enumeration, its first entry -1 where there is none.
        parent: (P,) number of the node's parent, -1 at the root.
        choice: (P,) the choice that distinguishes it from its parent, -1 at the root.
    """

    allowed: ByteArray
    x: FloatArray
    multipliers: FloatArray
    price: FloatArray
    inherited: FloatArray
    bound: FloatArray
    children: ShortArray
    bounds: FloatArray
    closed: FloatArray
    answer: IntArray
    parent: IntArray
    choice: IntArray


def make_families(rows: int, offsets: IntArray, budgets: int) -> Families:
    """Room for a number of families of a problem with these groups."""
    groups, choices = offsets.size - 1, int(offsets[-1])
    widest = int(np.diff(offsets).max())
    support = min(choices, SHARES_PER_GROUP * groups)
    return Families(
        allowed=np.zeros((rows, choices), dtype=np.uint8),
        support=np.full((rows, support), -1, dtype=np.int32),
        shares=np.zeros((rows, support), dtype=np.float32),
        multipliers=np.zeros((rows, budgets)),
        children=np.full((rows, widest), -1, dtype=np.int32),
        bounds=np.full((rows, widest), np.inf),
        next_child=np.zeros(rows, dtype=np.int64),
        node=np.zeros(rows, dtype=np.int64),
        born=np.zeros(rows, dtype=np.int64),
        heap=np.zeros(rows, dtype=np.int64),
        free=np.arange(rows, dtype=np.int64)[::-1].copy(),
        counts=np.array([0, rows, 0], dtype=np.int64),
    )


def row_bytes(offsets: IntArray, budgets: int) -> int:
    """Memory that one family takes."""
    return sum(array.nbytes for array in make_families(1, offsets, budgets))


def enlarged(families: Families, rows: int) -> Families:
    """The same families with room for more."""
    old = families.heap.size
    extra = rows - old
    grown: list[Any] = []
    arrays: tuple[npt.NDArray[Any], ...] = tuple(families)
    for name, array in zip(Families._fields, arrays, strict=True):
        if name == "counts":
            grown.append(array.copy())
            continue
        larger = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
        larger[:old] = array
        grown.append(larger)
    larger_families = Families(*grown)
    unused = int(families.counts[1])
    larger_families.free[unused : unused + extra] = np.arange(rows - 1, old - 1, -1)
    larger_families.counts[1] = unused + extra
    return larger_families


def make_slots(count: int, offsets: IntArray, budgets: int) -> Slots:
    """Room for a number of nodes at work."""
    groups, choices = offsets.size - 1, int(offsets[-1])
    widest = int(np.diff(offsets).max())
    return Slots(
        allowed=np.ones((count, choices), dtype=np.uint8),
        x=np.zeros((count, choices)),
        multipliers=np.zeros((count, budgets)),
        price=np.zeros((count, budgets)),
        inherited=np.full(count, -np.inf),
        bound=np.full(count, -np.inf),
        children=np.full((count, widest), -1, dtype=np.int32),
        bounds=np.full((count, widest), np.inf),
        closed=np.full(count, np.inf),
        answer=np.full((count, groups), -1, dtype=np.int64),
        parent=np.full(count, -1, dtype=np.int64),
        choice=np.full(count, -1, dtype=np.int64),
    )


@compiled
def _before(families: Families, first: int, second: int) -> bool:
    one = families.bounds[first, families.next_child[first]]
    other = families.bounds[second, families.next_child[second]]
    return bool(one < other or (one == other and families.born[first] > families.born[second]))


@compiled
def _sift(families: Families, position: int) -> None:
    """Restore the heap order where only the entry at ``position`` may be out of place."""
    heap, size = families.heap, families.counts[0]
    row = heap[position]
    while position > 0 and _before(families, row, heap[(position - 1) // 2]):
        heap[position] = heap[(position - 1) // 2]
        position = (position - 1) // 2
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and _before(families, heap[child + 1], heap[child]):
            child += 1
        if not _before(families, heap[child], row):
            break
        heap[position] = heap[child]
        position = child
    heap[position] = row


@compiled
def take(families: Families, slots: Slots, offsets: IntArray, most: int, cutoff: float, newest: bool) -> int:
    """Move up to ``most`` children from the queue into the slots; returns how many.

    By least bound, or the newest family's (a dive, which needs no memory) where ``newest``. Children whose
    bound reaches the cutoff stay: everything behind them reaches it too.
    """
    counts = families.counts
    taken = 0
    while taken < most and counts[0] > 0:
        position = FIRST
        if newest:
            for i in range(1, counts[0]):
                if families.born[families.heap[i]] > families.born[families.heap[position]]:
                    position = i
        row = families.heap[position]
        place = families.next_child[row]
        bound, choice = families.bounds[row, place], families.children[row, place]
        if bound >= cutoff and position == 0:
            break
        slots.inherited[taken], slots.choice[taken] = bound, choice
        slots.parent[taken] = families.node[row]
        slots.allowed[taken] = families.allowed[row]
        slots.multipliers[taken] = families.multipliers[row]
        slots.x[taken] = 0.0
        for i in range(families.support.shape[1]):
            if families.support[row, i] < 0:
                break
            slots.x[taken, families.support[row, i]] = families.shares[row, i]
        if choice >= 0:
            group = np.searchsorted(offsets, choice, side="right") - 1
            slots.allowed[taken, offsets[group] : offsets[group + 1]] = 0
            slots.allowed[taken, choice] = 1
        taken += 1
        place += 1
        families.next_child[row] = place
        if place == families.children.shape[1] or families.children[row, place] < 0:
            counts[0] -= 1
            families.heap[position] = families.heap[counts[0]]
            families.free[counts[1]] = row
            counts[1] += 1
            if position < counts[0]:
                _sift(families, position)
        else:
            _sift(families, position)
    return taken


@compiled
def put(families: Families, slots: Slots, count: int, first_node: int, cutoff: float) -> float:
    """Queue the children of the first ``count`` slots; returns the least bound of what was closed.

    There must be an unused row for each. Node numbers are ``first_node`` and following.
    """
    counts = families.counts
    closed = np.inf
    for i in range(count):
        closed = min(closed, slots.closed[i])
        if slots.children[i, 0] < 0:
            continue
        if slots.bounds[i, 0] >= cutoff:
            closed = min(closed, slots.bounds[i, 0])
            continue
        counts[1] -= 1
        row = families.free[counts[1]]
        families.allowed[row] = slots.allowed[i]
        families.multipliers[row] = slots.multipliers[i]
        families.children[row] = slots.children[i]
        families.bounds[row] = slots.bounds[i]
        families.next_child[row] = 0
        families.node[row] = first_node + i
        families.born[row] = counts[2]
        counts[2] += 1
        size, least = 0, 1e-7
        while True:
            size = 0
            for v in range(slots.x.shape[1]):
                if slots.x[i, v] > least and size < families.support.shape[1]:
                    families.support[row, size] = v
                    families.shares[row, size] = slots.x[i, v]
                    size += 1
            if size < families.support.shape[1] or families.support.shape[1] == slots.x.shape[1]:
                break
            least *= 10.0
        if size < families.support.shape[1]:
            families.support[row, size] = -1
        families.heap[counts[0]] = row
        counts[0] += 1
        _sift(families, counts[0] - 1)
    return closed

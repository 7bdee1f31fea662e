"""Storage of a branch and bound tree in plain arrays, and the compiled queue over it.

An open family is a bounded node whose children are still to be explored, best child first. Only the next child
of a family is in the queue, so a family takes one row of memory for any number of children.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import FIRST, compiled_in_place, compiled_part
from qubo_compress._internal.kernel_arguments import KernelArguments
from qubo_compress.problem.choice_problem import FactorArray, FloatArray, IntArray

SHARES_PER_GROUP = 4
"""Most shares per group, on average, that a family stores of its mixture, the start of its children."""

_LEAST_SHARE = 1e-7
"""Shares up to this are not stored."""

ByteArray = npt.NDArray[np.uint8]
ShortArray = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Families(KernelArguments):
    """All open families; row r of every array except ``heap``, ``free`` and ``counts`` belongs to family r.

    Attributes:
        allowed: (R, V) whether a choice remains.
        support: (R, S) choices with a share in the mixture, -1 after the last.
        shares: (R, S) their shares.
        multipliers: (R, B) prices to start from.
        children: (R, K) choices of the group that is branched on, best first, -1 after the last.
        bounds: (R, K) lower bounds of the children.
        next_child: (R,) how many children have been taken.
        node: (R,) number of the node whose children these are.
        born: (R,) running number.
        heap: (R,) rows in heap order of the next child's bound; the newest first in a tie.
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


@dataclass(frozen=True, eq=False)
class Slots(KernelArguments):
    """Nodes being bounded; row i of every array belongs to one node.

    Attributes:
        allowed: (P, V) whether a choice remains; narrowed while the node is bounded.
        x: (P, V) mixture: the start of the search, then its end.
        multipliers: (P, B) prices: the start of the search, then its end.
        price: (P, B) prices that prove the bound.
        inherited: (P,) the bound known before the node is examined.
        bound: (P,) the bound that x and price prove; infinite if nothing fits the budgets.
        children: (P, K) choices to branch on, best first, -1 after the last.
        bounds: (P, K) their bounds.
        closed: (P,) least bound of everything cut off.
        answer: (P, G) best combination found by enumeration; its first entry is -1 if there is none.
        parent: (P,) number of the node's parent, -1 at the root.
        choice: (P,) the choice that distinguishes it from its parent, -1 at the root.
        offsets: scratch, (P, G + 1) group offsets in ``choices``.
        choices: scratch, (P, V) the remaining choices.
        gradient: scratch, (P, V) gradient of the mixture.
        given: scratch, (P, V) the mixture before it is restricted to the remaining choices.
        proof: scratch, (P, V) the mixture that proves the best bound so far.
        reduced: scratch, (P, V) rise of that bound if a choice must be used.
        used: scratch, (P, B) cost of the mixture.
        trial: scratch, (P, B) prices that are being polished.
        priced: scratch, (P, B) prices during a sweep.
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
    offsets: IntArray
    choices: IntArray
    gradient: FloatArray
    given: FloatArray
    proof: FloatArray
    reduced: FloatArray
    used: FloatArray
    trial: FloatArray
    priced: FloatArray


def make_families(rows: int, offsets: IntArray, budgets: int) -> Families:
    """Empty families of a problem with these groups."""
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
    family = make_families(1, offsets, budgets)
    return sum(getattr(family, field.name).nbytes for field in dataclasses.fields(family))


def enlarged(families: Families, rows: int) -> Families:
    """A copy with ``rows`` rows."""
    old = families.heap.size
    extra = rows - old
    grown: dict[str, npt.NDArray[Any]] = {}
    for name in (field.name for field in dataclasses.fields(Families)):
        array = getattr(families, name)
        if name == "counts":
            grown[name] = array.copy()
            continue
        larger = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
        larger[:old] = array
        grown[name] = larger
    larger_families = Families(**grown)
    unused = int(families.counts[1])
    larger_families.free[unused : unused + extra] = np.arange(rows - 1, old - 1, -1)
    larger_families.counts[1] = unused + extra
    return larger_families


def make_slots(count: int, offsets: IntArray, budgets: int) -> Slots:
    """Slots for ``count`` nodes."""
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
        offsets=np.zeros((count, groups + 1), dtype=np.int64),
        choices=np.zeros((count, choices), dtype=np.int64),
        **{name: np.zeros((count, choices)) for name in ("gradient", "given", "proof", "reduced")},
        **{name: np.zeros((count, budgets)) for name in ("used", "trial", "priced")},
    )


@compiled_part
def _before(families: Families, first: int, second: int) -> bool:
    bounds, next_child, born = families.bounds, families.next_child, families.born
    one, other = bounds[first, next_child[first]], bounds[second, next_child[second]]
    return bool(one < other or (one == other and born[first] > born[second]))


@compiled_part
def _sift(families: Families, position: int) -> None:
    """Restore the heap order if only the entry at ``position`` may be out of place."""
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


@compiled_in_place
def take(families: Families, slots: Slots, offsets: IntArray, most: int, cutoff: float, newest: bool) -> int:
    """Move up to ``most`` children from the queue into the slots; returns how many.

    The children come by least bound; if ``newest``, from the newest family (a dive, which needs no memory). A first
    child whose bound reaches the cutoff stays: so do the bounds of all others.
    """
    counts, heap, born, next_child = families.counts, families.heap, families.born, families.next_child
    bounds, children, support, shares = families.bounds, families.children, families.support, families.shares
    taken = 0
    while taken < most and counts[0] > 0:
        position = FIRST
        if newest:
            for i in range(1, counts[0]):
                if born[heap[i]] > born[heap[position]]:
                    position = i
        row = heap[position]
        place = next_child[row]
        bound, choice = bounds[row, place], children[row, place]
        if bound >= cutoff and position == 0:
            break
        slots.inherited[taken], slots.choice[taken] = bound, choice
        slots.parent[taken] = families.node[row]
        allowed, x = slots.allowed[taken], slots.x[taken]
        for v in range(allowed.size):
            allowed[v], x[v] = families.allowed[row, v], 0.0
        for b in range(slots.multipliers.shape[1]):
            slots.multipliers[taken, b] = families.multipliers[row, b]
        for i in range(support.shape[1]):
            if support[row, i] < 0:
                break
            x[support[row, i]] = shares[row, i]
        if choice >= 0:
            # The child keeps only this choice in the group that is branched on.
            group = 0
            while offsets[group + 1] <= choice:
                group += 1
            for v in range(offsets[group], offsets[group + 1]):
                allowed[v] = 0
            allowed[choice] = 1
        taken += 1
        place += 1
        next_child[row] = place
        if place == children.shape[1] or children[row, place] < 0:
            # The family is used up: the last entry of the heap takes its place.
            counts[0] -= 1
            heap[position] = heap[counts[0]]
            families.free[counts[1]] = row
            counts[1] += 1
            if position < counts[0]:
                _sift(families, position)
        else:
            _sift(families, position)
    return taken


@compiled_in_place
def put(families: Families, slots: Slots, count: int, first_node: int, cutoff: float) -> float:
    """Queue the children of the first ``count`` slots; returns the least bound of what was closed.

    There must be an unused row for each. Nodes are numbered from ``first_node``.
    """
    counts, children, bounds, support = families.counts, families.children, families.bounds, families.support
    closed = np.inf
    for i in range(count):
        if slots.closed[i] < closed:
            closed = slots.closed[i]
        if slots.children[i, 0] < 0:
            continue
        if slots.bounds[i, 0] >= cutoff:  # the answer has improved since the slot was bounded
            if slots.bounds[i, 0] < closed:
                closed = slots.bounds[i, 0]
            continue
        counts[1] -= 1
        row = families.free[counts[1]]
        for v in range(slots.allowed.shape[1]):
            families.allowed[row, v] = slots.allowed[i, v]
        for b in range(slots.multipliers.shape[1]):
            families.multipliers[row, b] = slots.multipliers[i, b]
        for k in range(children.shape[1]):
            children[row, k], bounds[row, k] = slots.children[i, k], slots.bounds[i, k]
        families.next_child[row] = 0
        families.node[row] = first_node + i
        families.born[row] = counts[2]
        counts[2] += 1
        # Store the largest shares: if not all fit, raise the threshold until the rest does.
        x, size, least = slots.x[i], 0, _LEAST_SHARE
        while True:
            size = 0
            for v in range(x.size):
                if x[v] > least and size < support.shape[1]:
                    support[row, size] = v
                    families.shares[row, size] = x[v]
                    size += 1
            if size < support.shape[1] or support.shape[1] == x.size:
                break
            least *= 10.0
        if size < support.shape[1]:
            support[row, size] = -1
        families.heap[counts[0]] = row
        counts[0] += 1
        _sift(families, counts[0] - 1)
    return closed

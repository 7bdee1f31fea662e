"""Exact solution of narrow-band pair energies under at most one budget: dynamic programming over labels.

If groups are coupled only within a distance w, earlier decisions affect the rest only through the choices
of the last w groups (the state) and the cost spent. A label is (state, cost, energy); it is dropped when another label
with the same state has neither higher cost nor higher energy, or when even the best completion of the priced problem
cannot bring it below the best known answer. Costs are exact integers. The bounds of labels dropped for lack of memory
or time count towards the final bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from qubo_compress._internal.compiling import compiled
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.exact.dynamic_programming import TableAnswer

MOST_COMBINATIONS = 300_000
"""Most combinations of w + 1 neighbouring groups."""

_MOST_ENTRIES = 30_000_000
_MOST_LABELS = (3_000, 50_000, 500_000)
"""Labels kept after each group: few at first, because a good answer from a narrow search prunes most of a wide one."""

_MOST_TRACKED = 40_000_000
"""Labels remembered over all groups for backtracking."""
_PRICE_STEPS = 60
"""A safeguard: the intersections of lines end earlier."""


@dataclass(frozen=True, eq=False)
class Band:
    """Groups in an order in which all couplings are short.

    Attributes:
        order: (G,) groups.
        width: largest distance between coupled groups in that order.
    """

    order: IntArray
    width: int


def find_band(problem: ChoiceProblem) -> Band | None:
    """The narrower of the given order and the reverse Cuthill-McKee order, or None if both are too wide.

    Example:
        >>> problem = ChoiceProblem.random(kind="sparse", groups=9, choices=3, seed=0, neighbours=2)
        >>> find_band(problem).width
        2
    """
    if problem.structure != "pairs" or problem.num_budgets > 1 or problem.pairs is None:
        return None
    # If a window of groups with at least two choices fits, no choice is coupled to more than this.
    widest = np.log2(MOST_COMBINATIONS)
    if problem.pairs.nnz > 2 * widest * int(problem.group_sizes.max()) * problem.num_choices:
        return None  # a cheap check before millions of pair energies are examined one by one
    coupled = coupled_groups(problem)
    given = np.arange(problem.num_groups)
    reordered = np.asarray(csgraph.reverse_cuthill_mckee(coupled, symmetric_mode=True), dtype=np.int64)
    rows, columns = coupled.nonzero()
    best: Band | None = None
    for order in (given, reordered):
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        band = Band(order, int(np.abs(place[rows] - place[columns]).max(initial=0)))
        if best is None or band.width < best.width:
            best = band
    return best if best is not None and _fits(problem.group_sizes[best.order], best.width) else None


def coupled_groups(problem: ChoiceProblem) -> sparse.csr_array:
    """(G, G) nonzero where two groups have pair energies."""
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    if problem.pairs is None:
        return sparse.csr_array((problem.num_groups, problem.num_groups))
    entries = problem.pairs.tocoo()
    ones = np.ones(entries.data.size)
    return sparse.csr_array(
        (ones, (group[entries.row], group[entries.col])), shape=(problem.num_groups, problem.num_groups)
    )


def _fits(sizes: IntArray, width: int) -> bool:
    logs = np.concatenate([np.zeros(width), np.log(sizes)])
    windows = np.convolve(logs, np.ones(width + 1), mode="valid")
    combinations = np.exp(np.minimum(windows, 60.0))
    return bool(combinations.max() <= MOST_COMBINATIONS and combinations.sum() <= _MOST_ENTRIES)


def solve_band(
    problem: ChoiceProblem, band: Band, incumbent: IntArray, deadline: float, work: int | None = None
) -> TableAnswer:
    """Solve a problem with narrow-band pair energies and at most one budget.

    Args:
        problem: the problem.
        band: from :func:`find_band`.
        incumbent: a feasible assignment to start from.
        deadline: value of ``time.perf_counter`` at which to stop.
        work: most labels to make, or None.

    Example:
        >>> problem = ChoiceProblem.random(kind="sparse", groups=9, choices=4, seed=0, neighbours=1)
        >>> answer = solve_band(problem, find_band(problem), np.full(9, 3), time.perf_counter() + 9.0)
        >>> bool(abs(problem.energy(answer.assignment) - answer.bound) < 1e-9)
        True
    """
    search = _BandSearch(problem, band, incumbent)
    price = search.best_price(deadline)
    answer = TableAnswer(incumbent, -np.inf, 0)
    for most in _MOST_LABELS:
        search.incumbent = answer.assignment
        left = None if work is None else work - answer.states
        found = search.run(price, most, deadline, left)
        answer = TableAnswer(found.assignment, max(found.bound, answer.bound), answer.states + found.states)
        out = time.perf_counter() >= deadline or (work is not None and answer.states >= work)
        if out or problem.energy(answer.assignment) - answer.bound <= 4.0 * search.tolerance:
            break
    return answer


class _BandSearch:
    """Energies of windows of w + 1 groups, completions of the priced problem, and the labels."""

    def __init__(self, problem: ChoiceProblem, band: Band, incumbent: IntArray) -> None:
        self.problem, self.band, self.incumbent = problem, band, incumbent
        self.sizes = problem.group_sizes[band.order]
        self.room = int(problem.limits[0] - problem.fixed_costs[0]) if problem.num_budgets else 0
        starts = problem.group_offsets[band.order]
        spans = [slice(int(a), int(a + k)) for a, k in zip(starts, self.sizes, strict=True)]
        self.costs = [
            problem.costs[0, span] if problem.num_budgets else np.zeros(span.stop - span.start, dtype=np.int64)
            for span in spans
        ]
        self.windows = [self._window(step, spans) for step in range(len(spans))]
        magnitude = sum(float(np.abs(window).max()) for window in self.windows)
        self.tolerance = 4e-16 * (8 * len(spans) + 16) * magnitude

    def _window(self, step: int, spans: list[slice]) -> FloatArray:
        """(states, K): energy that each choice of a group adds, given the choices of the groups just before it."""
        problem, before = self.problem, range(max(0, step - self.band.width), step)
        energy = problem.linear[spans[step]].reshape((1,) * len(before) + (-1,))
        for axis, other in enumerate(before):
            block = problem.pairs[spans[other]][:, spans[step]].toarray()  # type: ignore[index]
            shape = [1] * (len(before) + 1)
            shape[axis], shape[-1] = block.shape
            energy = energy + block.reshape(shape)
        full = [int(self.sizes[other]) for other in before]
        return np.ascontiguousarray(np.broadcast_to(energy, (*full, self.sizes[step])).reshape(-1, self.sizes[step]))

    def _kept(self, step: int) -> int:
        """How many states are equivalent after a step: those that differ in the oldest group only."""
        return int(self.sizes[step - self.band.width]) if step >= self.band.width else 1

    def completions(self, price: float) -> list[FloatArray]:
        """Per step and state: the least energy plus priced cost of all groups from that step on."""
        last = np.zeros(1)
        tables = [last]
        for step in range(len(self.windows) - 1, -1, -1):
            window = self.windows[step] + price * self.costs[step]
            # The state after this step, given the state before and the choice.
            after = tables[0].reshape(1, -1) if tables[0].size > 1 else np.full((1, window.size), tables[0][0])
            repeated = np.broadcast_to(after, (window.size // after.size, after.size)).reshape(window.shape)
            tables.insert(0, (window + repeated).min(axis=1))
        return tables

    def _priced_path(self, price: float) -> tuple[float, int]:
        """Least priced energy (less price x room) and the cost of such a path; ties take the cheaper choice."""
        tables = self.completions(price)
        state, spent = 0, 0
        for step, window in enumerate(self.windows):
            count = window.shape[1]
            values = window[state] + price * self.costs[step] + self._after(step, state, tables[step + 1])
            low = values.min()
            tied = np.flatnonzero(values <= low)
            choice = int(tied[np.argmin(self.costs[step][tied])])
            spent += int(self.costs[step][choice])
            state = self._next(step, state * count + choice)
        return float(tables[0][0]) - price * self.room, spent

    def _after(self, step: int, state: int, table: FloatArray) -> FloatArray:
        count = self.windows[step].shape[1]
        return table[[self._next(step, state * count + k) for k in range(count)]]

    def _next(self, step: int, extended: int) -> int:
        if step == len(self.windows) - 1:
            return 0
        states = self.windows[step].size // self._kept(step)
        return extended % states

    def best_price(self, deadline: float) -> float:
        """The price that maximises the priced bound, found by intersecting the two lines that bracket the peak."""
        if self.problem.num_budgets == 0:
            return 0.0
        value, spent = self._priced_path(0.0)
        if spent <= self.room:
            return 0.0
        left = (0.0, value, spent - self.room)
        spread = sum(float(np.ptp(window)) for window in self.windows)
        high = spread / max(1, self.room) + 1e-300
        for _ in range(60):
            value, spent = self._priced_path(high)
            if spent <= self.room:
                break
            left = (high, value, spent - self.room)
            high *= 4.0
        right = (high, value, spent - self.room)
        best = max((left, right), key=lambda point: point[1])
        for _ in range(_PRICE_STEPS):
            if right[2] >= 0 or left[2] <= 0 or time.perf_counter() >= deadline:
                break
            middle = (right[1] - left[1] + left[2] * left[0] - right[2] * right[0]) / (left[2] - right[2])
            if not left[0] < middle < right[0]:
                break
            value, spent = self._priced_path(middle)
            point = (middle, value, spent - self.room)
            best = max((best, point), key=lambda entry: entry[1])
            if value >= left[1] + left[2] * (middle - left[0]) - 1e-12 * abs(value):
                break
            left, right = (point, right) if point[2] > 0 else (left, point)
        return best[0]

    def run(self, price: float, most: int, deadline: float, work: int | None) -> TableAnswer:
        """Extend labels group by group, ``most`` at a time; the price ranks them."""
        problem, steps = self.problem, len(self.windows)
        tables = self.completions(price)
        root = float(tables[0][0]) - price * self.room
        limit = problem.energy(self.incumbent) - problem.constant
        cheapest = np.array([int(costs.min()) for costs in self.costs])
        reserve = np.concatenate([np.cumsum(cheapest[::-1])[::-1], [0]])
        state, spent, energy = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros(1)
        back: list[tuple[IntArray, IntArray]] = []
        dropped, made, tracked, longest = np.inf, 0, 0, 0.0
        for step in range(steps):
            begin = time.perf_counter()
            if begin + longest >= deadline or tracked > _MOST_TRACKED:
                lives = energy + price * (spent - self.room) + tables[step][state]
                return self._answer(self.incumbent, max(root, min(dropped, limit, float(lives.min()))), made)
            count = self.windows[step].shape[1]
            new_spent = (spent[:, None] + self.costs[step]).ravel()
            new_energy = (energy[:, None] + self.windows[step][state]).ravel()
            extended = (state[:, None] * count + np.arange(count)).ravel()
            states = self.windows[step].size // self._kept(step)
            new_state = extended % states if step < steps - 1 else np.zeros_like(extended)
            bounds = new_energy + price * (new_spent - self.room) + tables[step + 1][new_state]
            good = (bounds <= limit + self.tolerance) & (new_spent <= self.room - reserve[step + 1])
            if problem.num_budgets == 0:
                good = bounds <= limit + self.tolerance
            chosen = np.flatnonzero(good)
            if work is not None and made + chosen.size > work:
                lives = energy + price * (spent - self.room) + tables[step][state]
                return self._answer(self.incumbent, max(root, min(dropped, limit, float(lives.min()))), work)
            made += chosen.size
            chosen = chosen[np.lexsort((new_energy[chosen], new_spent[chosen], new_state[chosen]))]
            chosen = chosen[undominated(new_state[chosen], new_energy[chosen])]
            if chosen.size > most:
                ranked = np.argpartition(bounds[chosen], most)
                dropped = min(dropped, float(bounds[chosen[ranked[most:]]].min()))
                chosen = chosen[np.sort(ranked[:most])]
            back.append(((chosen // count).astype(np.int32), (chosen % count).astype(np.int16)))
            state, spent, energy = new_state[chosen], new_spent[chosen], new_energy[chosen]
            tracked += chosen.size
            longest = max(longest, time.perf_counter() - begin)
            if chosen.size == 0:
                return self._answer(self.incumbent, max(root, min(dropped, limit)), made)
        least = int(np.argmin(energy))
        if energy[least] >= limit:
            return self._answer(self.incumbent, max(root, min(dropped, limit)), made)
        assignment, label = np.zeros(problem.num_groups, dtype=np.int64), least
        for group, (parents, picks) in zip(self.band.order[::-1], back[::-1], strict=True):
            assignment[group] = picks[label]
            label = int(parents[label])
        return self._answer(assignment, max(root, min(dropped, float(energy[least]))), made)

    def _answer(self, assignment: IntArray, bound: float, made: int) -> TableAnswer:
        return TableAnswer(assignment, self.problem.constant + bound - self.tolerance, made)


@compiled
def undominated(state: IntArray, energy: FloatArray) -> IntArray:
    """Indices of the undominated labels of each state; sorted by state, then cost, then energy."""
    keep = np.empty(state.size, dtype=np.int64)
    size, lowest = 0, np.inf
    for i in range(state.size):
        if i > 0 and state[i] != state[i - 1]:
            lowest = np.inf
        if energy[i] < lowest:
            lowest = energy[i]
            keep[size] = i
            size += 1
    return keep[:size].copy()

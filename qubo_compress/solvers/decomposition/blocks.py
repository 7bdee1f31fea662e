"""Selects the groups to solve together: those whose best joint changes promise the most energy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.local_search.local_model import LocalModel, local_model

_MOST_MOVES = 1000
"""Most candidate changes for which all pairs are computed: a million pairs."""
_MOVES_PER_GROUP = 4
"""Most candidate changes per group."""
_JITTER = 0.3
"""Random part of a score, as a share of the spread of all scores; keeps blocks from repeating."""


@dataclass
class BlockPicker:
    """Picks one block after another; groups tried without success wait until the assignment changes.

    Args:
        problem: the whole problem.
        sizes: (G,) each group's share of a block's capacity, such as bits.
        capacity: largest sum of sizes of a block.
        rng: for the random part of the scores.
    """

    problem: ChoiceProblem
    sizes: IntArray
    capacity: int
    rng: np.random.Generator
    tired: FloatArray = field(init=False)
    """(G,) how often each group was in a block since the assignment last improved."""

    def __post_init__(self) -> None:
        self.tired = np.zeros(self.problem.num_groups)

    def pick(self, assignment: IntArray) -> IntArray:
        """Ascending group numbers of the most promising block at this assignment.

        It grows from the most promising pair by the group with the best joint change with a member.
        """
        movable = np.flatnonzero(self.problem.group_sizes > 1)
        if self.sizes[movable].sum() <= self.capacity:
            return movable
        groups, gains = pair_gains(self.problem, local_model(self.problem, assignment), assignment, movable)
        spread = float(np.std(gains[np.isfinite(gains)])) or 1.0
        noise = self.rng.normal(0.0, _JITTER, groups.size) - self.tired[groups]
        scores = gains + spread * (noise[:, None] + noise[None, :])
        return np.sort(groups[self._grow(scores, self.sizes[groups])])

    def record(self, block: IntArray, improved: bool) -> None:
        """Record whether a block improved the assignment."""
        if improved:
            self.tired[:] = 0.0
        self.tired[block] += 1.0

    def _grow(self, scores: FloatArray, sizes: IntArray) -> IntArray:
        free = self.capacity
        waiting = sizes <= free
        seed = int(np.argmax(np.where(waiting, scores.max(axis=1), -np.inf)))
        members = [seed]
        waiting[seed] = False
        free -= int(sizes[seed])
        best = scores[seed].copy()
        while (open_to := waiting & (sizes <= free)).any():
            joining = int(np.argmax(np.where(open_to, best, -np.inf)))
            members.append(joining)
            waiting[joining] = False
            free -= int(sizes[joining])
            best = np.maximum(best, scores[joining])
        return np.array(members, dtype=np.int64)


def pair_gains(
    problem: ChoiceProblem, model: LocalModel, assignment: IntArray, movable: IntArray
) -> tuple[IntArray, FloatArray]:
    """The gain of the best joint change of each pair of groups, at the model's prices.

    Only the few best single changes of each group count, and of more than a thousand groups only those that gain most.

    Returns:
        (n,) group numbers and (n, n) gains between them, of either sign; minus infinity on the diagonal.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=5, choices=3, seed=0)
        >>> here = np.zeros(5, dtype=np.int64)
        >>> groups, gains = pair_gains(problem, local_model(problem, here), here, np.arange(5))
        >>> groups.tolist(), gains.shape, bool(np.allclose(gains, gains.T))
        ([0, 1, 2, 3, 4], (5, 5), True)
    """
    charged = model.charged[movable].copy()
    charged[np.arange(movable.size), assignment[movable]] = np.inf
    if movable.size > _MOST_MOVES:
        best = np.argsort(charged.min(axis=1), kind="stable")[:_MOST_MOVES]
        movable, charged = movable[np.sort(best)], charged[np.sort(best)]
    moves = int(np.clip(_MOST_MOVES // movable.size, 1, min(_MOVES_PER_GROUP, charged.shape[1])))
    picks = np.argsort(charged, axis=1, kind="stable")[:, :moves]
    prices = np.take_along_axis(charged, picks, axis=1)
    picks = np.where(np.isfinite(prices), picks, assignment[movable][:, None])  # padding changes nothing
    joint = _interactions(problem, movable, picks, assignment[movable])
    joint = joint.reshape(movable.size, moves, movable.size, moves)
    gains = -(joint + prices[:, :, None, None] + prices[None, None, :, :]).min(axis=(1, 3))
    np.fill_diagonal(gains, -np.inf)
    return movable, gains


def _interactions(problem: ChoiceProblem, groups: IntArray, picks: IntArray, present: IntArray) -> FloatArray:
    """(n m, n m) energy of two changes together beyond the sum of each alone."""
    new = (problem.group_offsets[groups][:, None] + picks).ravel()
    old = np.repeat(problem.group_offsets[groups] + present, picks.shape[1])
    if problem.factor is not None:
        steps = problem.factor[new] - problem.factor[old]
        return np.asarray(steps @ steps.T, dtype=np.float64)
    if problem.pairs is None:
        return np.zeros((new.size, new.size))
    rows = problem.pairs[new] - problem.pairs[old]
    return np.asarray((rows[:, new] - rows[:, old]).toarray(), dtype=np.float64)

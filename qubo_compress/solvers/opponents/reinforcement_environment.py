"""The walk of a HAQ or AMC agent through the groups, and the gymnasium environment around it.

One step decides one group: the agent observes features of the group, the budget spent and left, and its last action;
its action in [0, 1] selects a level among the choices ordered by cost. As in HAQ (Wang et al. 2019) and AMC (He et al.
2018), a level that would leave too little for the cheapest choices of the remaining groups is lowered until it fits.
The reward comes when all groups are decided.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.optional import require
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.opponents.genetic_operators import make_levels

Observation = npt.NDArray[np.float32]

FEATURES = (
    "position", "choices", "largest cost", "cheapest cost", "spread of energies", "coupling",
    "largest cost still to come", "last action",
)  # fmt: skip
"""The agent's observations, each in [0, 1]; followed by the shares used and left of each budget."""


class GroupWalk:
    """Decides one group after another within the budgets.

    With several conflicting budgets a walk can end over one of them; with one budget it cannot.

    Args:
        problem: the problem.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=4, choices=3, seed=0)
        >>> walk = GroupWalk(problem)
        >>> observation = walk.restart()
        >>> while not walk.done:
        ...     observation = walk.step(1.0)
        >>> problem.is_feasible(walk.assignment), observation.shape == (walk.num_features,)
        (True, True)
    """

    def __init__(self, problem: ChoiceProblem) -> None:
        self.problem = problem
        self.levels = make_levels(problem)
        self.num_features = len(FEATURES) + 2 * problem.num_budgets
        starts = problem.group_offsets[:-1]
        least = np.minimum.reduceat(self.levels.costs, starts, axis=0)
        # The least cost of each group and all later ones.
        self._rest = np.vstack([np.cumsum(least[::-1], axis=0)[::-1], np.zeros((1, problem.num_budgets), np.int64)])
        self._unit = np.maximum(1.0, self.levels.room.astype(np.float64))
        self._static = _group_features(problem)
        self.restart()

    @property
    def done(self) -> bool:
        """Whether the walk has decided every group."""
        return self.group == self.problem.num_groups

    @property
    def assignment(self) -> IntArray:
        """(G,) local choices; undecided groups have their cheapest."""
        offsets = self.problem.group_offsets[:-1]
        return np.asarray(self.levels.order[offsets + self._genome] - offsets, dtype=np.int64)

    def restart(self) -> Observation:
        """Go back to the first group; returns the observation there."""
        self.group = 0
        self._genome = np.zeros(self.problem.num_groups, dtype=np.int64)
        self._used = np.zeros(self.problem.num_budgets, dtype=np.int64)
        self._last = 0.0
        return self._observe()

    def step(self, action: float) -> Observation:
        """Decide the current group by a number in [0, 1] and go to the next; returns the observation there."""
        count = int(self.problem.group_sizes[self.group])
        wanted = min(count - 1, int(max(0.0, action) * count))
        level = self._affordable(wanted)
        self._used += self.levels.costs[self.problem.group_offsets[self.group] + level]
        self._genome[self.group] = level
        self._last = level / max(1, count - 1)
        self.group += 1
        return self._observe()

    def _affordable(self, wanted: int) -> int:
        """The highest level up to ``wanted`` that leaves enough for the rest; else the lowest that does; else 0."""
        start, stop = self.problem.group_offsets[self.group : self.group + 2]
        left = self.levels.room - self._used - self._rest[self.group + 1]
        fits = np.flatnonzero((self.levels.costs[start:stop] <= left).all(axis=1))
        if not fits.size:
            return 0
        below = int(np.searchsorted(fits, wanted, side="right"))
        return int(fits[max(0, below - 1)])

    def _observe(self) -> Observation:
        used = self._used / self._unit
        free = (self.levels.room - self._used - self._rest[self.group]) / self._unit
        # After the last group its features are repeated: no decision depends on them.
        group = min(self.group, self.problem.num_groups - 1)
        seen = np.concatenate([self._static[group], [self._last], used, free])
        return np.asarray(np.clip(seen, 0.0, 1.0), dtype=np.float32)


def _group_features(problem: ChoiceProblem) -> FloatArray:
    """(G, 7) features that do not depend on decisions, each scaled to [0, 1] over the groups."""
    starts, sizes, groups = problem.group_offsets[:-1], problem.group_sizes, problem.num_groups
    units = np.maximum(1, problem.limits - problem.fixed_costs)
    shares = (problem.costs / units[:, None]).sum(axis=0)
    most_expensive, cheapest = np.maximum.reduceat(shares, starts), np.minimum.reduceat(shares, starts)
    spread = np.maximum.reduceat(problem.linear, starts) - np.minimum.reduceat(problem.linear, starts)
    squares = np.zeros(problem.num_choices)
    if problem.factor is not None:
        squares = np.einsum("vr,vr->v", problem.factor, problem.factor, dtype=np.float64)
    elif problem.pairs is not None:
        squares = np.asarray(problem.pairs.power(2).sum(axis=1)).ravel()
    coupling = np.sqrt(np.add.reduceat(squares, starts) / sizes)
    columns = [
        np.arange(groups) / max(1, groups - 1),
        _scaled(sizes.astype(np.float64)),
        _scaled(most_expensive),
        _scaled(cheapest),
        _scaled(spread),
        _scaled(coupling),
        np.cumsum(most_expensive[::-1])[::-1] / max(1e-300, float(most_expensive.sum())),
    ]
    return np.stack(columns, axis=1)


def _scaled(values: FloatArray) -> FloatArray:
    largest = float(values.max())
    return values / largest if largest > 0.0 else values


def make_environment(
    problem: ChoiceProblem, score: Callable[[IntArray], float] | None = None, *, levels: int | None = None
) -> Any:
    """A ``gymnasium.Env`` that walks the groups of a problem; one episode decides them all.

    Args:
        problem: the problem.
        score: the reward at the end of an episode from the assignment (G,); minus the energy when None.
        levels: if given, actions are integers below it instead of numbers in [0, 1].

    Raises:
        MissingDependency: when gymnasium is not installed.

    Example:
        >>> environment = make_environment(ChoiceProblem.random(groups=4, choices=3, seed=0))
        >>> observation, _ = environment.reset(seed=0)
        >>> observation, reward, done, _, info = environment.step(environment.action_space.sample())
        >>> environment.observation_space.contains(observation), reward, done
        (True, 0.0, False)
    """
    return _environment_class()(problem, score, levels)


@functools.cache
def _environment_class() -> Any:
    """Create the class, which extends gymnasium, once that is imported."""
    gymnasium = require("gymnasium", "reinforcement")

    class ChoiceEnvironment(gymnasium.Env):  # type: ignore[misc,name-defined]
        """The environment of :func:`make_environment`, for one problem."""

        def __init__(
            self, problem: ChoiceProblem, score: Callable[[IntArray], float] | None, levels: int | None
        ) -> None:
            self.walk = GroupWalk(problem)
            self.score = score or (lambda assignment: -problem.energy(assignment))
            self.levels = levels
            self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (self.walk.num_features,), np.float32)
            self.action_space = (
                gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
                if levels is None
                else gymnasium.spaces.Discrete(levels)
            )

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Observation, dict[str, Any]]:
            super().reset(seed=seed)
            return self.walk.restart(), {}

        def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
            part = float(np.asarray(action).ravel()[0]) if self.levels is None else (int(action) + 0.5) / self.levels
            observation = self.walk.step(part)
            if not self.walk.done:
                return observation, 0.0, False, False, {}
            assignment = self.walk.assignment
            return observation, float(self.score(assignment)), True, False, {"assignment": assignment}

    return ChoiceEnvironment

"""Reinforcement learning as in HAQ and AMC: an agent walks through the groups; its best episode is the answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.errors import InvalidSolverOption, NonFiniteLoss
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.problem.network_loss import LossFunction, network_loss
from qubo_compress.solvers.local_search.descent import LocalSearch, warm_up
from qubo_compress.solvers.opponents.reinforcement_agents import (
    DdpgSettings,
    PpoSettings,
    load_torch,
    make_ddpg,
    make_ppo,
    preserved_random_states,
)
from qubo_compress.solvers.opponents.reinforcement_environment import GroupWalk, make_environment
from qubo_compress.solvers.solver import Search, SearchOver, Solver, solvers

_AGENTS = ("ddpg", "ppo")
_MEMORY = 0.95  # of the moving baseline, as in HAQ and AMC
_CLIP = 5.0
_UNIFORM_PLANS = 16


@solvers.register
@dataclass(frozen=True)
class Reinforcement(Solver):
    """Train an agent that decides the groups one by one; the best of all its episodes is the answer.

    Needs ``pip install 'qubo_compress[reinforcement]'``. The work is the number of episodes. The reward of an episode
    is its improvement over a moving average, in units of the moving deviation. The best uniform plan that fits is
    evaluated before training. The first import of stable-baselines3 counts as compile time.

    Args:
        agent: ``"ddpg"`` (as published in HAQ and AMC, actions in [0, 1]) or ``"ppo"`` (actions are levels).
        episodes: walks over all groups after which training ends; published: 600.
        loss: (assignment, examples) -> mean loss of the network, to be minimised instead of the energy, always on all
            its examples (examples is None); ``table.stitched_loss(model, batches)`` is one. The answer is then the
            plan of least loss.
        ddpg: settings of the ``"ddpg"`` agent.
        ppo: settings of the ``"ppo"`` agent.
        evaluate: what 0.4 had for ``loss``, a function of the assignment alone; goes with the next release.

    Raises:
        InvalidSolverOption: for another agent or a number out of range.
        MissingDependency: when gymnasium or stable-baselines3 are not installed.
        NonFiniteLoss: when ``loss`` returns NaN or infinity.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=4, choices=3, seed=0)
        >>> solution = solve(problem, "reinforcement", agent="ppo", time_limit=60.0, work_limit=30)
        >>> problem.is_feasible(solution.assignment), solution.work
        (True, 30)
    """

    name: ClassVar[str] = "reinforcement"
    requires: ClassVar[tuple[str, ...]] = ("gymnasium", "stable_baselines3")
    agent: str = "ddpg"
    episodes: int = 600
    loss: LossFunction | None = None
    ddpg: DdpgSettings = field(default_factory=DdpgSettings)
    ppo: PpoSettings = field(default_factory=PpoSettings)
    evaluate: Callable[[IntArray], float] | None = None

    def __post_init__(self) -> None:
        if self.evaluate is not None:
            warnings.warn(
                "evaluate= goes with the next release: give loss=, a function of the assignment and of a number of "
                "examples, which is None here",
                DeprecationWarning,
                stacklevel=3,
            )
            function = self.evaluate
            object.__setattr__(self, "loss", lambda assignment, _: function(assignment))
            object.__setattr__(self, "evaluate", None)
        if self.agent not in _AGENTS:
            raise InvalidSolverOption(f"agent must be one of {', '.join(_AGENTS)}; got {self.agent!r}")
        if self.episodes < 1:
            raise InvalidSolverOption(f"episodes must be at least 1; got {self.episodes}")

    def run(self, search: Search) -> None:
        """Train until the episodes, the time or the work, counted in episodes, are used up."""
        with search.compiling():
            require("gymnasium", "reinforcement")
            require("stable_baselines3", "reinforcement")
            load_torch()
            warm_up()
        episodes = _Episodes(search, self)
        try:
            episodes.uniform_plan()
            episodes.train()
        finally:
            search.details |= episodes.figures()


class _Episodes:
    """The episodes so far: their values, and the moving baseline of the rewards."""

    def __init__(self, search: Search, settings: Reinforcement) -> None:
        self.search, self.problem, self.settings = search, search.problem, settings
        self.loss = None if settings.loss is None else network_loss(settings.loss)
        self.most = search.most_work(settings.episodes)
        self.local = LocalSearch(search.problem, search.rng)
        self.values: dict[bytes, float] = {}
        self.best = np.inf
        self.repaired = 0
        self.mean: float | None = None
        self.deviation = 0.0
        self.uniform: float | None = None

    def uniform_plan(self) -> None:
        """The highest common level of all groups that fits: the answer until an episode is better."""
        walk = GroupWalk(self.problem)
        for level in range(_UNIFORM_PLANS, -1, -1):
            walk.restart()
            while not walk.done:
                walk.step(level / _UNIFORM_PLANS)
            if level == 0 or self._is_uniform(walk.assignment, level / _UNIFORM_PLANS, walk):
                break
        self.uniform = self._evaluate(walk.assignment)

    def _is_uniform(self, assignment: IntArray, part: float, walk: GroupWalk) -> bool:
        """Whether no group had to be lowered."""
        sizes = self.problem.group_sizes
        wanted = np.minimum(sizes - 1, (part * sizes).astype(np.int64))
        return bool((walk.levels.assignments(wanted[None])[0] == assignment).all())

    def train(self) -> None:
        settings, length = self.settings, self.problem.num_groups
        seed = int(self.search.rng.integers(2**31))
        with preserved_random_states():
            if settings.agent == "ddpg":
                agent = make_ddpg(make_environment(self.problem, self._score), settings.ddpg, length, seed, self._check)
            else:
                levels = int(self.problem.group_sizes.max())
                environment = make_environment(self.problem, self._score, levels=levels)
                agent = make_ppo(environment, settings.ppo, length, seed, self._check)
            self.search.spend("build", self.search.elapsed)
            self._check()
            # One more step, so that training ends by the last episode.
            agent.learn(self.most * length + 1)

    def _check(self) -> None:
        if self.search.seconds_left <= 0.0:
            raise SearchOver

    def _score(self, assignment: IntArray) -> float:
        """The reward of an episode; ends the training after the last one."""
        value = self._evaluate(assignment)
        self.search.work += 1
        if self.search.work >= self.most:
            raise SearchOver
        self._check()
        if value is None:
            return -_CLIP
        if self.mean is None:
            self.mean, self.deviation = value, abs(value) or 1.0
        reward = (self.mean - value) / max(self.deviation, 1e-12)
        self.deviation += (1.0 - _MEMORY) * (abs(value - self.mean) - self.deviation)
        self.mean += (1.0 - _MEMORY) * (value - self.mean)
        return float(np.clip(reward, -_CLIP, _CLIP))

    def _evaluate(self, assignment: IntArray) -> float | None:
        """Energy or real loss of an assignment, repaired to the budgets if necessary; None if that fails."""
        if not self.problem.is_feasible(assignment):
            self.repaired += 1
            self.local.place(assignment)
            if not self.local.repair():
                return None
            assignment = self.local.assignment
        key = assignment.tobytes()
        if key not in self.values:
            self.values[key] = self._value(assignment)
        value = self.values[key]
        if self.loss is None:
            self.search.keep(assignment, value)
        elif value < self.best:
            self.search.settle(assignment)
            self.search.trace.append((self.search.elapsed, self.search.energy, None))
        self.best = min(self.best, value)
        return value

    def _value(self, assignment: IntArray) -> float:
        if self.loss is None:
            return self.problem.energy(assignment)
        loss = float(self.loss(assignment.copy()))
        if not np.isfinite(loss):
            raise NonFiniteLoss(
                f"loss gave {loss} for {assignment.tolist()}; it must give a finite loss for every assignment"
            )
        return loss

    def figures(self) -> dict[str, Any]:
        """What was done, for the details."""
        figures: dict[str, Any] = {
            "agent": self.settings.agent,
            "episodes": self.search.work,
            "evaluations": len(self.values),
            "episodes_over_budget": self.repaired,
            "uniform_plan": self.uniform,
        }
        return figures if self.loss is None or not self.values else {**figures, "loss": self.best}

"""Reinforcement learning as in HAQ and AMC: an agent walks through the groups; its best episode is the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.errors import InvalidSolverOption, NonFiniteLoss
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
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
from qubo_compress.solvers.solver import RawSolution, SearchLimits, solvers

_AGENTS = ("ddpg", "ppo")
_MEMORY = 0.95  # of the moving baseline, as in HAQ and AMC
_CLIP = 5.0
_UNIFORM_PLANS = 16
_POOL = 64


@solvers.register
@dataclass(frozen=True)
class Reinforcement:
    """Train an agent that decides the groups one by one; the best of all its episodes is the answer.

    Needs ``pip install 'qubo_compress[reinforcement]'``. The work is the number of episodes. The reward of an episode
    is its improvement over a moving average, in units of the moving deviation. The best uniform plan that fits is
    evaluated before training. The first import of stable-baselines3 counts as compile time.

    Args:
        agent: ``"ddpg"`` (as published in HAQ and AMC, actions in [0, 1]) or ``"ppo"`` (actions are levels).
        episodes: walks over all groups after which training ends; published: 600.
        evaluate: assignment (G,) -> real loss, to be minimised instead of the energy; the answer is then the
            plan of least real loss.
        ddpg: settings of the ``"ddpg"`` agent.
        ppo: settings of the ``"ppo"`` agent.

    Raises:
        InvalidSolverOption: for another agent or a number out of range.
        MissingDependency: when gymnasium or stable-baselines3 are not installed.
        NonFiniteLoss: when ``evaluate`` returns NaN or infinity.

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
    evaluate: Callable[[IntArray], float] | None = None
    ddpg: DdpgSettings = field(default_factory=DdpgSettings)
    ppo: PpoSettings = field(default_factory=PpoSettings)

    def __post_init__(self) -> None:
        if self.agent not in _AGENTS:
            raise InvalidSolverOption(f"agent must be one of {', '.join(_AGENTS)}; got {self.agent!r}")
        if self.episodes < 1:
            raise InvalidSolverOption(f"episodes must be at least 1; got {self.episodes}")

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Train until the episodes, the time or the work, counted in episodes, are used up."""
        begin = time.perf_counter()
        require("gymnasium", "reinforcement")
        require("stable_baselines3", "reinforcement")
        load_torch()
        warm_up()
        run = _Run(problem, limits, rng, self, time.perf_counter() - begin)
        try:
            run.uniform_plan()
            run.train()
        except _Finished:
            pass
        except KeyboardInterrupt:
            run.interrupted = True
        return run.result()


class _Finished(Exception):
    """The episodes, the time or the work are used up."""


class _Run:
    """One search; valid at any moment, so that an interrupt yields an answer."""

    def __init__(
        self,
        problem: ChoiceProblem,
        limits: SearchLimits,
        rng: np.random.Generator,
        settings: Reinforcement,
        compiling: float,
    ) -> None:
        self.start = time.perf_counter()
        self.problem, self.limits, self.rng, self.settings = problem, limits, rng, settings
        self.compiling = compiling
        self.most = min(settings.episodes, limits.work or settings.episodes)
        self.local = LocalSearch(problem, rng)
        self.found: dict[bytes, tuple[float, IntArray]] = {}
        self.trace: list[tuple[float, float, float | None]] = []
        self.best = np.inf
        self.episodes = self.evaluations = self.repaired = 0
        self.mean: float | None = None
        self.deviation = 0.0
        self.uniform: float | None = None
        self.building = 0.0
        self.interrupted = False

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
        seed = int(self.rng.integers(2**31))
        with preserved_random_states():
            if settings.agent == "ddpg":
                agent = make_ddpg(make_environment(self.problem, self._score), settings.ddpg, length, seed, self._check)
            else:
                levels = int(self.problem.group_sizes.max())
                environment = make_environment(self.problem, self._score, levels=levels)
                agent = make_ppo(environment, settings.ppo, length, seed, self._check)
            self.building = time.perf_counter() - self.start
            self._check()
            # One more step, so that training ends by the last episode.
            agent.learn(self.most * length + 1)

    def _check(self) -> None:
        if time.perf_counter() - self.start >= self.limits.seconds:
            raise _Finished

    def _score(self, assignment: IntArray) -> float:
        """The reward of an episode; ends the training after the last one."""
        value = self._evaluate(assignment)
        self.episodes += 1
        if self.episodes >= self.most:
            raise _Finished
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
        if key not in self.found:
            energy = self.problem.energy(assignment)
            self.found[key] = (self._real_loss(assignment) if self.settings.evaluate else energy, assignment)
            self.evaluations += 1
        value = self.found[key][0]
        if value < self.best:
            self.best = value
            self.trace.append((time.perf_counter() - self.start, self.problem.energy(assignment), None))
        return value

    def _real_loss(self, assignment: IntArray) -> float:
        assert self.settings.evaluate is not None  # noqa: S101 - the caller checked
        loss = float(self.settings.evaluate(assignment.copy()))
        if not np.isfinite(loss):
            raise NonFiniteLoss(
                f"evaluate gave {loss} for {assignment.tolist()}; it must give a finite loss for every assignment"
            )
        return loss

    def result(self) -> RawSolution:
        """The best so far: of least energy, or of least real loss."""
        ranked = sorted(self.found.values(), key=lambda pair: pair[0])[: 1 if self.settings.evaluate else _POOL]
        details: dict[str, Any] = {
            "agent": self.settings.agent,
            "episodes": self.episodes,
            "evaluations": self.evaluations,
            "episodes_over_budget": self.repaired,
            "uniform_plan": self.uniform,
        }
        if self.settings.evaluate is not None and ranked:
            details["real_loss"] = ranked[0][0]
        return RawSolution(
            assignments=tuple(assignment for _, assignment in ranked),
            claimed_energy=self.problem.energy(ranked[0][1]) if ranked else None,
            timing={
                "compile": self.compiling,
                "build": self.building,
                "solve": time.perf_counter() - self.start - self.building,
            },
            trace=tuple(self.trace),
            work=self.episodes,
            interrupted=self.interrupted,
            details=details,
        )

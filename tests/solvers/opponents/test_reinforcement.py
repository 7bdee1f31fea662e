"""Reinforcement learning: the environment is a gymnasium one, walks keep to the budget, agents repeat themselves."""

from __future__ import annotations

import importlib
import random
import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import solve
from qubo_compress.errors import InvalidSolverOption, MissingDependency, NonFiniteLoss
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.opponents import reinforcement_environment
from qubo_compress.solvers.opponents.reinforcement import Reinforcement
from qubo_compress.solvers.opponents.reinforcement_agents import DdpgSettings, PpoSettings, truncated_normal
from qubo_compress.solvers.opponents.reinforcement_environment import FEATURES, GroupWalk, make_environment
from qubo_compress.testing.solvers import brute_force

SMALL = DdpgSettings(hidden=(16, 16), warm_up=20)
EAGER = DdpgSettings(hidden=(16, 16), learning_rates=(1e-3, 1e-2), warm_up=40)


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("kind", ["separable", "sparse", "dense", "low-rank"])
def test_gymnasium_finds_no_fault_with_the_environment(kind, levels):
    environment = make_environment(random_problem(kind, 4, 4, 0, budgets=2), levels=levels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*render.*|.*spec.*")
        check_env(environment, skip_render_check=True)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 8), choices=st.integers(1, 6), budgets=st.integers(0, 1), seed=st.integers(0, 10**6),
    fraction=st.floats(0.05, 1.0),
)  # fmt: skip
def test_every_walk_ends_within_the_budget(groups, choices, budgets, seed, fraction):
    problem = random_problem("dense", groups, choices, seed, budgets=budgets)
    least = problem.smallest_totals()
    limits = least + (fraction * (problem.limits - least).clip(0)).astype(np.int64)
    problem = problem.with_limits(limits)
    walk, rng = GroupWalk(problem), np.random.default_rng(seed)
    observation = walk.restart()
    while not walk.done:
        assert observation.shape == (walk.num_features,) and observation.dtype == np.float32
        assert ((observation >= 0) & (observation <= 1)).all()
        observation = walk.step(float(rng.random()))
    assert problem.is_feasible(walk.assignment)


def test_an_action_stands_for_a_level_where_the_budget_allows_it():
    problem = random_problem("dense", 5, 4, 0, budgets=0)
    walk = GroupWalk(problem)
    for action in (0.0, 0.3, 0.5, 0.99, 1.0):
        walk.step(action)
    assert walk.levels.assignments(np.array([[0, 1, 2, 3, 3]])).tolist() == [walk.assignment.tolist()]
    assert walk.done


def test_the_agent_sees_what_is_used_and_its_last_action():
    problem = random_problem("dense", 3, 4, 0)
    walk = GroupWalk(problem)
    first = walk.restart()
    second = walk.step(0.3)
    last, used = FEATURES.index("last action"), len(FEATURES)
    assert first[last] == 0.0 and second[last] == pytest.approx(1 / 3)
    spent = problem.totals(walk.assignment) - problem.totals(walk.levels.assignments(np.zeros((1, 3), int))[0])
    assert first[used] == 0.0 and second[used] > 0.0 and spent[0] > 0
    assert first[0] == 0.0 and second[0] == 0.5


def test_the_reward_comes_with_the_last_group():
    problem = random_problem("dense", 3, 4, 0)
    environment = make_environment(problem)
    environment.reset(seed=0)
    rewards = [environment.step(np.array([0.4], dtype=np.float32)) for _ in range(3)]
    assert [r[1] for r in rewards[:2]] == [0.0, 0.0] and [r[2] for r in rewards] == [False, False, True]
    assert rewards[2][1] == -problem.energy(rewards[2][4]["assignment"])


@given(st.floats(0.0, 1.0), st.floats(0.0, 0.5), st.floats(0.0, 1.0, exclude_min=True, exclude_max=True))
def test_truncated_normal_actions_stay_in_range(mean, deviation, part):
    assert 0.0 <= truncated_normal(mean, deviation, part) <= 1.0


@pytest.mark.parametrize("agent", ["ddpg", "ppo"])
def test_small_problems_are_learnt_and_repeat(agent):
    problem = random_problem("low-rank", 3, 3, 1)
    options = {"agent": agent, "ddpg": EAGER, "ppo": PpoSettings(hidden=(16, 16), episodes=20)}
    first, second = (solve(problem, Reinforcement(**options), time_limit=60.0, work_limit=80, seed=2) for _ in "ab")
    assert first.energy == pytest.approx(brute_force(problem)[0], abs=1e-9)
    assert first.work == second.work == 80 and first.details["episodes"] == 80
    assert [e.energy for e in first.pool] == [e.energy for e in second.pool]


def test_training_is_better_than_its_warm_up():
    """More than luck: with the same number of episodes, an agent that learns beats one that only explores."""
    problem = random_problem("low-rank", 8, 6, 0)
    learns = Reinforcement(agent="ppo", ppo=PpoSettings(hidden=(32, 32), learning_rate=3e-3))
    explores = Reinforcement(ddpg=DdpgSettings(hidden=(8, 8), warm_up=400))
    energies = [
        [solve(problem, solver, time_limit=60.0, work_limit=120, seed=seed).energy for seed in range(2)]
        for solver in (learns, explores)
    ]
    assert np.mean(energies[0]) < np.mean(energies[1])


def test_global_generators_are_left_as_they_were():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    solve(random_problem("dense", 3, 3, 0), Reinforcement(ddpg=SMALL), time_limit=60.0, work_limit=25)
    assert random.getstate() == expected[0]
    assert (np.random.get_state()[1] == expected[1]).all()
    assert torch.equal(torch.get_rng_state(), expected[2])


def test_the_real_loss_decides_where_it_is_given():
    problem = random_problem("separable", 4, 3, 0, budgets=0)
    wanted = np.array([2, 0, 1, 2])
    calls = []

    def loss(assignment, examples):
        assert examples is None
        calls.append(assignment)
        return float((assignment != wanted).sum())

    solver = Reinforcement(agent="ppo", loss=loss, ppo=PpoSettings(hidden=(16, 16)))
    solution = solve(problem, solver, time_limit=60.0, work_limit=300)
    assert solution.details["loss"] == min(float((c != wanted).sum()) for c in calls)
    assert solution.details["loss"] == float((solution.assignment != wanted).sum()) <= 1.0
    assert solution.details["evaluations"] == len(calls) == len({c.tobytes() for c in calls})
    assert len(solution.pool) == 1 and solution.energy == problem.energy(solution.assignment)
    with pytest.raises(NonFiniteLoss, match="finite"):
        solve(problem, Reinforcement(loss=lambda *_: float("nan")), work_limit=2)


def test_the_argument_of_04_still_gives_the_loss():
    problem = random_problem("separable", 4, 3, 0, budgets=0)
    options = {"agent": "ppo", "ppo": PpoSettings(hidden=(16, 16))}
    with pytest.warns(DeprecationWarning, match="evaluate= goes with the next release: give loss="):
        old = Reinforcement(evaluate=lambda assignment: float(assignment.sum()), **options)
    new = Reinforcement(loss=lambda assignment, examples: float(assignment.sum()), **options)
    first, second = (solve(problem, solver, time_limit=60.0, work_limit=5) for solver in (old, new))
    assert first.details == second.details and first.assignment.tolist() == second.assignment.tolist()


def test_an_answer_exists_before_anything_is_learnt():
    problem = random_problem("dense", 60, 12, 0)
    solution = solve(problem, "reinforcement", time_limit=0.001)
    assert problem.is_feasible(solution.assignment) and solution.work == 0
    assert solution.energy == solution.details["uniform_plan"]


@pytest.mark.parametrize("options", [{"agent": "dqn"}, {"episodes": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidSolverOption, match=next(iter(options))):
        Reinforcement(**options)


@pytest.mark.parametrize("package", ["gymnasium", "stable_baselines3"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch, package):
    real = importlib.import_module

    def without(name, *args):
        if name == package:
            raise ModuleNotFoundError(f"No module named {package!r}")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    reinforcement_environment._environment_class.cache_clear()
    with pytest.raises(MissingDependency, match=package + r".*pip install 'qubo_compress\[reinforcement\]'"):
        solve(random_problem("dense", 3, 3, 0), "reinforcement")


@pytest.mark.parametrize("agent", ["ddpg", "ppo"])
def test_nothing_is_left_in_the_temporary_directory(agent, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings_ = {"ddpg": SMALL, "ppo": PpoSettings(hidden=(16, 16))}
    solve(random_problem("separable", 4, 3, 0), "reinforcement", agent=agent, episodes=25, **{agent: settings_[agent]})
    assert not list(tmp_path.glob("SB3*"))

"""The agents of stable-baselines3 with the settings of HAQ and AMC, checked for time between gradient steps.

Both papers train an actor and a critic (300-300 hidden units; 400-300 in the original DDPG) with Adam at 1e-4
and 1e-3, no discount, batches of 64, target networks that follow at 0.01, warm-up episodes of random actions,
and actions drawn from a normal distribution around the actor's, truncated to [0, 1], whose deviation starts at
0.5 and shrinks with every episode. They give every step the reward of its whole episode; here it comes
with the last step, which without discount has the same optimum.

The numbers of episodes and of warm-up episodes are confirmed; the other settings, and the small last layers that
make the first actor answer 0.5 to everything, are those of the released code from memory, not checked against it.
Nothing was tuned.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

_LAST_LAYER = 3e-3


@dataclass(frozen=True)
class DdpgSettings:
    """Settings of DDPG as published in HAQ and AMC.

    Attributes:
        hidden: units of the two hidden layers of actor and critic.
        learning_rates: of actor and critic.
        warm_up: episodes of random actions.
        deviation: of the first truncated normal action, in [0, 1].
        decay: of the deviation per episode.
        batch: transitions of one gradient step.
        memory: transitions in the replay buffer.
        tau: share of a target network that is replaced per gradient step.
        updates: gradient steps per step of the walk.
    """

    hidden: tuple[int, int] = (400, 300)
    learning_rates: tuple[float, float] = (1e-4, 1e-3)
    warm_up: int = 20
    deviation: float = 0.5
    decay: float = 0.99
    batch: int = 64
    memory: int = 2000
    tau: float = 0.01
    updates: float = 1.0


@dataclass(frozen=True)
class PpoSettings:
    """Proximal policy optimisation over levels, with the usual settings except for the discount.

    Attributes:
        hidden: units of the two hidden layers of policy and value.
        learning_rate: of both.
        episodes: walks between two updates.
        batch: transitions of one gradient step.
        epochs: passes over the walks of an update.
        entropy: weight of the policy's entropy in the loss.
    """

    hidden: tuple[int, int] = (64, 64)
    learning_rate: float = 1e-3
    episodes: int = 10
    batch: int = 64
    epochs: int = 10
    entropy: float = 0.01


@functools.cache
def load_torch() -> None:
    """Make torch load now what it otherwise loads with the first optimizer, which takes seconds."""
    import torch

    with torch.random.fork_rng(devices=[]):
        layer = torch.nn.Linear(1, 1)
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.ones(1, 1)).sum().backward()
        optimizer.step()


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch: stable-baselines3 seeds all three."""
    import torch

    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def truncated_normal(mean: float, deviation: float, part: float) -> float:
    """The ``part`` quantile of a normal distribution truncated to [0, 1].

    Example:
        >>> truncated_normal(0.5, 0.1, 0.5), 0.0 <= truncated_normal(1.0, 0.5, 0.999) <= 1.0
        (0.5, True)
    """
    if deviation < 1e-9:
        return min(1.0, max(0.0, mean))
    low, high = special.ndtr((0.0 - mean) / deviation), special.ndtr((1.0 - mean) / deviation)
    point = mean + deviation * float(special.ndtri(low + part * (high - low)))
    return min(1.0, max(0.0, point))


def make_ddpg(environment: Any, settings: DdpgSettings, length: int, seed: int, check: Callable[[], None]) -> Any:
    """An agent of deep deterministic policy gradients.

    Args:
        environment: with actions in [0, 1].
        settings: of the agent.
        length: steps of one episode.
        seed: of the agent's random draws.
        check: called before every gradient step; an exception from it ends the training.
    """
    from stable_baselines3 import DDPG

    rng = np.random.default_rng(seed)

    class Published(DDPG):  # type: ignore[misc]
        def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            episode = self.num_timesteps // length - settings.warm_up
            if episode < 0:
                action = float(rng.random())
            else:
                assert self._last_obs is not None  # noqa: S101 - learning has begun
                mean = float(self.predict(self._last_obs, deterministic=True)[0].ravel()[0])
                action = truncated_normal(mean, settings.deviation * settings.decay**episode, float(rng.random()))
            actions = np.array([[action]], dtype=np.float32)
            return actions, self.policy.scale_action(actions)

        def _update_learning_rate(self, optimizers: Any) -> None:
            # stable-baselines3 has one rate for both; it passes the actor's optimizer first.
            for optimizer, rate in zip(optimizers, settings.learning_rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate

        def train(self, gradient_steps: int, batch_size: int = 64) -> None:
            for _ in range(max(1, round(settings.updates * gradient_steps))):
                check()
                super().train(1, batch_size)

    agent = Published(
        "MlpPolicy",
        environment,
        learning_rate=settings.learning_rates[0],
        buffer_size=max(settings.memory, 2 * settings.batch),
        learning_starts=settings.warm_up * length,
        batch_size=settings.batch,
        tau=settings.tau,
        gamma=1.0,
        train_freq=(1, "episode"),
        gradient_steps=-1,
        policy_kwargs={"net_arch": list(settings.hidden)},
        seed=seed,
        device="cpu",
    )
    _start_undecided(agent)
    return _silent(agent)


def _start_undecided(agent: Any) -> None:
    """Small weights in the last layers, as published: the first actor answers 0.5 to everything instead of 0 or 1."""
    import torch

    for network, target in ((agent.actor, agent.actor_target), (agent.critic, agent.critic_target)):
        last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
        torch.nn.init.uniform_(last.weight, -_LAST_LAYER, _LAST_LAYER)
        torch.nn.init.uniform_(last.bias, -_LAST_LAYER, _LAST_LAYER)
        target.load_state_dict(network.state_dict())


def make_ppo(environment: Any, settings: PpoSettings, length: int, seed: int, check: Callable[[], None]) -> Any:
    """An agent of proximal policy optimisation; arguments as for :func:`make_ddpg`, actions are levels."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.buffers import RolloutBuffer

    class Checked(RolloutBuffer):  # type: ignore[misc]
        def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
            for batch in super().get(batch_size):
                check()
                yield batch

    steps = max(2, settings.episodes * length)
    # A divisor, so that all batches are full.
    batch = max(size for size in range(1, min(settings.batch, steps) + 1) if steps % size == 0)
    agent = PPO(
        "MlpPolicy",
        environment,
        learning_rate=settings.learning_rate,
        n_steps=steps,
        batch_size=max(2, batch),
        n_epochs=settings.epochs,
        gamma=1.0,
        gae_lambda=0.95,
        ent_coef=settings.entropy,
        rollout_buffer_class=Checked,
        policy_kwargs={"net_arch": list(settings.hidden)},
        seed=seed,
        device="cpu",
    )
    return _silent(agent)


def _silent(agent: Any) -> Any:
    """The agent with a silent logger: its own creates a folder in the temporary directory and leaves it."""
    from stable_baselines3.common.logger import Logger

    agent.set_logger(Logger(folder=None, output_formats=[]))
    return agent

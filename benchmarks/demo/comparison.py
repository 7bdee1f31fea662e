"""The same network compressed to the same bytes in three ways, each judged on the same test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.audits import paired_change, wilson

OPPONENTS = ("uniform", "additive")
"""Without choosing per layer, and choosing as if layers did not interact; both are candidates of every run."""

SECONDS = 3.0
"""Of each solve."""


@dataclass(frozen=True)
class Contender:
    """One network of the comparison.

    Attributes:
        name: ``"original"``, one of the opponents, or ``"ours"``.
        bytes: of its file.
        right: test examples that it gets right.
        lost, gained: examples that only the original, or only this one, gets right.
        flips: examples that it answers differently, right or wrong.
        examples: of the test.
    """

    name: str
    bytes: int
    right: int
    lost: int
    gained: int
    flips: int
    examples: int

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100.0 * self.right / self.examples

    @property
    def change(self) -> tuple[float, float, float]:
        """Points of accuracy from the original to this one, and their 95 % interval over pairs of answers."""
        low, high = paired_change(self.lost, self.gained, self.examples)
        return 100.0 * (self.gained - self.lost) / self.examples, 100.0 * low, 100.0 * high

    @property
    def flipped(self) -> tuple[float, float, float]:
        """Percent of answers that differ, and their 95 % interval."""
        low, high = wilson(self.flips, self.examples)
        return 100.0 * self.flips / self.examples, 100.0 * low, 100.0 * high


@dataclass(frozen=True, eq=False)
class Compared:
    """A result, and the networks that it is compared with.

    Attributes:
        result: of :func:`qubo_compress.compress`.
        contenders: the original, the opponents, ours.
        winner: names of the candidate that the result took.
    """

    result: qc.CompressionResult
    contenders: tuple[Contender, ...]
    winner: tuple[str, ...]


def answers_of(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The classes (N,) that a network answers."""
    with torch.inference_mode():
        return torch.cat([model(inputs).argmax(1) for inputs, _ in batches])


def labels_of(batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The labels (N,) of batches."""
    return torch.cat([labels for _, labels in batches])


def compared(
    network: qc.ExampleNetwork, ratio: float, seed: int = 0, cache: str | None = None, progress: bool = True
) -> Compared:
    """Compress to a ratio, and judge the plan beside the opponents of the same run, recovered in the same way.

    Args:
        network: with calibration examples to measure and recover with, validation examples to choose between plans
            with, and test examples, used for the scores alone.
        ratio: original bytes / bytes.
        seed: of the run.
        cache: folder of the measurement, if it was made before.
        progress: show bars.
    """
    result = qc.compress(
        network.model, network.calibration, qc.Budget(ratio=ratio), validation=network.validation,
        time_limit=SECONDS, seed=seed, cache=cache, progress=progress,
    )  # fmt: skip
    found = [("original", result.plan.original_bytes, network.model)]
    for name in OPPONENTS:
        plan = next(one.plan for one in result.taken.candidates if name in one.names)
        applied = plan.apply(network.model)
        recovered = qc.recover(applied, network.calibration, network.model, seed=seed, progress=False)
        found.append((name, plan.bytes, _better(network, applied, recovered)))
    found.append(("ours", result.plan.bytes, result.model))
    labels, original = labels_of(network.test), answers_of(network.model, network.test)
    contenders = [
        contender(name, size, answers_of(model, network.test), original, labels) for name, size, model in found
    ]
    return Compared(result, tuple(contenders), result.taken.chosen.names)


def contender(name: str, size: int, answers: Tensor, original: Tensor, labels: Tensor) -> Contender:
    """Count a network's answers (N,) against the original's and the labels."""
    now, before = answers == labels, original == labels
    return Contender(
        name, size, int(now.sum()), int((before & ~now).sum()), int((now & ~before).sum()),
        int((answers != original).sum()), len(labels),
    )  # fmt: skip


def _better(network: qc.ExampleNetwork, applied: nn.Module, recovered: nn.Module) -> nn.Module:
    """Of two networks the one whose outputs on the validation examples diverge less, as ours is chosen."""
    return min((recovered, applied), key=lambda model: divergence(network.model, model, network.validation))


@torch.inference_mode()
def divergence(original: nn.Module, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean KL divergence of a network's answers from the original's."""
    total = 0.0
    for inputs, _ in batches:
        before, after = original(inputs).log_softmax(1), model(inputs).log_softmax(1)
        total += float((before.exp() * (before - after)).sum())
    return total / sum(len(labels) for _, labels in batches)

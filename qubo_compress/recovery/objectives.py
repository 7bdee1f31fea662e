"""Objectives of fine-tuning: the labels alone, also the original's outputs, or above all its answers.

With logits z of the compressed network and r of the original, label y and a = argmax r, one output row costs

    plain               CE(y, z)
    distillation        CE(y, z) + KL(softmax r || softmax z)
    label-preserving    alpha CE(y, z) + beta D(r, z) + gamma CE(a, z)

with D the KL divergence or the squared distance of the centred logits. The last is the multi-part loss of Joseph et
al. (2020, "Going Beyond Classification Accuracy Metrics in Model Compression", arXiv 2012.01604): a network that is
as accurate as the original may still answer differently, and answers are preserved only if the loss asks for it. Its
weights are fixed, or adapt like those of SoftAdapt (Heydari et al. 2019, arXiv 1912.12355): parts that fall more slowly
than the others get more weight.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from qubo_compress._internal import older_plug_ins
from qubo_compress._internal.registry import Registry
from qubo_compress.errors import InvalidObjective
from qubo_compress.network.losses.classification import CallableLoss, Loss, SquaredError
from qubo_compress.recovery.training import Objective as RowLoss
from qubo_compress.recovery.training import distillation

Distance = Literal["logits", "kl"]


class RecoveryObjective(ABC):
    """Settings of an objective: a frozen dataclass, registered under a name."""

    @property
    def needs_labels(self) -> bool:
        """Whether the objective is void without class labels; it is not by default."""
        return False

    @abstractmethod
    def start(self) -> RowLoss:
        """The loss of one training: (rows (M, C), original's rows (M, C), labels or None) -> (M,)."""


def adopt(kind: type) -> None:
    """Bring an objective up to date that was written for 0.4."""
    known = older_plug_ins.names_in(kind)
    if {"needs_labels", "start"} <= known:
        older_plug_ins.adopt(kind, RecoveryObjective, known, {})


objectives: Registry[type[RecoveryObjective]] = Registry("objective", adopt=adopt)


@objectives.register("plain")
@dataclass(frozen=True)
class Plain(RecoveryObjective):
    """Cross-entropy with the labels only, as in fine-tuning without a teacher."""

    @property
    def needs_labels(self) -> bool:
        """Always."""
        return True

    def start(self) -> RowLoss:
        """The loss; it has no state."""
        return _label_loss


@objectives.register("distillation")
@dataclass(frozen=True)
class Distillation(RecoveryObjective):
    """Cross-entropy with the labels, if any, plus the KL divergence from the original.

    Args:
        temperature: T, by which both networks' logits are divided in the divergence, which is multiplied by T^2, so
            that its gradient keeps its size (Hinton et al. 2015, arXiv 1503.02531). Above 1, the network also learns
            how likely the original finds each of the other classes. Only for losses of classes.
        labels: weight of the cross-entropy with the labels.

    Raises:
        InvalidObjective: for a temperature that is not positive, or a negative weight.

    Example:
        >>> loss, z = Distillation(temperature=4.0, labels=0.2).start(), torch.tensor([[1.0, 0.0]])
        >>> loss(z, z, None).item()
        0.0
    """

    temperature: float = 1.0
    labels: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InvalidObjective(f"temperature must be a finite number above zero; got {self.temperature}")
        if not (math.isfinite(self.labels) and self.labels >= 0):
            raise InvalidObjective(f"labels must be a finite number, zero or more; got {self.labels}")

    def start(self) -> RowLoss:
        """The loss; it has no state."""
        return distillation if self == Distillation() else self._softened

    def _softened(self, found: Tensor, goal: Tensor, labels: Tensor | None) -> Tensor:
        heat = self.temperature
        values = heat**2 * _divergence(found / heat, goal / heat)
        if labels is not None:
            values = values + self.labels * functional.cross_entropy(found, labels, reduction="none")
        return values


@objectives.register("label-preserving")
@dataclass(frozen=True)
class LabelPreserving(RecoveryObjective):
    """The multi-part loss of Joseph et al.: labels, the original's outputs, and its answers.

    The default is the distance of the logits alone: on ResNet-20 at 8x it left 2.2 times fewer mismatches than labels
    alone and 1.7 times fewer than distillation, and as many as all three parts together (one seed; the default was
    chosen among four settings on the same images). ``python -m benchmarks.studies.long_tail recovery`` compares them.

    Args:
        labels: alpha, of the cross-entropy with the labels; ignored without labels.
        outputs: beta, of the distance between the outputs.
        answers: gamma, of the cross-entropy with the class that the original predicts.
        distance: ``"logits"``: half the mean square over classes of the difference of the logits, each row centred,
            because a shift of all logits changes nothing; ``"kl"``: the KL divergence of the softmaxes.
        emphasis: rows that the original gets right (without labels, all rows) are weighted by
            1 + emphasis exp(-margin), with the margin its largest logit minus the second.
        adaptive: let the three weights follow SoftAdapt, with their sum fixed.
        softness: beta of SoftAdapt's softmax.
        window: steps over which SoftAdapt averages.

    Raises:
        InvalidObjective: when a weight is negative, or all are zero.

    Example:
        >>> loss = LabelPreserving(labels=0.0, outputs=1.0, answers=0.0).start()
        >>> z = torch.tensor([[1.0, 0.0]])
        >>> loss(z, z, None).item(), loss(z + 3.0, z, None).item()
        (0.0, 0.0)
    """

    labels: float = 0.0
    outputs: float = 1.0
    answers: float = 0.0
    distance: Distance = "logits"
    emphasis: float = 0.0
    adaptive: bool = False
    softness: float = 0.1
    window: int = 10

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("labels", "outputs", "answers", "emphasis", "softness")}
        for name, value in weights.items():
            if not (math.isfinite(value) and value >= 0):
                raise InvalidObjective(f"{name} must be a finite number, zero or more; got {value}")
        if self.labels + self.outputs + self.answers == 0:
            raise InvalidObjective("labels, outputs and answers are all zero, so nothing would be trained; set one")
        if self.distance not in ("logits", "kl"):
            raise InvalidObjective(f"distance must be 'logits' or 'kl'; got {self.distance!r}")
        if self.window < 1:
            raise InvalidObjective(f"window must be at least 1 step; got {self.window}")

    @property
    def needs_labels(self) -> bool:
        """True if only the labels have weight."""
        return self.outputs + self.answers == 0

    def start(self) -> RowLoss:
        """The loss, with a fresh SoftAdapt state."""
        fixed = (self.labels, self.outputs, self.answers)
        return _Parts(self, SoftAdapt(fixed, self.softness, self.window) if self.adaptive else None)


@dataclass
class SoftAdapt:
    """Weights of the parts of a loss by how fast each part falls, after Heydari et al. 2019.

    With m_k the mean of part k over a window and s_k = m_k / m_k' - 1 its relative change since the window before,
    the weights are fixed_k exp(softness s_k / max |s|) scaled to the sum of the fixed ones. Relative changes, window
    means and the division by the largest change are our additions, because the parts have very different sizes. Parts
    that are absent, zero or without weight are ignored.

    Args:
        fixed: weights of the parts if they fall equally fast.
        softness: 0: fixed weights.
        window: steps in each mean.
    """

    fixed: tuple[float, ...]
    softness: float
    window: int
    _sums: Tensor = field(init=False)
    _steps: int = field(init=False, default=0)
    _before: Tensor | None = field(init=False, default=None)
    _weights: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._weights = torch.tensor(self.fixed, dtype=torch.float64)
        self._sums = torch.zeros_like(self._weights)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the parts for the next step."""
        return tuple(self._weights.tolist())

    def seen(self, means: Tensor) -> None:
        """Record the mean of every part in one step."""
        self._sums += means.detach().double().cpu()
        self._steps += 1
        if self._steps < self.window:
            return
        now = self._sums / self._steps
        if self._before is not None:
            self._weights = self._adapted(now, self._before)
        self._before, self._steps = now, 0
        self._sums = torch.zeros_like(self._sums)

    def _adapted(self, now: Tensor, before: Tensor) -> Tensor:
        weights = torch.tensor(self.fixed, dtype=torch.float64)
        live = (weights > 0) & (now > 0) & (before > 0)
        if not bool(live.any()):
            return weights
        change = now[live] / before[live] - 1.0
        raw = weights[live] * (self.softness * change / change.abs().max().clamp(min=1e-12)).exp()
        weights[live] = raw * weights[live].sum() / raw.sum()
        return weights


@dataclass
class _Parts:
    """The label-preserving loss during one training."""

    settings: LabelPreserving
    adapt: SoftAdapt | None

    def __call__(self, found: Tensor, goal: Tensor, labels: Tensor | None) -> Tensor:
        answers = goal.argmax(-1)
        zero = torch.zeros(found.shape[0], dtype=found.dtype, device=found.device)
        parts = torch.stack(
            [
                zero if labels is None else functional.cross_entropy(found, labels, reduction="none"),
                _logit_distance(found, goal) if self.settings.distance == "logits" else _divergence(found, goal),
                functional.cross_entropy(found, answers, reduction="none"),
            ]
        )
        fixed = (self.settings.labels, self.settings.outputs, self.settings.answers)
        if self.adapt is not None:
            self.adapt.seen(parts.mean(1))
        weights = parts.new_tensor(fixed if self.adapt is None else self.adapt.weights)
        values = (weights[:, None] * parts).sum(0)
        return values * self._emphasis(goal, answers, labels)

    def _emphasis(self, goal: Tensor, answers: Tensor, labels: Tensor | None) -> Tensor:
        first, second = goal.topk(2, dim=-1).values.unbind(-1) if goal.shape[-1] > 1 else (goal[:, 0], goal[:, 0])
        close = torch.exp(second - first)
        if labels is not None and labels.ndim == 1:
            close = close * (answers == labels)
        return 1.0 + self.settings.emphasis * close


def make_objective(objective: str | RecoveryObjective | RowLoss, loss: Loss | None = None) -> RowLoss:
    """The loss of one training, from a registered name, from settings, or a function as given.

    Args:
        objective: the name, settings or function.
        loss: of the network's task; default: cross-entropy. Under another loss, ``"plain"`` is that loss,
            ``"distillation"`` adds the divergence from the teacher, and labels are the unchanged targets.

    Raises:
        UnknownName: when no objective has that name.
        InvalidObjective: for an objective that compares classes, under a loss that does not.
    """
    chosen = _chosen(objective)
    if not isinstance(chosen, RecoveryObjective):
        return chosen
    if loss is None or loss.of_classes:
        return chosen.start()
    if isinstance(chosen, Plain) or chosen == Distillation():
        return _TaskLoss(loss, teacher=isinstance(chosen, Distillation))
    raise InvalidObjective(
        f"{type(chosen).__name__} compares classes, and this network is recovered under the loss "
        f"{type(loss).__name__}; use the objective 'distillation' or 'plain'"
    )


def apart(loss: Loss, rows: Tensor, targets: Tensor | None, goal: Tensor) -> Tensor:
    """(M,) distance of the rows from the original's: the loss's divergence, squared for a caller's own loss.

    The divergence of a caller's loss follows its curvature, which may be negative or zero.
    """
    measure = SquaredError() if isinstance(loss, CallableLoss) else loss
    return measure.divergence(rows, targets, goal)


@dataclass(frozen=True)
class _TaskLoss:
    """The task's own loss, if there are targets, plus the distance from the teacher if asked for."""

    loss: Loss
    teacher: bool

    def __call__(self, found: Tensor, goal: Tensor, labels: Tensor | None) -> Tensor:
        known = labels is not None or not self.loss.needs_targets
        own = self.loss.values(found, labels, goal) if known else torch.zeros_like(found[:, 0])
        if not self.teacher or (labels is None and isinstance(self.loss, SquaredError)):
            return own
        return own + apart(self.loss, found, labels, goal)


def needs_labels(objective: str | RecoveryObjective | RowLoss) -> bool:
    """Whether an objective is void without class labels."""
    chosen = _chosen(objective)
    return isinstance(chosen, RecoveryObjective) and chosen.needs_labels


def _chosen(objective: str | RecoveryObjective | RowLoss) -> RecoveryObjective | RowLoss:
    if isinstance(objective, str):
        return objectives.get(objective)()
    adopt(type(objective))
    return objective


def _label_loss(found: Tensor, _: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None:
        raise InvalidObjective("the objective 'plain' needs labels; give (inputs, targets) batches")
    return functional.cross_entropy(found, labels, reduction="none")


def _divergence(found: Tensor, goal: Tensor) -> Tensor:
    return functional.kl_div(found.log_softmax(-1), goal.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def _logit_distance(found: Tensor, goal: Tensor) -> Tensor:
    change = found - goal
    return 0.5 * (change - change.mean(-1, keepdim=True)).square().mean(-1)

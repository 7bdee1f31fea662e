"""Gradients of the loss, one per example or per mini-batch, for the weights of one group."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

from qubo_compress.calibration.examples import Slice
from qubo_compress.calibration.statistics.statistic import Calibration, Statistic
from qubo_compress.errors import InvalidMenu, NonFiniteLoss
from qubo_compress.network.groups import Group
from qubo_compress.network.inputs import Inputs, map_tensors, tensors_of

logger = logging.getLogger(__name__)

GRADIENT_MEMORY = 100_000_000
"""Bytes that the gradients of one vectorised pass may take."""

VECTORISED_EXAMPLES = 25
"""Larger vectorised passes are slower: per-example convolution gradients fall out of the processor's cache."""

IMAGINED = 24
"""Gradients that are made up for conformance tests, where more were asked for."""


@dataclass(frozen=True, eq=False)
class GradientRows:
    """Gradients of one member's values.

    Attributes:
        values: (N, n) float32; row i is g_i times ``roots[i]``, so that ``values.T @ values / N`` is the weighted
            empirical Fisher, sum of v_i g_i g_i^T with example weights v_i that sum to one.
        roots: (N,) float32, sqrt(N v_i): ones where all examples count alike. ``values.T @ roots / N`` is the
            mean gradient.
    """

    values: Tensor
    roots: Tensor


@dataclass(frozen=True)
class Gradients(Statistic):
    """Gradients of the measurement's loss at the trained weights, on the CPU.

    Labels are those of the batches. Where these bring none, or the loss looks at none (``"kl"``), labels are
    drawn from the network's own softmax with a seeded generator and the loss is the cross-entropy: the rows then
    estimate the true Fisher information. For numbers without targets they are random signs, the gradients of
    half the squared distance from targets drawn one away.

    Args:
        count: number of gradients; fewer when the calibration has fewer examples and ``batch`` is 1.
        batch: examples that each gradient is the mean of, as the authors of WoodFisher use it; beyond the number
            of examples they are drawn again.

    Raises:
        InvalidMenu: for numbers below one.
        NonFiniteLoss: on collecting, when a gradient is NaN or infinite.
    """

    statistic_name: ClassVar[str] = "gradients"
    count: int = 400
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("count", "batch"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise InvalidMenu(f"{name} of gradients must be a whole number of at least 1; got {value!r}")

    def collect(self, calibration: Calibration, group: Group) -> tuple[GradientRows, ...]:
        """One :class:`GradientRows` per member; filters of one layer share the pass over the data."""
        names = tuple(member.name for member in group.members)
        values, roots = calibration.remembered(str(self), names, lambda: self._gathered(calibration, names))
        found = []
        for member in group.members:
            part = member.part(values[member.name], leading=1)
            found.append(GradientRows(part.reshape(part.shape[0], -1), roots))
        return tuple(found)

    def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[GradientRows, ...]:
        """Correlated rows: a few common directions and noise."""
        count = min(self.count, IMAGINED)
        found = []
        for member in group.members:
            common = torch.randn(count, 3, generator=generator) @ torch.randn(3, member.numel, generator=generator)
            rows = 0.1 * common + 0.05 * torch.randn(count, member.numel, generator=generator)
            found.append(GradientRows(rows, torch.ones(count)))
        return tuple(found)

    def _gathered(self, calibration: Calibration, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Name -> (N, *shape) rows, and their roots."""
        calibration.examples.refuse_parts("a menu that looks at gradients")
        picked = self.example_numbers(calibration.examples.count, calibration.seed)
        examples = calibration.examples.select(np.unique(picked))
        pieces: dict[str, list[Tensor]] = {name: [] for name in names}
        if self.batch == 1:
            for number, part in enumerate(examples.slices):
                pulled = _cotangents(calibration, part, number)
                for name, rows in _per_example(calibration, names, part, pulled).items():
                    pieces[name].append(rows)
            weights = torch.cat([part.weights for part in examples.slices])
            roots = (weights * weights.numel()).sqrt().float()
        else:
            for number, row in enumerate(picked):
                chosen = calibration.examples.select(np.sort(row))
                for name, gradient in _of_batch(calibration, names, chosen.slices, number).items():
                    pieces[name].append(gradient)
            roots = torch.ones(len(picked))
        return {name: _scaled(name, pieces.pop(name), roots) for name in names}, roots

    def example_numbers(self, available: int, seed: int) -> np.ndarray:
        """Which examples are used: (N,) rising numbers, or (N, batch) without repetition inside a mini-batch."""
        generator = np.random.default_rng(seed)
        if self.batch == 1:
            return np.sort(generator.permutation(available)[: self.count])
        size = min(self.batch, available)
        per_round = available // size
        rounds = -(-self.count // per_round)
        orders = [generator.permutation(available)[: per_round * size].reshape(per_round, size) for _ in range(rounds)]
        return np.concatenate(orders)[: self.count]


def _scaled(name: str, pieces: list[Tensor], roots: Tensor) -> Tensor:
    """(N, *shape) rows times their roots, in place: they are the largest thing in memory."""
    rows = torch.cat(pieces)
    pieces.clear()
    if not bool(torch.isfinite(rows).all()):
        raise NonFiniteLoss(
            f"gradients of {name} are NaN or infinite on the calibration data; run the network in float32, or leave "
            "out choices that look at gradients, such as woodfisher"
        )
    return rows.mul_(roots.reshape(-1, *[1] * (rows.ndim - 1)))


def _cotangents(calibration: Calibration, part: Slice, number: int) -> Tensor:
    """(n, rows per example, C) gradient of each example's mean loss with respect to its output rows."""
    with torch.no_grad():
        rows = calibration.run(part.inputs).detach().float()
    shares = calibration.examples.row_shares(part, rows.shape[0]).to(rows)
    with torch.enable_grad():
        leaf = rows.clone().requires_grad_(True)
        generator = torch.Generator().manual_seed(calibration.seed * 1_000_003 + number)
        numeric = calibration.loss.of_numbers
        if part.targets is not None and (numeric or calibration.loss.needs_targets):
            values = calibration.loss.values(leaf, part.targets, rows)
        elif numeric or rows.shape[1] == 1:
            signs = torch.randint(2, rows.shape, generator=generator).to(rows) * 2 - 1
            values = (leaf * signs).sum(-1)
        else:
            drawn = torch.multinomial(rows.softmax(-1).cpu(), 1, generator=generator).reshape(-1).to(rows.device)
            values = functional.cross_entropy(leaf, drawn, reduction="none")
        pulled = torch.autograd.grad(values.sum(), leaf)[0]
    return pulled.reshape(*shares.shape, -1) * shares[:, :, None]


def _tensors(calibration: Calibration, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: calibration.tensors[name].detach() for name in names}


def _product(calibration: Calibration, values: dict[str, Tensor], inputs: Inputs, pulled: Tensor) -> Tensor:
    """Inner product of the outputs with ``pulled``, the network holding ``values``: its gradient is wanted."""
    with calibration.tensors.swapped(values):
        return (calibration.run(inputs) * pulled).sum()


def _per_example(calibration: Calibration, names: Sequence[str], part: Slice, pulled: Tensor) -> dict[str, Tensor]:
    """Name -> (n, *shape) gradients, on the CPU."""
    held = _tensors(calibration, names)
    each = 4 * sum(tensor.numel() for tensor in held.values())
    chunk = max(1, min(len(part), VECTORISED_EXAMPLES, GRADIENT_MEMORY // max(each, 1)))
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def product(values: dict[str, Tensor], inputs: Inputs, weights: Tensor) -> Tensor:
        return _product(calibration, values, map_tensors(inputs, lambda t: t.unsqueeze(0)), weights)

    for start in range(0, len(part), chunk):
        inputs = map_tensors(part.inputs, lambda t, start=start: t[start : start + chunk])
        weights = pulled[start : start + chunk]
        with torch.enable_grad():
            try:
                rows = dict(vmap(grad(product), in_dims=(None, 0, 0))(held, inputs, weights))
            except (RuntimeError, ValueError, NotImplementedError) as cause:
                logger.info("vmap does not support this model (%s); one backward pass per example instead", cause)
                rows = _one_by_one(calibration, held, inputs, weights)
        for name in names:
            found[name].append(rows[name].detach().float().cpu())
    return {name: torch.cat(rows) for name, rows in found.items()}


def _one_by_one(
    calibration: Calibration, held: dict[str, Tensor], inputs: Inputs, weights: Tensor
) -> dict[str, Tensor]:
    collected: dict[str, list[Tensor]] = {name: [] for name in held}
    for i in range(tensors_of(inputs)[0].shape[0]):
        single = map_tensors(inputs, lambda t, i=i: t[i : i + 1])
        for name, gradient in _backward(calibration, held, single, weights[i]).items():
            collected[name].append(gradient)
    return {name: torch.stack(rows) for name, rows in collected.items()}


def _backward(calibration: Calibration, held: dict[str, Tensor], inputs: Inputs, pulled: Tensor) -> dict[str, Tensor]:
    with torch.enable_grad():
        leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in held.items()}
        value = _product(calibration, leaves, inputs, pulled)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def _of_batch(
    calibration: Calibration, names: Sequence[str], slices: Sequence[Slice], number: int
) -> dict[str, Tensor]:
    """Name -> (1, *shape) weighted mean gradient of some examples."""
    held = _tensors(calibration, names)
    total = {name: torch.zeros_like(tensor, dtype=torch.float32, device="cpu") for name, tensor in held.items()}
    for place, part in enumerate(slices):
        pulled = _cotangents(calibration, part, number * 1_009 + place)
        pulled = pulled * part.weights.to(pulled.device).float().reshape(-1, 1, 1)
        for name, gradient in _backward(calibration, held, part.inputs, pulled.reshape(-1, pulled.shape[-1])).items():
            total[name] += gradient.float().cpu()
    return {name: gradient.unsqueeze(0) for name, gradient in total.items()}

"""Features from gradients of single examples: one backward pass per example for any number of choices."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from qubo_compress.calibration.examples import Slice
from qubo_compress.network.groups import Member
from qubo_compress.network.inputs import call, map_tensors
from qubo_compress.network.losses.classification import KullbackLeibler, SquaredError
from qubo_compress.sensitivity.cache import Unit
from qubo_compress.sensitivity.forward_sweep import compact, forward_sweep, total_columns
from qubo_compress.sensitivity.metric import Metric, MetricResult
from qubo_compress.sensitivity.ranks import Arrays
from qubo_compress.sensitivity.subject import Subject

logger = logging.getLogger(__name__)

GRADIENT_MEMORY = 300_000_000
"""Most bytes for the per-example gradients of one chunk of examples."""


@dataclass(frozen=True)
class GradientMetric(Metric):
    """The base of metrics from gradients.

    Args:
        measured_linear: measure the linear terms by one run per choice instead.
    """

    measured_linear: bool = False

    @property
    def counts_flips(self) -> bool:
        return self.measured_linear

    @property
    def knows_divergence(self) -> bool:
        return self.measured_linear


def measured_by_gradients(subject: Subject, kind: str, measured_linear: bool, evaluations: float) -> MetricResult:
    """Linear terms and features of the metric ``"jacobian"`` or ``"fisher"``."""
    subject.examples.refuse_parts(f"metric {kind!r}")
    # If every slice comes from the cache, no choice is stored again.
    stacked = functools.cache(lambda: _displacement_matrix(subject))
    share = (evaluations - (float(subject.offsets[-1]) if measured_linear else 0.0)) / len(subject.examples.slices)
    slope = np.zeros(int(subject.offsets[-1]))
    units = [
        Unit(f"{kind}_{number:05d}", partial(_slice_rows, subject, kind, number, part, stacked), share)
        for number, part in subject.slices()
    ]
    blocks = []
    for made in subject.gather(units):
        slope += made["slope"].astype(np.float64)
        blocks.append(made["features"].astype(np.float32, copy=False))
    sketched = total_columns(subject) > subject.max_columns and (
        kind == "jacobian" or _rows_per_example(subject, 0) > 1
    )
    features = np.sum(blocks, axis=0) if sketched else np.concatenate(blocks, axis=1)
    linear = slope + 0.5 * np.einsum("vc,vc->v", features, features, dtype=np.float64)
    divergence = halves = flips = None
    if measured_linear:
        found = forward_sweep(subject, "linear", with_features=False)
        linear, divergence, halves, flips = found.linear, found.divergence, found.halves, found.flips
    rows = features if subject.interactions else None
    return MetricResult(linear, rows, None, int(np.ceil(evaluations)) + 1, divergence, halves, flips)


def _displacement_matrix(subject: Subject) -> dict[str, list[tuple[int, Member, Tensor]]]:
    """Parameter name -> (choice number, member, displacement) of every choice that changes it."""
    found: dict[str, list[tuple[int, Member, Tensor]]] = {}
    for group, start in enumerate(subject.offsets[:-1]):
        for k, row in enumerate(subject.displacements(group)):
            for member, displacement in zip(subject.layout.groups[group].members, row, strict=True):
                if member.dtype.is_floating_point and bool(displacement.any()):
                    found.setdefault(member.name, []).append((int(start) + k, member, displacement))
    return found


def _slice_rows(
    subject: Subject,
    kind: str,
    number: int,
    part: Slice,
    displacements: Callable[[], dict[str, list[tuple[int, Member, Tensor]]]],
) -> Arrays:
    total, stacked = int(subject.offsets[-1]), displacements()
    weights = subject.row_weights(number)
    outputs, reference = subject.outputs[number], subject.reference[number]
    if kind == "jacobian":
        change = _per_example_products(subject, number, part, stacked, None)
        slope_rows = subject.loss.gradient(outputs, part.targets, reference).double() * weights[:, None]
        slope = torch.einsum("vmc,mc->v", change.double(), slope_rows)
        rows = subject.loss.features(change, outputs, part.targets) * weights.sqrt().float()[:, None]
        features = compact(subject, number, rows.reshape(total, -1))
    else:
        cotangent, slopes = _fisher_cotangent(subject, number, part)
        change = _per_example_products(subject, number, part, stacked, cotangent)
        per_row = change.reshape(total, -1).double()
        slope = (per_row * weights).sum(1) * slopes
        features = (per_row * weights.sqrt()).float()
        if _rows_per_example(subject, number) > 1:
            features = compact(subject, number, features)
    return {"features": features.cpu().numpy(), "slope": slope.cpu().numpy()}


def _rows_per_example(subject: Subject, number: int) -> int:
    return subject.outputs[number].shape[0] // len(subject.examples.slices[number])


def _fisher_cotangent(subject: Subject, number: int, part: Slice) -> tuple[Tensor, float]:
    """Output gradient whose pull-back gives each row's g_n, and whether its mean is a slope of the loss."""
    outputs, reference = subject.outputs[number], subject.reference[number]
    if isinstance(subject.loss, KullbackLeibler):
        generator = torch.Generator().manual_seed(subject.seed * 1_000_003 + number)
        share = outputs.softmax(-1)
        drawn = torch.multinomial(share.cpu(), 1, generator=generator).to(outputs.device)
        one_hot = torch.zeros_like(share).scatter_(1, drawn, 1.0)
        return share - one_hot, 0.0
    if isinstance(subject.loss, SquaredError) and part.targets is None:
        generator = torch.Generator().manual_seed(subject.seed * 1_000_003 + number)
        signs = torch.randint(2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        return subject.loss.probe(outputs, None, signs), 0.0
    return subject.loss.gradient(outputs, part.targets, reference), 1.0


def _per_example_products(
    subject: Subject,
    number: int,
    part: Slice,
    stacked: dict[str, list[tuple[int, Member, Tensor]]],
    cotangent: Tensor | None,
) -> Tensor:
    """(V, M, C) first-order output changes, or (V, M, 1) products with each output row's loss gradient."""
    state = _state_at_reference(subject)
    parameters = {name: state[name] for name in stacked}
    repeats = _rows_per_example(subject, number)
    width = repeats * subject.outputs[number].shape[1] if cotangent is None else repeats
    per_example = 4 * width * sum(p.numel() for p in parameters.values())
    chunk = max(1, min(len(part), GRADIENT_MEMORY // max(per_example, 1)))
    total = int(subject.offsets[-1])
    out = torch.zeros(total, len(part), width, device=subject.device)
    shaped = None if cotangent is None else cotangent.reshape(len(part), repeats, -1)
    if not parameters:
        return out.reshape(total, len(part) * repeats, -1)

    read = subject.examples.reading.rows

    def rows(values: dict[str, Tensor], inputs: Any) -> Tensor:
        # torch's functional_call leaves its tensors in a module that is registered under two names.
        with subject.tensors.swapped({**state, **values}):
            return read(call(subject.base, map_tensors(inputs, lambda t: t.unsqueeze(0)))).reshape(-1)

    for start in range(0, len(part), chunk):
        inputs = map_tensors(part.inputs, lambda t, start=start: t[start : start + chunk])
        pulled = None if shaped is None else shaped[start : start + chunk]
        gradients = _per_example_gradients(rows, parameters, inputs, pulled)
        size = next(iter(gradients.values())).shape[0]
        for name, entries in stacked.items():
            tensor = gradients[name].reshape(size, width, *parameters[name].shape)
            _accumulate(out[:, start : start + size], tensor, entries)
    return out.reshape(total, len(part) * repeats, -1)


def _accumulate(out: Tensor, gradients: Tensor, entries: list[tuple[int, Member, Tensor]]) -> None:
    size, width = gradients.shape[:2]
    by_member: dict[Member, list[tuple[int, Tensor]]] = {}
    for choice, member, displacement in entries:
        by_member.setdefault(member, []).append((choice, displacement))
    for member, listed in by_member.items():
        used = member.part(gradients, leading=2)
        matrix = torch.stack([d.reshape(-1) for _, d in listed]).to(used.device, torch.float32)
        products = matrix @ used.reshape(size * width, -1).float().T
        out[[choice for choice, _ in listed]] += products.reshape(len(listed), size, width)


def _state_at_reference(subject: Subject) -> dict[str, Tensor]:
    """The base model's tensors of all groups, in the parameters used by their choices."""
    state = {}
    for group, found in enumerate(subject.layout.groups):
        for member, value in zip(found.members, subject.references(group), strict=True):
            held = subject.tensors[member.name].detach()
            whole = member.rows is None
            state[member.name] = member.in_network_order(value.to(held.device, held.dtype)) if whole else held
    return state


def _per_example_gradients(
    rows: Callable[[dict[str, Tensor], Any], Tensor], parameters: dict[str, Tensor], inputs: Any, pulled: Tensor | None
) -> dict[str, Tensor]:
    """Name -> (n, outputs, *shape) Jacobians, or (n, rows, *shape) gradients of each row times ``pulled``."""
    with torch.enable_grad():
        try:
            if pulled is None:
                return dict(vmap(jacrev(rows), in_dims=(None, 0))(parameters, inputs))
            if pulled.shape[1] == 1:
                scalar = lambda values, x, g: (rows(values, x) * g.reshape(-1)).sum()  # noqa: E731
                return dict(vmap(grad(scalar), in_dims=(None, 0, 0))(parameters, inputs, pulled))
            several = lambda values, x, g: (rows(values, x).reshape(g.shape) * g).sum(-1)  # noqa: E731
            return dict(vmap(jacrev(several), in_dims=(None, 0, 0))(parameters, inputs, pulled))
        except (RuntimeError, ValueError, NotImplementedError) as cause:
            logger.info("vmap does not support this model (%s); one backward pass per example instead", cause)
        return _looped_gradients(rows, parameters, inputs, pulled)


def _looped_gradients(
    rows: Callable[[dict[str, Tensor], Any], Tensor], parameters: dict[str, Tensor], inputs: Any, pulled: Tensor | None
) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in parameters.items()}
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values() if isinstance(inputs, dict) else inputs)
    collected: dict[str, list[Tensor]] = {name: [] for name in leaves}
    for i in range(tensors[0].shape[0]):
        outputs = rows(leaves, map_tensors(inputs, lambda t, i=i: t[i]))
        seeds = torch.eye(outputs.numel(), device=outputs.device)
        if pulled is not None:
            each_row = torch.eye(pulled.shape[1], device=outputs.device)
            seeds = torch.stack([torch.diag(chosen) @ pulled[i] for chosen in each_row])
        found = [
            torch.autograd.grad(
                outputs, list(leaves.values()), s.reshape(outputs.shape), retain_graph=True, allow_unused=True
            )
            for s in seeds
        ]
        for position, name in enumerate(leaves):
            stacked = [torch.zeros_like(leaves[name]) if f[position] is None else f[position] for f in found]
            collected[name].append(torch.stack(stacked))
    return {name: torch.stack(values) for name, values in collected.items()}

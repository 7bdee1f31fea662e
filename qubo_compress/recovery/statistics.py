"""Repair without training: normalisation statistics and biases, matched to the original's outputs.

The original runs on some calibration examples, and its normalised outputs y are stored. The
compressed network then runs once on the same examples; at each normalisation with inputs x, scale a and
shift b are recomputed, channel by channel, before the run continues. So every layer is repaired for inputs
that include the earlier repairs. There are two methods:

    "moments":       a = sign * std(y) / std(x),       b = mean(y) - a mean(x)
    "least-squares": a = cov(x, y) / var(x),           b = mean(y) - a mean(x)

The first preserves the outputs' spread, the second has the least squared error and so damps noise. Other
modules with a stored bias get the mean difference of their outputs added (bias correction, Nagel et
al. 2019).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import Examples, Slice
from qubo_compress.menu.fold import attribute
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.channels.removal import removals_of
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.groups import Group
from qubo_compress.network.inputs import map_tensors, tensors_of
from qubo_compress.network.replay import run_model
from qubo_compress.network.roles import TRANSPOSED
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression

METHODS = ("moments", "least-squares")

REMEMBERED_BYTES = 600_000_000
"""Limit on the stored bytes of the original's outputs, which determines the number of examples."""

BLOCK_VALUES = 250_000
"""Most values of a layer in double precision at a time: 2 MB, so that they stay in a cache."""

BATCH_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.GroupNorm)
"""Modules whose outputs are (N, C, ...); others with a bias give (..., C)."""

FEWEST_EXAMPLES = 16
SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class StatisticsTarget:
    """A group whose values can be matched to outputs.

    Attributes:
        group: with a bias, or a folded normalisation.
        name: of the module that holds it.
        is_normalisation: whether it is a folded normalisation.
    """

    group: Group
    name: str
    is_normalisation: bool


def matched_statistics(
    small: nn.Module,
    compression: Compression,
    teacher: nn.Module,
    examples: Examples,
    method: str,
    frozen: Collection[str] = frozenset(),
) -> dict[str, Stored]:
    """Stored normalisations and biases after the repair, which are also written to ``small``.

    Args:
        small: a compressed module in eval mode, which this function may change.
        compression: carried by the module.
        teacher: the original network: a private copy.
        examples: on the device of both.
        method: ``"moments"`` or ``"least-squares"``.
        frozen: names of the groups that stay as they are.
    """
    tensors = NetworkTensors(small)
    targets = [target for target in statistics_targets(tensors, compression) if target.group.name not in frozen]
    if not targets:
        return {}
    with every_layer_runs(), torch.no_grad():
        batch = _batch(teacher, examples, [target.name for target in targets])
        wanted = _remembered(teacher, batch, [target.name for target in targets])
        wanted = {name: _left(tensors.model, name, goal) for name, goal in wanted.items()}
        return _repaired(tensors, compression, batch, [t for t in targets if t.name in wanted], wanted, method)


def _left(small: nn.Module, name: str, goal: Tensor) -> Tensor:
    """The outputs of a module of the original, without the channels that the compressed network lacks."""
    axis = 1 if isinstance(small.get_submodule(name), (*CHANNELS_FIRST, *BATCH_NORMALISATIONS)) else -1
    for removal in removals_of(small):
        for part in removal.kept:
            if part.tensor == f"{name}.bias".lstrip(".") and part.axis == 0 and goal.shape[axis] == part.full:
                goal = goal.index_select(axis, torch.tensor(part.indices, device=goal.device))
    return goal


def statistics_targets(tensors: NetworkTensors, compression: Compression) -> list[StatisticsTarget]:
    """The normalisations and biases of a compressed network."""
    modules = {id(module): name for name, module in tensors.model.named_modules()}
    found = []
    for group in compression.layout.groups:
        owners = {id(module) for member in group.members for module, _ in tensors.owners(member.name)}
        if group.kind == "weight" or len(owners) != 1:
            continue
        folded = group.kind == "normalisation" and group.epsilon is not None
        names = {attribute(member.name) for member in group.members}
        if ("weight" in names and "bias" in names) if folded else "bias" in names:
            found.append(StatisticsTarget(group, modules[owners.pop()], folded))
    return found


def _batch(model: nn.Module, examples: Examples, names: list[str]) -> Slice:
    """As many examples in one slice as the outputs of the named modules allow; one batch if batches are not joined."""
    first = examples.slices[0]
    if examples.whole:
        return Slice(first.inputs, None, first.weights)
    # Two examples, because a normalisation without statistics refuses one.
    probe = Slice(map_tensors(first.inputs, lambda t: t[:2]), None, first.weights[:2])
    per_example = sum(o.numel() * o.element_size() for o in _remembered(model, probe, names).values()) // len(probe)
    count = max(FEWEST_EXAMPLES, REMEMBERED_BYTES // max(1, per_example))
    parts = [first]
    for part in examples.slices[1:]:
        same = all(
            a.shape[1:] == b.shape[1:] for a, b in zip(tensors_of(part.inputs), tensors_of(first.inputs), strict=True)
        )
        if same and sum(len(p) for p in parts) < count:
            parts.append(part)
    inputs: Any = [part.inputs for part in parts]
    if isinstance(first.inputs, Tensor):
        joined: Any = torch.cat(inputs)
    elif isinstance(first.inputs, Mapping):
        joined = {name: torch.cat([i[name] for i in inputs]) for name in first.inputs}
    else:
        joined = tuple(torch.cat([i[k] for i in inputs]) for k in range(len(first.inputs)))
    weights = torch.cat([part.weights for part in parts])[:count]
    return Slice(map_tensors(joined, lambda t: t[:count]), None, weights)


def _remembered(model: nn.Module, batch: Slice, names: list[str]) -> dict[str, Tensor]:
    """Name -> output, for the named modules that are called exactly once and return a tensor."""
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    modules = dict(model.named_modules())
    # A copy, because an in-place activation after the module would overwrite it.
    handles = [
        modules[name].register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs[name].append(
                output.clone() if isinstance(output, Tensor) else None
            )
        )
        for name in names
    ]
    try:
        run_model(model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[0] for name, found in outputs.items() if len(found) == 1 and found[0] is not None}


def _repaired(
    tensors: NetworkTensors,
    compression: Compression,
    batch: Slice,
    targets: list[StatisticsTarget],
    wanted: dict[str, Tensor],
    method: str,
) -> dict[str, Stored]:
    modules = dict(tensors.model.named_modules())
    stored: dict[str, Stored] = {}

    def hook_for(target: StatisticsTarget) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            goal = wanted.pop(target.name, None)
            # Modules called by keyword are not repaired.
            if goal is None or not inputs or output.shape != goal.shape:
                return None
            if target.is_normalisation:
                values = _normalisation(target, tensors, inputs[0], goal, method)
            else:
                values = _corrected_bias(target, tensors, module, output, goal)
            packed = compression.stored[target.group.name].project(values, refit=True)
            tensors.fill(tensors.assembled(zip(target.group.members, packed.tensors(), strict=True)))
            stored[target.group.name] = packed
            return module.forward(*inputs)  # type: ignore[no-any-return]

        return hook

    handles = [modules[target.name].register_forward_hook(hook_for(target)) for target in targets]
    try:
        run_model(tensors.model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return stored


@dataclass(frozen=True, eq=False)
class _JointMoments:
    """(channels,) float64 means, variances and covariance of two tensors with the channels along the second axis."""

    x_mean: Tensor
    y_mean: Tensor
    x_variance: Tensor
    y_variance: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> _JointMoments:
        """In one pass: blocks that fit a cache are six times as fast as whole tensors, and need no transposed copy.

        The first value of each channel is subtracted, so that squares of large means do not cancel.
        """
        corner = (slice(0, 1), slice(None), *[slice(0, 1)] * (x.ndim - 2))
        first, other = x[corner].double(), y[corner].double()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        sums = torch.zeros(5, x.shape[1], dtype=torch.float64, device=x.device)
        for one, two in zip(_blocks(x), _blocks(y), strict=True):
            u, v = one.double() - first, two.double() - other
            sums += torch.stack([part.sum(axes) for part in (u, v, u * u, v * v, u * v)])
        u, v, uu, vv, uv = sums / (x.numel() // x.shape[1])
        variances = (uu - u * u).clamp(min=0.0), (vv - v * v).clamp(min=0.0)
        return cls(first.flatten() + u, other.flatten() + v, *variances, uv - u * v)


def _mean(values: Tensor, axis: int) -> Tensor:
    """(channels,) float64."""
    others = [other for other in range(values.ndim) if other != axis % values.ndim]
    total = sum(block.double().sum(others) for block in _blocks(values))
    return torch.as_tensor(total) / (values.numel() // values.shape[axis])


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    """Parts along the first axis."""
    return torch.split(values, max(1, BLOCK_VALUES // max(1, values[0].numel())))


def _normalisation(
    target: StatisticsTarget, tensors: NetworkTensors, given: Tensor, goal: Tensor, method: str
) -> list[Tensor]:
    current = {attribute(m.name): tensors[m.name].detach().double() for m in target.group.members}
    epsilon = target.group.epsilon or 0.0
    before = current["weight"] / torch.sqrt(current["running_var"] + epsilon)
    found = _JointMoments.of(given, goal)
    spread = found.x_variance.clamp(min=SMALLEST_VARIANCE)
    if method == "moments":
        scale = torch.sign(before) * torch.sqrt(found.y_variance / spread)
    else:
        scale = found.covariance / spread
    # The scale of a channel that is constant on these examples is unknown.
    scale = torch.where((found.x_variance > SMALLEST_VARIANCE) & torch.isfinite(scale), scale, before)
    return folded_values(target.group, scale, found.y_mean - scale * found.x_mean)


def folded_values(group: Group, scale: Tensor, shift: Tensor) -> list[Tensor]:
    """The tensors of a batch normalisation that multiplies by a scale and adds a shift.

    Args:
        group: of a folded normalisation.
        scale: (channels,).
        shift: (channels,).
    """
    named = {
        "weight": scale,
        "bias": shift,
        "running_mean": torch.zeros_like(scale),
        "running_var": torch.full_like(scale, 1.0 - (group.epsilon or 0.0)),
        "num_batches_tracked": torch.zeros((), device=scale.device),
    }
    return [named[attribute(member.name)].to(member.dtype) for member in group.members]


def _corrected_bias(
    target: StatisticsTarget, tensors: NetworkTensors, module: nn.Module, output: Tensor, goal: Tensor
) -> list[Tensor]:
    axis = 1 if isinstance(module, CHANNELS_FIRST) else -1
    values = []
    for member in target.group.members:
        tensor = tensors[member.name].detach()
        if attribute(member.name) == "bias" and tensor.numel() == output.shape[axis]:
            difference = _mean(goal, axis) - _mean(output, axis)
            tensor = (tensor.double() + difference.reshape(tensor.shape)).to(tensor.dtype)
        values.append(tensor)
    return values

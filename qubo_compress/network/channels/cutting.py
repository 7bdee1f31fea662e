"""From sets that leave to the smaller network: hooks and numbers that its modules need, and the proof that it is right.

The proof compares two networks on a few examples: the smaller one, and the original whose layers do not read the sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qubo_compress.errors import ForwardFailed, InvalidModel
from qubo_compress.network.channels.bypass import bypassed
from qubo_compress.network.channels.labels import IntArray
from qubo_compress.network.channels.removal import ChangedNumber, HookedModule, KeptIndices, Removal
from qubo_compress.network.channels.removal_file import TOTAL_WIDTHS
from qubo_compress.network.channels.sets import TOGETHER, Channels, ChannelSet, Family
from qubo_compress.network.channels.uses import Passage
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.inputs import Inputs, tensors_of
from qubo_compress.network.private import independent_copy
from qubo_compress.network.replay import run_model
from qubo_compress.network.tensors import NetworkTensors

TOLERANCE = 1e-4
"""Largest difference of outputs that counts as rounding, relative to the largest output."""


SHOWING = 2
"""Fewest examples that show whether something is added to a whole batch."""


def removal_of_sets(channels: Channels, gone: Collection[int], model: nn.Module) -> Removal:
    """What is left when some sets leave.

    Args:
        channels: of the network.
        gone: positions in ``channels.sets``.
        model: the network.

    Raises:
        InvalidModel: when nothing of an axis would be left, and it is not of a layer that can leave.
    """
    tensors, leaving = NetworkTensors(model), set(gone)
    lost: dict[tuple[str, int], set[int]] = {}
    for number in leaving:
        for part in channels.sets[number].slices:
            lost.setdefault((part.tensor, part.axis), set()).update(part.indices)
    kept, empty = [], []
    for (name, axis), indices in lost.items():
        full = tensors[name].shape[axis]
        left = tuple(index for index in range(full) if index not in indices)
        if left:
            kept.append(KeptIndices(name, axis, full, left))
        else:
            empty.append((name, axis))
    _refuse_indispensable(channels, leaving, empty)
    order = {name: number for number, name in enumerate(tensors)}
    kept.sort(key=lambda part: (order[part.tensor], part.axis))
    modules = dict(model.named_modules())
    hooked = [_hooked(channels, passage, leaving, modules[passage.module]) for passage in channels.passages]
    numbers = _numbers(channels, leaving, modules)
    whole = bypassed(channels, leaving, empty, model)
    return Removal(tuple(kept), tuple(item for item in hooked if item is not None), tuple(numbers), whole)


def _refuse_indispensable(channels: Channels, leaving: Collection[int], empty: Collection[tuple[str, int]]) -> None:
    """Raise :class:`InvalidModel` where an axis would be empty that has to keep a channel."""
    for number in leaving:
        item = channels.sets[number]
        lost = set(item.family).intersection(empty)
        if lost and item.family not in channels.dispensable:
            name, axis = min(lost)
            raise InvalidModel(f"nothing of {name} would be left along axis {axis}; keep one of its channels")


def unread(model: nn.Module, sets: Sequence[ChannelSet]) -> nn.Module:
    """A copy whose layers have zeros for weights that read the sets."""
    copy = independent_copy(model)
    tensors = NetworkTensors(copy)
    with torch.no_grad():
        for item in sets:
            for part in item.slices:
                if part.role == "reads":
                    tensors[part.tensor].index_fill_(part.axis, torch.tensor(part.indices), 0.0)
    return copy


def refusals(channels: Channels, model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """Sets that cannot be removed although they are connected rightly, with the reason: by trying it.

    From every family, half of the sets are removed, then any of them, then all but one; from families that share an
    axis, in turns: code may split channels by their position, which holds only while all parts lose equally many. All
    families are tried at once. If that fails, one is tried after another, and if each is right alone, none of them can
    be removed.

    Args:
        channels: of the network.
        model: the network, on the CPU.
        inputs: of a few examples.
    """
    families: dict[Family, list[int]] = {}
    for number, item in enumerate(channels.sets):
        families.setdefault(item.family, []).append(number)
    refused = {channels.sets[members[0]].name: TOGETHER for members in families.values() if len(members) == 1}
    several = {family: members for family, members in families.items() if len(members) > 1}
    turns, generator = _turns(several), np.random.default_rng(0)
    trials = [{family: members[1::2] for family, members in several.items()}]
    for turn in sorted(set(turns.values())):
        alone = {family: members for family, members in several.items() if turns[family] == turn}
        # Code that splits channels in halves may bear the loss of one and not that of several.
        trials += [{f: _some(members, generator) for f, members in alone.items()}, {f: m[1:] for f, m in alone.items()}]
    wrong: dict[Family, str] = {}
    for trial in trials:
        tried = {family: some for family, some in trial.items() if family not in wrong}
        wrong |= _failures(channels, tried, model, inputs)
    return refused | {channels.sets[n].name: reason for family, reason in wrong.items() for n in several[family]}


def dispensable(channels: Channels, model: nn.Module, inputs: Inputs) -> frozenset[Family]:
    """Families that are all there is of some axis, and can leave, such as the inner channels of a residual block.

    By trying it: what adds the branch to something else must bear a constant instead.

    Args:
        channels: that can be removed in part.
        model: the network, on the CPU.
        inputs: of a few examples; of a single one, nothing would show that a branch has to have a batch.
    """
    families: dict[Family, list[int]] = {}
    for number, item in enumerate(channels.sets):
        families.setdefault(item.family, []).append(number)
    if any(tensor.ndim == 0 or tensor.shape[0] < SHOWING for tensor in tensors_of(inputs)):
        return frozenset()
    tensors = NetworkTensors(model)
    whole = {family: members for family, members in families.items() if _empties(channels, members, tensors)}
    tried = replace(channels, dispensable=frozenset(whole))
    wrong = set(_failures(tried, whole, model, inputs))
    return (
        tried.dispensable
        - wrong
        - {
            family
            for family, members in whole.items()
            if family not in wrong and not _runs(tried, members, model, inputs)
        }
    )


def _runs(channels: Channels, gone: Sequence[int], model: nn.Module, inputs: Inputs) -> bool:
    """Whether a network without some sets runs as users run it, where fused kernels may read the weights of layers."""
    try:
        with torch.no_grad():
            run_model(removal_of_sets(channels, gone, model).applied(model), inputs)
    except ForwardFailed:
        return False
    return True


def _empties(channels: Channels, members: Sequence[int], tensors: NetworkTensors) -> bool:
    """Whether nothing of some axis is left without some sets."""
    lost: Counter[tuple[str, int]] = Counter()
    for number in members:
        for part in channels.sets[number].slices:
            lost[part.tensor, part.axis] += len(part.indices)
    return any(count == tensors[name].shape[axis] for (name, axis), count in lost.items())


def _turns(families: Iterable[Family]) -> dict[Family, int]:
    """0 or 1 for every family, in turns for those that share an axis."""
    seen: Counter[tuple[str, int]] = Counter()
    found = {}
    for family in families:
        found[family] = max(seen[axis] for axis in family) % 2
        seen.update(family)
    return found


def _some(members: Sequence[int], generator: np.random.Generator) -> list[int]:
    """Any of a family, but not all."""
    count = int(generator.integers(1, len(members)))
    return sorted(generator.choice(members, count, replace=False).tolist())


def _failures(
    channels: Channels, tried: Mapping[Family, list[int]], model: nn.Module, inputs: Inputs
) -> dict[Family, str]:
    """Families that cannot lose the sets that are tried, with the reason."""
    together = why_different(channels, [n for some in tried.values() for n in some], model, inputs) if tried else None
    if together is None:
        return {}
    reasons = {family: why_different(channels, some, model, inputs) for family, some in tried.items()}
    alone = {family: reason for family, reason in reasons.items() if reason is not None}
    if not alone:
        return dict.fromkeys(tried, together)
    left = {family: some for family, some in tried.items() if family not in alone}
    return alone | _failures(channels, left, model, inputs)


def why_different(channels: Channels, gone: Sequence[int], model: nn.Module, inputs: Inputs) -> str | None:
    """Why the network without some sets does not compute what it computes when nothing reads them; None if it does."""
    with every_layer_runs(), torch.no_grad():
        wanted = _outputs(unread(model, [channels.sets[number] for number in gone]), inputs)
        try:
            found = _outputs(removal_of_sets(channels, gone, model).applied(model), inputs)
        except (ForwardFailed, InvalidModel) as cause:
            return f"the network without them does not run: {f'{cause}'.split('; the model is as it was')[0]}"
    for one, other in zip(wanted, found, strict=True):
        if one.shape != other.shape or not close(one, other, TOLERANCE):
            return "the network without them computes something else"
    return None


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether outputs agree up to a share of the largest one."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = float(one.abs().max()) if one.numel() else 0.0
    return bool(torch.allclose(one, other, rtol=0.0, atol=tolerance * scale + 1e-12))


def apart_at_most(one: nn.Module, other: nn.Module, inputs: Inputs) -> float:
    """Largest difference between two networks' outputs, relative to the largest output; infinite for other shapes."""
    largest = 0.0
    with every_layer_runs(), torch.no_grad():
        for first, second in zip(_outputs(one, inputs), _outputs(other, inputs), strict=True):
            if first.shape != second.shape:
                return float("inf")
            if first.numel():
                scale = float(first.double().abs().max()) or 1.0
                largest = max(largest, float((first.double() - second.double()).abs().max()) / scale)
    return largest


def outputs_in(made: Any) -> list[Tensor]:
    """All tensors in what a network returned, however deep in dicts, lists and tuples.

    Raises:
        InvalidModel: when there are none.
    """
    found = [value for value in pytree.tree_leaves(made) if isinstance(value, Tensor)]
    if not found:
        raise InvalidModel(
            f"the network returned a {type(made).__name__}, in which no tensors are seen: its forward must return "
            "tensors, or dicts, lists and tuples of them"
        )
    return found


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return outputs_in(run_model(model, inputs))


def _hooked(channels: Channels, passage: Passage, leaving: set[int], module: nn.Module) -> HookedModule | None:
    """Hooks around a module without tensors, unless it computes the same with fewer channels."""
    before, after = (_axis(channels, labels, leaving, passage.module) for labels in (passage.before, passage.after))
    if before is None and after is None:
        return None
    try:
        with torch.no_grad():
            found, wanted = module(_part(passage.inputs, before)), _part(module(passage.inputs), after)
        alike = found.shape == wanted.shape and torch.equal(found, wanted)
    except (RuntimeError, ValueError, IndexError):
        alike = False
    return None if alike else HookedModule(passage.module, before, after)


def _part(tensor: Tensor, kept: KeptIndices | None) -> Tensor:
    return tensor if kept is None else tensor.index_select(kept.axis, torch.tensor(kept.indices))


def _axis(channels: Channels, labels: Tensor, leaving: set[int], name: str) -> KeptIndices | None:
    """The axis of an activation along which channels leave; None if none do, or they are not along one axis."""
    gone = np.isin(channels.of_labels(labels.numpy()), list(leaving))
    if not gone.any():
        return None
    for axis in range(1, gone.ndim):
        rows = np.moveaxis(gone, axis, 0).reshape(gone.shape[axis], -1)
        if (rows == rows[:, :1]).all():
            return KeptIndices(name, axis, len(rows), tuple(np.flatnonzero(~rows[:, 0]).tolist()))
    return None


def _numbers(channels: Channels, leaving: set[int], modules: Mapping[str, nn.Module]) -> list[ChangedNumber]:
    """New numbers of heads, and of their total width, in modules that multiply activations head by head.

    An attribute is taken for one of them by its value and its name; the proof then tells whether that was right. Heads
    that share their keys and values leave together, so there are as many of these as sets.
    """
    found: dict[tuple[str, str], ChangedNumber] = {}
    for use in channels.heads:
        module = modules[use.module]
        sets = channels.of_labels(use.labels)
        each = _heads_of_example(use.labels)
        gone = np.isin(sets[:each], list(leaving))
        if not gone.any() or isinstance(module, nn.MultiheadAttention):
            continue
        counts = {len(np.unique(sets[:each])): len(np.unique(sets[:each][~gone])), each: int((~gone).sum())}
        for name, value in vars(module).items():
            if type(value) is not int:
                continue
            if value in counts and "head" in name and "dim" not in name:
                found[use.module, name] = ChangedNumber(use.module, name, counts[value])
            elif value % each == 0 and value > each and name in TOTAL_WIDTHS:
                found[use.module, name] = ChangedNumber(use.module, name, value // each * counts[each])
    return list(found.values())


def _heads_of_example(labels: IntArray) -> int:
    """Entries per example: the pattern of labels is repeated for every example."""
    for each in range(1, len(labels) + 1):
        if len(labels) % each == 0 and (labels.reshape(-1, each) == labels[:each]).all():
            return each
    return len(labels)

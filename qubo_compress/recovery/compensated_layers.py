"""The layers that can be stored again for other inputs, in the order of their calls, and what follows each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from qubo_compress.calibration.examples import Examples
from qubo_compress.calibration.statistics.input_moments import InputMoments
from qubo_compress.menu.operator import Operator, parse
from qubo_compress.network.calls import WeightCall, why_unseen
from qubo_compress.network.groups import Group, Member
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression
from qubo_compress.recovery.layer_inputs import calls_in_order
from qubo_compress.recovery.statistics import StatisticsTarget, statistics_targets


@dataclass(frozen=True, eq=False)
class CompensatedLayer:
    """One weight, and what follows it.

    Attributes:
        name: of the parameter.
        groups: those that own it, or some of its rows, and are to be stored again.
        members: everything that owns its rows.
        calls: how often it is called in a run.
        module: name of the module that holds it.
        normalisation: the one that its outputs enter, if it is folded.
        bias: of the module.
        multiplications: of one example.
        moments: multiplications of one example for the moments of the layer's inputs.
    """

    name: str
    groups: tuple[Group, ...]
    members: tuple[Member, ...]
    calls: int
    module: str
    normalisation: StatisticsTarget | None
    bias: StatisticsTarget | None
    multiplications: float
    moments: float


def compensating_operator(compression: Compression, group: Group) -> Operator | None:
    """The operator of a group's choice, if it looks at the layer's inputs and at nothing else."""
    operator = parse(compression.plan.choices[group.name])
    return operator if operator.needs == (InputMoments(),) else None


def compensated_layers(
    tensors: NetworkTensors, compression: Compression, examples: Examples, frozen: Collection[str]
) -> list[CompensatedLayer]:
    """The layers that can be stored again, in the order of their calls.

    Args:
        tensors: of the compressed network.
        compression: carried by it.
        examples: to see the calls on.
        frozen: names of the groups that stay as they are.
    """
    owners: dict[str, list[Group]] = {}
    pieces: dict[str, list[Member]] = {}
    for group in compression.layout.groups:
        for member in group.members:
            pieces.setdefault(member.name, []).append(member)
        if (
            group.name not in frozen
            and len(group.members) == 1
            and compensating_operator(compression, group) is not None
        ):
            owners.setdefault(group.members[0].name, []).append(group)
    calls = calls_in_order(tensors.model, list(owners), examples)
    targets = [t for t in statistics_targets(tensors, compression) if t.group.name not in frozen]
    normalisations = {target.name: target for target in targets if target.is_normalisation}
    biases = {target.name: target for target in targets if not target.is_normalisation}
    following = _followed(tensors.model, examples, list(normalisations))
    modules = {id(module): name for name, module in tensors.model.named_modules()}
    found = []
    for name, seen in calls.items():
        if why_unseen(seen, bool(pieces[name][0].inputs_first)) is not None:
            continue
        module = modules[id(tensors.owners(name)[0][0])]
        behind = normalisations.get(following.get(module, ""))
        bias = biases.get(module) if len(seen) == 1 else None
        # Of two examples.
        inputs = sum(call.multiplies for call in seen) / 2
        columns = math.prod(pieces[name][0].shape[1:])
        work = inputs * tensors[name].numel(), 2 * inputs * columns**2 * _shares(seen)
        owned = tuple(owners[name]), tuple(pieces[name])
        found.append(CompensatedLayer(name, *owned, len(seen), module, behind, bias, *work))
    return found


def _shares(calls: Sequence[WeightCall]) -> int:
    """How many parts of the weight's rows have inputs of their own."""
    return max(call.shares if call.sliding is None else call.sliding.groups for call in calls)


def _followed(model: nn.Module, examples: Examples, normalisations: Collection[str]) -> dict[str, str]:
    """Name of a module -> the normalisation that its output enters, where both are called once."""
    outputs: dict[int, tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str]] = []
    wanted = set(normalisations)

    def leaving(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[id(output)] = name, output

        return hook

    def entering(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[object, ...]) -> None:
            if inputs and id(inputs[0]) in outputs:
                pairs.append((outputs[id(inputs[0])][0], name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if name in wanted:
            handles.append(module.register_forward_pre_hook(entering(name)))
        elif not list(module.children()):
            handles.append(module.register_forward_hook(leaving(name)))
    try:
        calls_in_order(model, [], examples)
    finally:
        for handle in handles:
            handle.remove()
    once = {name for name, _ in pairs if [a for a, _ in pairs].count(name) == 1}
    return {name: after for name, after in pairs if name in once and [b for _, b in pairs].count(after) == 1}

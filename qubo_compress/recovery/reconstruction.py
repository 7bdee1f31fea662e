"""Layers stored again, one after another, for the inputs that the compressed network gives them; without training.

Compensated choices are first made with the original network's inputs. In the compressed network, each layer gets
inputs with the errors of all layers before it. So, from the first layer to the last, weights are moved to those that
keep the original's outputs for these inputs best (see :mod:`qubo_compress.recovery.layer_inputs`), and stored again as
the same choice in the same bytes. The normalisation behind the layer, or its bias, is matched at once, by least
squares, because later layers see its outputs.

Networks run at most ``SEGMENTS`` times, so the work does not grow with the square of the depth: in deeper networks,
several consecutive layers are gathered in one run.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import Examples
from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.errors import QuboCompressError
from qubo_compress.menu.coding.coded import CodedGroup
from qubo_compress.menu.fold import attribute
from qubo_compress.menu.operator import Operator, parse
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.calls import WeightCall, why_unseen
from qubo_compress.network.channels.removal import removals_of
from qubo_compress.network.groups import Group, Member
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression
from qubo_compress.recovery.layer_inputs import LayerInputs, calls_in_order, gathered
from qubo_compress.recovery.statistics import SMALLEST_VARIANCE, StatisticsTarget, folded_values, statistics_targets

logger = logging.getLogger(__name__)

SEGMENTS = 24
"""Most runs of both networks."""

DAMPING, WORTH_OF_EXAMPLES = 0.01, 20.0
"""Share of the mean input moment that holds weights near the original's: the first, and more for few examples.

Of ResNet-20 at 24x, the divergence on test images was least at 0.01 with 2,000 images, and at 0.1 with 500.
"""

WORK = 2e12
"""Most multiplications by both networks and for their moments: about a minute of one core."""

FEWEST_EXAMPLES = 64

ENCODINGS = 5
"""Most prices of a bit that are tried until the codes fill the bytes of the plan."""

UNUSED = 0.004
"""Share of a group's bytes that may stay unused."""

PRICE_EXPONENT = 3.0
"""Bytes fall about as the price of a bit to the power of -1/3, where codes need one or two bits."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """One weight, and what follows it.

    Attributes:
        name: of the parameter.
        groups: those that own it, or its rows.
        module: name of the module that holds it.
        normalisation: the one that its outputs enter, if it is folded.
        bias: of the module.
        multiplications: of one example.
        moments: multiplications of one example for the moments of the layer's inputs.
    """

    name: str
    groups: tuple[Group, ...]
    module: str
    normalisation: StatisticsTarget | None
    bias: StatisticsTarget | None
    multiplications: float
    moments: float


def can_be_reconstructed(compression: Compression) -> bool:
    """Whether any group's choice looks at its inputs, so that other inputs may call for other codes."""
    return any(_operator(compression, group) is not None for group in compression.layout.groups)


def reconstructed(
    small: nn.Module, compression: Compression, teacher: nn.Module, examples: Examples,
    frozen: Collection[str] = frozenset(), advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Stored]:  # fmt: skip
    """The groups that were stored again, which are also written to ``small``; the bytes of none rise.

    Args:
        small: a compressed module in eval mode, which this function changes.
        compression: carried by the module.
        teacher: a private copy of the original network.
        examples: on the device of both.
        frozen: names of the groups that stay as they are.
        advance: called with the number of examples that both networks ran on.
    """
    if removals_of(small):
        logger.info("layers are not stored again: channels were removed, so their inputs are others")
        return {}
    tensors, found = NetworkTensors(small), dict[str, Stored]()
    layers = _layers(tensors, compression, examples, frozen)
    examples = examples.spread(_affordable([layer for layer, _ in layers], examples.count))
    damping = max(DAMPING, WORTH_OF_EXAMPLES / examples.count)
    for segment in _segments(layers, SEGMENTS):
        names = [layer.name for layer, _ in segment]
        inputs = gathered(teacher, small, names, examples, once=all(calls == 1 for _, calls in segment))
        advance(examples.count)
        for layer, _ in segment:
            if layer.name in inputs:
                found |= _stored_again(
                    layer, inputs[layer.name], tensors, compression, NetworkTensors(teacher), damping
                )
    return found


def _operator(compression: Compression, group: Group) -> Operator | None:
    """The operator of a group's choice, if it looks at the layer's inputs and at nothing else."""
    operator = parse(compression.plan.choices[group.name])
    return operator if operator.needs == (InputMoments(),) else None


def _layers(
    tensors: NetworkTensors, compression: Compression, examples: Examples, frozen: Collection[str]
) -> list[tuple[_Layer, int]]:
    """The layers that can be stored again, in the order of their calls, and how often each is called."""
    owners: dict[str, list[Group]] = {}
    firsts: dict[str, Member] = {}
    for group in compression.layout.groups:
        if group.name not in frozen and len(group.members) == 1 and _operator(compression, group) is not None:
            owners.setdefault(group.members[0].name, []).append(group)
            firsts.setdefault(group.members[0].name, group.members[0])
    calls = calls_in_order(tensors.model, list(owners), examples)
    targets = [t for t in statistics_targets(tensors, compression) if t.group.name not in frozen]
    normalisations = {target.name: target for target in targets if target.is_normalisation}
    biases = {target.name: target for target in targets if not target.is_normalisation}
    following = _followed(tensors.model, examples, list(normalisations))
    modules = {id(module): name for name, module in tensors.model.named_modules()}
    found = []
    for name, seen in calls.items():
        if why_unseen(seen, bool(firsts[name].inputs_first)) is not None:
            continue
        module = modules[id(tensors.owners(name)[0][0])]
        behind = normalisations.get(following.get(module, ""))
        bias = biases.get(module) if len(seen) == 1 else None
        # Of two examples.
        inputs = sum(call.multiplies for call in seen) / 2
        columns = math.prod(firsts[name].shape[1:])
        work = inputs * tensors[name].numel(), 2 * inputs * columns**2 * _shares(seen)
        found.append((_Layer(name, tuple(owners[name]), module, behind, bias, *work), len(seen)))
    return found


def _shares(calls: Sequence[WeightCall]) -> int:
    """How many parts of the weight's rows have inputs of their own."""
    return max(call.shares if call.sliding is None else call.sliding.groups for call in calls)


def _affordable(layers: Sequence[_Layer], examples: int) -> int:
    """The number of examples that the layers can be gathered on."""
    runs = min(SEGMENTS, len(layers))  # of both networks, each half of the way on average
    each = sum(runs * layer.multiplications + layer.moments for layer in layers)
    return min(examples, max(FEWEST_EXAMPLES, int(WORK / max(each, 1.0))))


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


def _segments(layers: Sequence[tuple[_Layer, int]], most: int) -> list[Sequence[tuple[_Layer, int]]]:
    """Consecutive layers in at most this many parts of about equal length."""
    count = min(most, len(layers))
    ends = [round(number * len(layers) / count) for number in range(count + 1)] if count else []
    return [layers[first:last] for first, last in itertools.pairwise(ends)]


def _stored_again(
    layer: _Layer, inputs: LayerInputs, tensors: NetworkTensors, compression: Compression, original: NetworkTensors,
    damping: float,
) -> dict[str, Stored]:  # fmt: skip
    """A layer's groups with codes for other inputs, and the statistics behind it; written to the network."""
    found: dict[str, Stored] = {}
    for group in layer.groups:
        operator = _operator(compression, group)
        assert operator is not None  # noqa: S101 - layers are made of such groups
        member = group.members[0]
        first = 0 if member.rows is None else member.rows[0]
        moments = Moments(tuple(inputs.own), first, member.shape[0])
        weights = original.part(member).detach().cpu()
        goal = _goal(weights, moments, inputs, damping)
        stored = _encoded(operator, group, goal, moments, compression.stored[group.name])
        if stored is not None:
            found[group.name] = stored
    if found:
        parts = [(g.members[0], found[g.name].tensors()[0]) for g in layer.groups if g.name in found]
        rest = [(g.members[0], tensors.part(g.members[0])) for g in layer.groups if g.name not in found]
        tensors.fill(tensors.assembled([*parts, *rest]))
    return found | _statistics(layer, inputs, tensors, compression, original)


def _goal(weights: Tensor, moments: Moments, inputs: LayerInputs, damping: float) -> Tensor:
    """The weights of least squares, in the form of the member's part."""
    flat = weights.flatten(1).double()
    moved = torch.empty_like(flat)
    for block, first, last in moments.spans(len(flat)):
        damped = moments.damped(block, damping)
        extra = damped - moments.blocks[block]
        rows = flat[first:last] @ (inputs.between[block] + extra)
        moved[first:last] = torch.linalg.solve(damped, rows.T).T
    return moved.reshape(weights.shape).to(weights.dtype)


def _encoded(operator: Operator, group: Group, goal: Tensor, moments: Moments, before: Stored) -> Stored | None:
    """The choice made for the goal, in at most the bytes of before; None where it is no nearer to it."""
    price, best, least = 1.0, None, 0.0
    tried: Operator | None = operator
    for _ in range(ENCODINGS):
        if tried is None:
            break
        try:
            stored = tried.encode_with(group, [goal], {InputMoments(): (moments,)})
        except QuboCompressError as cause:
            logger.info("%s is not stored again (%s)", group.name, cause)
            return None
        share = stored.nbytes / before.nbytes
        if share <= 1.0 and (best is None or share > least):
            best, least = stored, share
        if 1.0 - UNUSED <= share <= 1.0:
            break
        price *= (share * (1.0 + UNUSED / 2)) ** PRICE_EXPONENT
        tried = operator.at_price(price)
    if best is None:
        return None
    if isinstance(best, CodedGroup) and isinstance(before, CodedGroup):
        best = best.within(before.capacity)
    return best if _error(best, goal, moments) < _error(before, goal, moments) else None


def _error(stored: Stored, goal: Tensor, moments: Moments) -> float:
    """Squared error of the outputs."""
    apart = (stored.tensors()[0].double() - goal.double()).flatten(1)
    return sum(
        float(((apart[first:last] @ moments.blocks[block]) * apart[first:last]).sum())
        for block, first, last in moments.spans(len(apart))
    )


def _statistics(
    layer: _Layer, inputs: LayerInputs, tensors: NetworkTensors, compression: Compression, original: NetworkTensors
) -> dict[str, Stored]:
    """The normalisation behind a layer, or its bias, matched to the original's outputs by least squares."""
    before, after = (held[layer.name].detach().cpu() for held in (original, tensors))
    member = layer.groups[0].members[0]
    whole = Member(member.name, member.shape, member.dtype, None, member.inputs_first)
    told = _outputs(whole.part(before).flatten(1).double(), whole.part(after).flatten(1).double(), inputs)
    if layer.normalisation is not None:
        target, values = layer.normalisation, _normalisation(layer, told, tensors, original)
    elif layer.bias is not None:
        target, values = layer.bias, _bias(layer.bias, told, tensors, original)
    else:
        return {}
    stored = compression.stored[target.group.name].project(values, refit=True)
    tensors.fill(tensors.assembled(zip(target.group.members, stored.tensors(), strict=True)))
    return {target.group.name: stored}


@dataclass(frozen=True)
class _Outputs:
    """(rows,) float64 means and moments of a layer's outputs, without its bias.

    Attributes:
        goal: mean in the original.
        mean: in the compressed network.
        variance: in the compressed network.
        covariance: between both.
    """

    goal: Tensor
    mean: Tensor
    variance: Tensor
    covariance: Tensor


def _outputs(before: Tensor, after: Tensor, inputs: LayerInputs) -> _Outputs:
    each = len(before) // len(inputs.own)
    columns: list[tuple[Tensor, ...]] = []
    for number, own in enumerate(inputs.own):
        w, q = before[number * each : (number + 1) * each], after[number * each : (number + 1) * each]
        goal, mean = w @ inputs.original_mean[number], q @ inputs.own_mean[number]
        variance = ((q @ own) * q).sum(1) - mean.square()
        covariance = ((w @ inputs.between[number]) * q).sum(1) - goal * mean
        columns.append((goal, mean, variance, covariance))
    return _Outputs(*(torch.cat(every) for every in zip(*columns, strict=True)))


def _normalisation(layer: _Layer, told: _Outputs, tensors: NetworkTensors, original: NetworkTensors) -> list[Tensor]:
    """A folded normalisation's tensors: its outputs are a (q x' + bias') + b, near those of the original."""
    target = layer.normalisation
    assert target is not None  # noqa: S101 - the caller asked
    named = {attribute(m.name): original[m.name].detach().cpu().double() for m in target.group.members}
    scale = named["weight"] / torch.sqrt(named["running_var"] + (target.group.epsilon or 0.0))
    shift = named["bias"] - scale * named["running_mean"]
    old, new = (_own_bias(layer, held) for held in (original, tensors))
    sound = (told.variance > SMALLEST_VARIANCE) & (told.covariance > 0)
    slope = torch.where(sound, told.covariance / told.variance.clamp(min=SMALLEST_VARIANCE), torch.ones(()).double())
    moved = scale * slope
    return folded_values(target.group, moved, scale * (told.goal + old) + shift - moved * (told.mean + new))


def _own_bias(layer: _Layer, held: NetworkTensors) -> Tensor:
    name = f"{layer.module}.bias".lstrip(".")
    return held[name].detach().cpu().double() if name in held else torch.zeros((), dtype=torch.float64)


def _bias(target: StatisticsTarget, told: _Outputs, tensors: NetworkTensors, original: NetworkTensors) -> list[Tensor]:
    values = []
    for member in target.group.members:
        value = tensors[member.name].detach().cpu()
        if attribute(member.name) == "bias" and value.numel() == len(told.mean):
            found = original[member.name].detach().cpu().double() + (told.goal - told.mean).reshape(value.shape)
            value = found.to(value.dtype)
        values.append(value)
    return values


__all__ = ["can_be_reconstructed", "reconstructed"]

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
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import Examples
from qubo_compress.calibration.statistics.damping import least_costly
from qubo_compress.calibration.statistics.input_moments import SILENT, InputMoments, Moments
from qubo_compress.errors import QuboCompressError
from qubo_compress.menu.coding.coded import CodedGroup
from qubo_compress.menu.operator import Operator
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.channels.removal import removals_of
from qubo_compress.network.groups import Group
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression
from qubo_compress.recovery.compensated_layers import CompensatedLayer, compensated_layers, compensating_operator
from qubo_compress.recovery.layer_inputs import LayerInputs, gathered
from qubo_compress.recovery.layer_outputs import matched_behind

logger = logging.getLogger(__name__)

SEGMENTS = 24
"""Most runs of both networks."""

DAMPING = 0.01
"""Share of the mean input moment that holds weights near the original's, at least.

More where weights from one half of the examples are worse on the other half.
"""

WORTH_OF_EXAMPLES = 20.0
"""Where halves are not known, damping is at least this over the number of examples.

Of ResNet-20 at 24x, the divergence on test images was least at 0.01 with 2,000 images, and at 0.1 with 500.
"""

Spans = Sequence[tuple[int, int, int]]
"""(block, first row, last row but one)."""

WORK = 2e12
"""Most multiplications by both networks and for their moments: about a minute of one core."""

FEWEST_EXAMPLES = 64

ENCODINGS = 5
"""Most prices of a bit that are tried until the codes fill the bytes of the plan."""

UNUSED = 0.004
"""Share of a group's bytes that may stay unused."""

PRICE_EXPONENT = 3.0
"""Bytes fall about as the price of a bit to the power of -1/3, where codes need one or two bits."""


def can_be_reconstructed(compression: Compression) -> bool:
    """Whether any group's choice looks at its inputs, so that other inputs may call for other codes."""
    return any(compensating_operator(compression, group) is not None for group in compression.layout.groups)


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
    layers = compensated_layers(tensors, compression, examples, frozen)
    examples = examples.spread(_affordable(layers, examples.count))
    for segment in _segments(layers, SEGMENTS):
        names = [layer.name for layer in segment]
        inputs = gathered(teacher, small, names, examples, once=all(layer.calls == 1 for layer in segment))
        advance(examples.count)
        for layer in segment:
            if layer.name in inputs:
                told, fallback = inputs[layer.name], WORTH_OF_EXAMPLES / examples.count
                found |= _stored_again(layer, told, tensors, compression, NetworkTensors(teacher), fallback)
    return found


def _affordable(layers: Sequence[CompensatedLayer], examples: int) -> int:
    """The number of examples that the layers can be gathered on."""
    runs = min(SEGMENTS, len(layers))  # of both networks, each half of the way on average
    each = sum(runs * layer.multiplications + layer.moments for layer in layers)
    return min(examples, max(FEWEST_EXAMPLES, int(WORK / max(each, 1.0))))


def _segments(layers: Sequence[CompensatedLayer], most: int) -> list[Sequence[CompensatedLayer]]:
    """Consecutive layers in at most this many parts of about equal length."""
    count = min(most, len(layers))
    ends = [round(number * len(layers) / count) for number in range(count + 1)] if count else []
    return [layers[first:last] for first, last in itertools.pairwise(ends)]


def _stored_again(
    layer: CompensatedLayer,
    inputs: LayerInputs,
    tensors: NetworkTensors,
    compression: Compression,
    original: NetworkTensors,
    fallback: float,
) -> dict[str, Stored]:
    """A layer's groups with codes for other inputs, and the statistics behind it; written to the network.

    ``fallback`` is the least damping of its goal if halves of the examples cannot tell.
    """
    found: dict[str, Stored] = {}
    for group in layer.groups:
        operator = compensating_operator(compression, group)
        assert operator is not None  # noqa: S101 - layers are made of such groups
        member = group.members[0]
        first = 0 if member.rows is None else member.rows[0]
        halves = () if inputs.half is None else tuple(inputs.half.own)
        moments = Moments(tuple(inputs.own), first, member.shape[0], halves=halves)
        weights = original.part(member).detach().cpu()
        goal = _goal(weights, moments, inputs, fallback)
        stored = _encoded(operator, group, goal, moments, compression.stored[group.name])
        if stored is not None:
            found[group.name] = stored
    if found:
        made = {group.members[0]: found[group.name].tensors()[0] for group in layer.groups if group.name in found}
        parts = [(member, made.get(member, tensors.part(member).cpu())) for member in layer.members]
        tensors.fill(tensors.assembled(parts))
    return found | matched_behind(layer, inputs, tensors, compression, original)


def _goal(weights: Tensor, moments: Moments, inputs: LayerInputs, fallback: float = DAMPING) -> Tensor:
    """The weights of least squares, in the form of the member's part, damped as far as the examples call for."""
    flat = weights.flatten(1).double()
    spans, half = moments.spans(len(flat)), inputs.half
    damping = max(DAMPING, fallback)
    other = None
    if half is not None:
        other = replace(inputs, own=inputs.own - half.own, between=inputs.between - half.between)
    if half is not None and other is not None and half.alive and other.alive:

        def cost(tried: float) -> float:
            """The squared output error on each half of the examples of weights from the other half."""
            sides = (half, other), (other, half)
            return sum(_misfit(flat, _least_squares(flat, spans, a, tried), spans, b) for a, b in sides)

        damping = max(DAMPING, least_costly(cost, DAMPING) / 2)  # with twice the examples
    return _least_squares(flat, spans, inputs, damping).reshape(weights.shape).to(weights.dtype)


def _least_squares(flat: Tensor, spans: Spans, inputs: LayerInputs, damping: float) -> Tensor:
    """(R, D) weights whose outputs in the compressed network are nearest to the original's, held near to it."""
    moved = torch.empty_like(flat)
    for block, first, last in spans:
        own, between = inputs.own[block].clone(), inputs.between[block].clone()
        mean = float(own.diagonal().mean())
        for matrix in (own, between):
            matrix.diagonal().add_(damping * mean if mean > SILENT else 1.0)
        moved[first:last] = torch.linalg.solve(own, (flat[first:last] @ between).T).T
    return moved


def _misfit(flat: Tensor, moved: Tensor, spans: Spans, inputs: LayerInputs) -> float:
    """Squared difference of the original's outputs from those of other weights, less what no weights change."""
    total = 0.0
    for block, first, last in spans:
        mine, theirs = moved[first:last], flat[first:last]
        total += float(((mine @ inputs.own[block] - 2 * theirs @ inputs.between[block]) * mine).sum())
    return total


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

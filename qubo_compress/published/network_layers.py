"""Reads the layers of a network for the published objective: scores, sizes, quantization losses, bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qubo_compress.encodings.published import Feed, FilterLayer, squared_losses
from qubo_compress.errors import InvalidModel, InvalidOption, unknown_name
from qubo_compress.menu.operator import values_of
from qubo_compress.menu.quantize import Quantize
from qubo_compress.network.groups import Group, Layout
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.published.formulation import Formulation


@dataclass(frozen=True, eq=False)
class NetworkLayer:
    """A weight of a network, as the published objective sees it.

    Attributes:
        name: of the weight.
        groups: its filters, one group each; or the whole weight, such as an embedding, whose rows are not filters.
        prunable: whether its groups are filters.
        bytes: (2^K,) stored bytes of one group by the number of bits removed.
        numbers: what the objective needs.
    """

    name: str
    groups: tuple[Group, ...]
    prunable: bool
    bytes: IntArray
    numbers: FilterLayer


def read_layers(tensors: NetworkTensors, layout: Layout, how: Formulation) -> tuple[NetworkLayer, ...]:
    """The layers that the formulation covers, in the network's order.

    Args:
        tensors: of the network.
        layout: its groups, one per filter.
        how: the settings.

    Raises:
        InvalidModel: if the network has no weights that multiply.
        InvalidOption: if ``layers`` matches none of them.
        UnknownName: if a sensitivity is for a weight that is not there.
    """
    together: dict[str, list[Group]] = {}
    for group in layout.groups:
        if group.kind == "weight":
            together.setdefault(group.members[0].name, []).append(group)
    if not together:
        raise InvalidModel("the network has no weight that is quantized or pruned; there is nothing to decide")
    wanted = re.compile(how.layers or "")
    picked = {name: groups for name, groups in together.items() if wanted.search(name)}
    if not picked:
        raise InvalidOption(f"layers={how.layers!r} matches no weight; there are {', '.join(list(together)[:4])}, ...")
    if not isinstance(how.quantization, str):
        for name in picked:
            if name not in how.quantization:
                raise InvalidOption(f"quantization lacks a sensitivity for {name!r}; give one for every layer")
        for name in how.quantization:
            if name not in picked:
                raise unknown_name("layer", name, picked)
    return tuple(_read(name, groups, tensors, how) for name, groups in picked.items())


def _read(name: str, groups: Sequence[Group], tensors: NetworkTensors, how: Formulation) -> NetworkLayer:
    prunable = groups[0].members[0].rows is not None
    parts = [tensors.parts(group)[0].detach().cpu() for group in groups]
    values = torch.cat([part.reshape(1, -1) for part in parts]) if prunable else values_of(parts[0])
    if not bool(torch.isfinite(values).all()):
        raise InvalidModel(f"{name} holds values that are not finite")
    scores = values.double().abs().mean(dim=1).numpy()
    losses = _bit_losses(name, groups, parts, scores, how)
    operators = [Quantize(width) for width in how.widths]
    sizes = np.array([operator.encode(groups[0], parts[:1]).nbytes for operator in operators], dtype=np.int64)
    numbers = FilterLayer(
        name,
        scores if prunable else np.zeros(0),
        values.shape[1] if prunable else 0,
        losses,
        0 if prunable else values.numel(),
    )
    return NetworkLayer(name, tuple(groups), prunable, sizes, numbers)


def _bit_losses(
    name: str, groups: Sequence[Group], parts: Sequence[Tensor], scores: FloatArray, how: Formulation
) -> FloatArray:
    most_removed = 2**how.code_bits - 1
    if not isinstance(how.quantization, str):
        return squared_losses(how.quantization[name], how.code_bits)
    if how.quantization == "magnitude":
        return squared_losses(float(scores.sum()) / how.most_bits, how.code_bits)
    if how.quantization == "error":
        return squared_losses(_error(groups, parts, how.widths[-1]) / most_removed, how.code_bits)
    errors = np.array([_error(groups, parts, width) for width in how.widths]) ** 2
    return fitted_losses(errors - errors[0])


def _error(groups: Sequence[Group], parts: Sequence[Tensor], width: int) -> float:
    """Sum over rows of the mean absolute error at a width."""
    total = 0.0
    for group, part in zip(groups, parts, strict=True):
        stored = Quantize(width).encode(group, [part]).tensors()[0]
        total += float((values_of(stored).double() - values_of(part).double()).abs().mean(dim=1).sum())
    return total


def fitted_losses(losses: FloatArray) -> FloatArray:
    """(K, K) symmetric matrix B so that q . B q fits (2^K,) losses best, in least squares; the first one is zero.

    Example:
        >>> bits = fitted_losses(np.array([0.0, 1.0, 3.0, 10.0]))
        >>> [round(float(np.array(q) @ bits @ np.array(q)), 6) for q in ((1, 0), (0, 1), (1, 1))]
        [1.0, 3.0, 10.0]
    """
    count = int(math.log2(losses.size))
    codes = (np.arange(losses.size)[:, None] >> np.arange(count)) & 1
    one, two = np.triu_indices(count)
    solved = np.linalg.lstsq((codes[:, one] * codes[:, two]).astype(np.float64), losses, rcond=None)[0]
    found = np.zeros((count, count))
    found[one, two] = np.where(one == two, solved, 0.5 * solved)
    return np.where(np.tri(count, dtype=bool), found.T, found)


def read_feeds(tensors: NetworkTensors, layers: Sequence[NetworkLayer], how: Formulation) -> tuple[Feed, ...]:
    """The feeds that the formulation names.

    Raises:
        UnknownName: for the name of no layer.
        InvalidOption: if the shapes of two layers do not fit.
    """
    places = {layer.name: number for number, layer in enumerate(layers)}
    found = []
    for pair in how.feeds:
        for name in pair:
            if name not in places:
                raise unknown_name("layer", name, places)
        producer, consumer = (layers[places[name]] for name in pair)
        found.append(Feed(places[pair[0]], places[pair[1]], _reading(tensors, producer, consumer)))
    return tuple(found)


def _reading(tensors: NetworkTensors, producer: NetworkLayer, consumer: NetworkLayer) -> IntArray:
    """(F of the consumer, F of the producer) weights of each filter that read the output of each producing filter."""
    made, filters = producer.numbers.filters, consumer.numbers.filters
    module = tensors.owners(consumer.name)[0][0]
    shape = consumer.groups[0].members[0].shape
    blocks = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
    inputs = shape[1] * blocks if consumer.prunable else 0
    flat = len(shape) == 2 and made and inputs and inputs % made == 0
    if not (made and inputs) or not (inputs == made or flat):
        raise InvalidOption(
            f"{consumer.name} does not read the {made} filters of {producer.name}: it has {inputs} input channels; "
            "give feeds of a layer and the one that follows it"
        )
    each = consumer.numbers.filter_size // shape[1] * (inputs // made)
    own = np.arange(filters) // (filters // blocks)
    theirs = np.arange(made) // (made // blocks)
    return np.where(own[:, None] == theirs[None], each, 0).astype(np.int64)

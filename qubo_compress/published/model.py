"""The published QUBO of a network, and the decoder of its samples."""

from __future__ import annotations

import dimod
from torch import nn

from qubo_compress.encodings.published import FiltersAndBits
from qubo_compress.menu.cast import Cast
from qubo_compress.menu.fold import Fold
from qubo_compress.menu.operator import choice_name, stored_as
from qubo_compress.menu.storage.file_format import fixed_bytes
from qubo_compress.network.discovery import discover
from qubo_compress.network.groups import Layout
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.published.decoding import ZERO, PublishedPlans
from qubo_compress.published.formulation import Formulation
from qubo_compress.published.network_layers import read_feeds, read_layers


def filters_and_bits(
    model: nn.Module, gamma: float, formulation: Formulation | None = None
) -> tuple[dimod.BinaryQuadraticModel, PublishedPlans]:
    """The published QUBO of a network: one bit per filter, and the bits of every layer's code.

    The paper is Wang et al., arXiv 2505.16332; see :mod:`qubo_compress.encodings.published` for its equation, for what
    of it could be read, and for what is ours. No data is needed.

    Args:
        model: trained; unchanged.
        gamma: price of size: energy per unit of the share of bits saved. :func:`plan_of_size` searches for the one that
            meets a budget.
        formulation: the other settings.

    Returns:
        The model over the bits 0, 1, ... (all filters, then all codes), and a function from samples to plans, whose
        ``objective`` has H itself.

    Raises:
        InvalidProblem: for a negative gamma.
        InvalidModel: if the network has no weights to decide about.
        InvalidOption, UnknownName: if the formulation names layers that are not there.
        ProblemTooLarge: for more couplings than can be built.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
        >>> bqm, decode = filters_and_bits(net, gamma=0.1)
        >>> bqm.num_variables  # 4 + 2 filters, 2 codes of 3 bits
        12
        >>> plan = decode([1, 0, 0, 0, 0, 0] + [1, 0, 1] + [0, 1, 0])
        >>> plan.choices["0.weight[0]"], plan.choices["0.weight[1]"], plan.choices["3.weight[0]"]
        ('zero', 'quantize(bits=4)', 'quantize(bits=7)')
    """
    plans = published_plans(model, gamma, formulation or Formulation())
    return plans.objective.to_bqm(), plans


def published_plans(model: nn.Module, gamma: float, how: Formulation) -> PublishedPlans:
    """The objective of a network with its decoder, without the model over bits."""
    model = unwrapped(model)
    layout, tensors = discover(model, "filter"), NetworkTensors(model)
    layers = read_layers(tensors, layout, how)
    feeds = read_feeds(tensors, layers, how)
    objective = FiltersAndBits(tuple(layer.numbers for layer in layers), gamma, how.beta, how.most_bits, feeds)
    others = _others(tensors, layout, {group.name for layer in layers for group in layer.groups}, how.vector_bits)
    names = tuple(dict.fromkeys(["keep", ZERO, *(f"quantize(bits={b})" for b in how.widths), *others.values()]))
    fixed = fixed_bytes(layout, names) + _bytes_of(tensors, layout, others)
    return PublishedPlans(objective, layers, layout, others, names, fixed, tensors.signature())


def _others(tensors: NetworkTensors, layout: Layout, decided: set[str], bits: int | None) -> dict[str, str]:
    """Choices of the groups without bits in the objective."""
    found = {}
    for group in layout.groups:
        if group.name in decided:
            continue
        parts = [part.detach().cpu() for part in tensors.parts(group)]
        offered = [] if bits is None else [Fold(bits), Cast(bits)]
        fitting = [choice_name(operator) for operator in offered if operator.refusal(group, parts) is None]
        found[group.name] = fitting[0] if fitting else "keep"
    return found


def _bytes_of(tensors: NetworkTensors, layout: Layout, choices: dict[str, str]) -> int:
    groups = [group for group in layout.groups if group.name in choices]
    return sum(stored_as(choices[group.name], group, tensors.parts(group)).nbytes for group in groups)

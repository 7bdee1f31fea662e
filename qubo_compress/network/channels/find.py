"""Finds the coupled channels of a network by one run on a few examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from qubo_compress.network.channels.cutting import dispensable, outputs_in, refusals
from qubo_compress.network.channels.labels import Marks
from qubo_compress.network.channels.layers import LAYERS
from qubo_compress.network.channels.rules import RULES
from qubo_compress.network.channels.sets import Channels, coupled_sets
from qubo_compress.network.channels.walk import ChannelWalk, named_modules
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.inputs import Inputs, map_tensors, tensors_of
from qubo_compress.network.private import independent_copy
from qubo_compress.network.replay import intercepted, run_model
from qubo_compress.network.tensors import NetworkTensors

EXAMPLES = 2
"""Enough examples to see what does not depend on the input."""

HALVES = (torch.float16, torch.bfloat16)


def find_channels(model: nn.Module, inputs: Inputs, whole: bool = False) -> Channels:
    """The coupled channels of a network, each of which was removed once on trial.

    What must stay is listed with the reason: the network's outputs, operations without a rule, and whatever the network
    without it does not compute rightly.

    Args:
        model: unchanged.
        inputs: of some examples, as the network is called with them: two are followed, and all are tried.
        whole: also try which families can leave whole, and then list these in ``dispensable``.

    Raises:
        ForwardFailed: when the network does not run.
        InvalidModel: when it returns no tensors.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> found = find_channels(net, torch.randn(2, 3, 4, 4))
        >>> found.sets[1].name, [(part.tensor, part.axis, part.indices) for part in found.sets[1].slices]
        ('0.weight[1]', [('0.weight', 0, (1,)), ('0.bias', 0, (1,)), ('3.weight', 1, (4, 5, 6, 7))])
    """
    model = independent_copy(model).cpu()
    inputs = map_tensors(inputs, lambda tensor: tensor.detach().cpu())
    if any(tensor.dtype in HALVES for tensor in (*model.parameters(), *tensors_of(inputs))):
        # Two ways of computing the same would differ by their rounding.
        model, inputs = model.float(), map_tensors(inputs, lambda t: t.float() if t.dtype in HALVES else t)
    few = map_tensors(inputs, lambda tensor: tensor[:EXAMPLES])
    tensors = NetworkTensors(model)
    walk = ChannelWalk(tensors, {**RULES, **LAYERS})
    names = named_modules(model)
    plain = {id(module) for module in model.modules() if not [*module.parameters(), *module.buffers()]}

    def handle(module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        walk.running.append(names[id(module)])
        try:
            made = original(*args, **named)
        finally:
            walk.running.pop()
        if id(module) in plain and len(args) == 1 and not named:
            walk.passed(names[id(module)], args[0], made)
        return made

    with every_layer_runs(), torch.no_grad(), intercepted(model, handle):
        walk.begin(tensors_of(few))
        with walk:
            made = run_model(model, few)
    for tensor in outputs_in(made):
        found = walk.known(tensor)
        if isinstance(found, Marks):
            walk.ties.pin(found.labels, "the network returns them")
    found_sets = coupled_sets(walk.seen(), walk.ties, tensors)
    removable = found_sets.without(refusals(found_sets, model, inputs))
    return replace(removable, dispensable=dispensable(removable, model, inputs)) if whole else removable

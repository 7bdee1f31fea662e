"""Which parameters the calibration examples reach: those that the outputs depend on, as gradients show.

Under every metric, a parameter that no example reaches costs nothing to destroy. It may serve another task, another
entry point or a branch for other inputs, so nothing is known about it, and it is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from qubo_compress._internal.text import printable
from qubo_compress.calibration.examples import Examples
from qubo_compress.network.calls import GivenTensors
from qubo_compress.network.groups import Group, Layout
from qubo_compress.network.inputs import Inputs, map_tensors, tensors_of
from qubo_compress.network.tensors import NetworkTensors

logger = logging.getLogger(__name__)

REASON = "no calibration example reaches it"
"""The reason for keeping a group that no output depends on."""

PROBED_AT_ONCE = 16
"""Examples that share a backward pass, whose memory grows with them."""


def unreached_groups(
    model: nn.Module, layout: Layout, examples: Examples, run: Callable[[Inputs], Tensor]
) -> dict[str, str]:
    """Group name -> reason, for every group whose members have no influence on any output.

    Most networks are settled by the first few examples; only what these do not reach is looked for in the others.
    Where gradients do not pass, a parameter counts as reached as soon as any function is given it.

    Args:
        model: in eval mode; it is left as it was found.
        layout: its groups.
        examples: on the device of the model.
        run: inputs -> (M, C) output rows; gradients flow where they are enabled.
    """
    tensors = NetworkTensors(model)
    trained = {group.name: _trained(group, tensors) for group in layout.groups}
    missing = list(dict.fromkeys(name for names in trained.values() for name in names))
    for inputs in _pieces(examples):
        try:
            missing = _without_gradient(tensors, missing, inputs, run)
        except (RuntimeError, NotImplementedError) as cause:
            logger.info("gradients do not pass through this network (%s): what is used is taken as reached", cause)
            missing = _without_use(tensors, missing, examples, run)
            break
        if not missing:
            return {}
    lost = set(missing)
    found = {name: REASON for name, own in trained.items() if own and lost.issuperset(own)}
    if found:
        logger.warning("%s: %s; kept as they are", REASON, printable(", ".join(found)))
    return found


def _trained(group: Group, tensors: NetworkTensors) -> tuple[str, ...]:
    """Names of the group's parameters; running statistics have no gradients."""
    floating = [member.name for member in group.members if member.dtype.is_floating_point]
    return tuple(name for name in floating if tensors.is_parameter(name))


def _pieces(examples: Examples) -> Iterator[Inputs]:
    for part in examples.slices:
        count = tensors_of(part.inputs)[0].shape[0]
        size = count if examples.whole else PROBED_AT_ONCE
        for start in range(0, count, size):
            yield map_tensors(part.inputs, lambda t, start=start, size=size: t[start : start + size])


def _without_gradient(
    tensors: NetworkTensors, names: Sequence[str], inputs: Inputs, run: Callable[[Inputs], Tensor]
) -> list[str]:
    """Those of the named tensors that no output depends on."""
    with torch.enable_grad():
        # Detached copies share the values; frozen parameters get a gradient too, and no .grad is written.
        leaves = {name: tensors[name].detach().requires_grad_() for name in names}
        with tensors.swapped(leaves):
            total = run(inputs).sum()
            if not total.requires_grad:
                raise NotImplementedError("its outputs have none")
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return [name for name, gradient in zip(names, found, strict=True) if gradient is None]


def _without_use(
    tensors: NetworkTensors, names: Sequence[str], examples: Examples, run: Callable[[Inputs], Tensor]
) -> list[str]:
    """Those of the named tensors that no function is given, whatever the example."""
    uses, missing = GivenTensors(), list(names)
    for inputs in _pieces(examples):
        with uses, torch.no_grad():
            run(inputs)
        missing = [name for name in missing if id(tensors[name]) not in uses.seen]
        if not missing:
            break
    return missing

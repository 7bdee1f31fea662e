"""Networks compressed by one operator, without measuring and solving."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from qubo_compress.menu import Group, Operator, Stored, choice_name, discover
from qubo_compress.menu.keep import Keep
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression, Plan, filled
from qubo_compress.testing.operators import stored_by

Chosen = Callable[[Group], Operator]


def compressed(net: nn.Module, chosen: Operator | Chosen, groups: str = "layer") -> tuple[nn.Module, Compression]:
    """A network whose groups are stored by one operator, or by one for each; kept where it refuses.

    Args:
        net: unchanged.
        chosen: an operator, or a function of the group.
        groups: as for ``measure``.
    """
    layout, tensors = discover(net, groups), NetworkTensors(net)
    stored: dict[str, Stored] = {}
    choices: dict[str, str] = {}
    for group in layout.groups:
        operator, parts = chosen(group) if callable(chosen) else chosen, tensors.parts(group)
        if operator.refusal(group, parts) is not None:
            operator = Keep()
        stored[group.name] = stored_by(operator, group, parts)
        choices[group.name] = choice_name(operator)
    size = sum(one.nbytes for one in stored.values())
    plan = Plan(
        choices, size, layout.original_bytes, layout.parameters, 0.0, tuple(dict.fromkeys(choices.values())),
        layout.rule, tensors.signature(),
    )  # fmt: skip
    compression = Compression(plan, layout, stored)
    return filled(net, compression), compression

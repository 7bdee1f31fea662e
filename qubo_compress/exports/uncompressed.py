"""What a network carries for an export: its plan, or, if it has none, one that keeps every layer as it is."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from qubo_compress.menu.operator import stored_as
from qubo_compress.menu.storage.file_format import fixed_bytes
from qubo_compress.network.discovery import discover_stored
from qubo_compress.network.private import CARRIED
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression, Plan, compression_of

KEEP = "keep"


def carried_or_kept(model: nn.Module) -> Compression:
    """The compression that a module carries; for one without a plan, that of a plan that keeps every layer.

    Raises:
        WrongModel: when the module's values have left its plan's grid, or it computes in factors.
        InvalidModel: when the network holds no tensors.

    Example:
        >>> found = carried_or_kept(nn.Linear(3, 2))
        >>> dict(found.plan.choices), found.plan.original_bytes
        ({'weight': 'keep', 'bias': 'keep'}, 32)
    """
    if CARRIED in vars(model):
        return compression_of(model)
    layout, tensors = discover_stored(model, "layer"), NetworkTensors(model)
    stored = {group.name: stored_as(KEEP, group, tensors.parts(group), None) for group in layout.groups}
    plan = Plan(
        dict.fromkeys(stored, KEEP), 0, layout.original_bytes, layout.parameters, 0.0, (KEEP,), layout.rule,
        tensors.signature(),
    )  # fmt: skip
    size = fixed_bytes(layout, (KEEP,)) + sum(one.nbytes for one in stored.values())
    return Compression(replace(plan, bytes=size), layout, stored)

"""The repair that our pipeline makes by default, for any weights: normalisations and biases, no training."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks import Batches
from qubo_compress.menu.operator import stored_as
from qubo_compress.network.discovery import discover_stored
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression, filled

FOLD, KEEP = "fold(bits=32)", "keep"


def repaired(model: nn.Module, weights: Mapping[str, Tensor], batches: Batches) -> dict[str, Tensor]:
    """The state of a network after :func:`qubo_compress.recover` without epochs.

    Args:
        model: the original.
        weights: name -> the values that take the place of the original's.
        batches: calibration examples.
    """
    small = copy.deepcopy(model).eval()
    small.load_state_dict(model.state_dict() | dict(weights))
    tensors, layout = NetworkTensors(small), discover_stored(small, "layer")
    choices = {group.name: FOLD if group.epsilon is not None else KEEP for group in layout.groups}
    stored = {group.name: stored_as(choices[group.name], group, tensors.parts(group)) for group in layout.groups}
    plan = qc.Plan(choices, 0, 0, 0, 0.0, (KEEP, FOLD), "layer", tensors.signature())
    carrying = filled(small, Compression(plan, layout, stored))
    count = sum(len(answers) for _, answers in batches)
    return dict(qc.recover(carrying, batches, model, max_examples=count, progress=False).state_dict())

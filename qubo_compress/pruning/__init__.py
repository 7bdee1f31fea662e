"""Pruning of a whole network, at once or step by step, by magnitude or by second-order saliency."""

from __future__ import annotations

from qubo_compress.pruning.pruning import (
    Layers,
    PrunedLayer,
    cubic_schedule,
    gradients_of,
    prune,
    prune_gradually,
    pruned_layers,
)
from qubo_compress.pruning.shrink import Shrunk, shrink
from qubo_compress.pruning.weight_scores import METHODS, SCOPES, Pruning

__all__ = [
    "METHODS",
    "SCOPES",
    "Layers",
    "PrunedLayer",
    "Pruning",
    "Shrunk",
    "cubic_schedule",
    "gradients_of",
    "prune",
    "prune_gradually",
    "pruned_layers",
    "shrink",
]

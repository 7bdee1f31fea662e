"""A few numbers that identify what a network and its loss compute, so that a cache is used for that function only.

Two networks of the same weights may differ in an activation, a stride, a constant of a normalisation or a buffer that
is not stored. Their outputs show it. They are compared with a tolerance for other thread counts and machines.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qubo_compress.sensitivity.ranks import Arrays
from qubo_compress.sensitivity.subject import Subject

PROJECTIONS = 4
"""Number of random projections of each example's outputs."""

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far signatures of the same function may differ, as a share of the largest number, by output type."""


def function_signature(subject: Subject) -> Arrays:
    """Projections of the outputs and losses, per example, of the network that is measured.

    Returns:
        ``outputs``: (N, PROJECTIONS) float64, every example's outputs times random directions of unit length;
        ``losses``: (N,) float64, the loss's own values; ``tolerance``: how far those of the same function may differ.
    """
    outputs, losses = [], []
    for number, part in subject.slices():
        rows = subject.outputs[number]
        flat = rows.double().reshape(len(part), -1).cpu()
        outputs.append(flat @ _directions(flat.shape[1]))
        values = subject.loss.values(rows, part.targets, subject.reference[number]).double()
        losses.append(values.reshape(len(part), -1).mean(1).cpu())
    return {
        "outputs": torch.cat(outputs).numpy(),
        "losses": torch.cat(losses).numpy(),
        "tolerance": np.array(TOLERANCES.get(subject.outputs[0].dtype, 1e-4)),
    }


def same_function(first: Arrays, second: Arrays) -> bool:
    """Whether two signatures may belong to the same function; False for anything that is not a signature.

    Example:
        >>> one = {"outputs": np.ones((2, 4)), "losses": np.ones(2), "tolerance": np.array(1e-4)}
        >>> same_function(one, one), same_function(one, {**one, "losses": np.array([1.0, 1.1])})
        (True, False)
    """
    if not (_is_signature(first) and _is_signature(second)):
        return False
    tolerance = max(float(found["tolerance"]) for found in (first, second))
    return all(_close(first[name], second[name], tolerance) for name in ("outputs", "losses"))


def _is_signature(found: Arrays) -> bool:
    """Whether arrays from a file have the names, types and lengths of a signature."""
    if set(found) != {"outputs", "losses", "tolerance"} or any(array.dtype.kind != "f" for array in found.values()):
        return False
    return found["tolerance"].ndim == 0 and 0.0 <= float(found["tolerance"]) <= max(TOLERANCES.values())


def _close(first: np.ndarray, second: np.ndarray, tolerance: float) -> bool:
    if first.shape != second.shape:
        return False
    largest = float(np.abs(first).max(initial=0.0))
    return bool(np.allclose(first, second, rtol=0.0, atol=tolerance * largest, equal_nan=True))


def _directions(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    found = torch.randn(size, PROJECTIONS, generator=generator, dtype=torch.float64)
    lengths: Tensor = torch.linalg.vector_norm(found, dim=0)
    return found / lengths

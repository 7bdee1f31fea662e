"""The expected loss of random errors in stored weights, and the cost of reliable choices in cells of the same memory.

A choice is measured at the mean of its values. Independent errors of variance v_i around it cost

    E[loss] - loss(mean)  ~=  1/2 sum_i h_i v_i,

h the diagonal of the Gauss-Newton Hessian (Isik et al., arXiv 2102.07725, allocate redundancy by the same sum). It
is taken at the *uncompressed* weights, and errors of different groups add: both hold while the noise term is small.
For a Kullback-Leibler divergence, the sum is the whole second order. For cross-entropy, kinks of the activations add a
term through the loss's slope at the labels, which no derivative shows: on a trained ResNet-20, the
sum was 5 to 14 % above the mean over noisy reads. ``benchmarks/studies/unreliable_storage.py`` compares both losses.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from qubo_compress.calibration.statistics.curvature import Curvature
from qubo_compress.errors import InvalidChannel
from qubo_compress.menu.operator import parse
from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.sensitivity.subject import Subject
from qubo_compress.sensitivity.table import SensitivityTable


class Medium(Protocol):
    """A memory with a price for an error-free bit, such as the channels of ``qubo_compress.channels``."""

    @property
    def cells_per_reliable_bit(self) -> float:
        """Cells per bit, including the check bits of an error-correcting code."""
        ...


def noise_terms(subject: Subject, metric: str, unreliable: npt.NDArray[np.bool_]) -> FloatArray:
    """(V,) expected loss of every choice's random errors: zero for reliable ones.

    Args:
        subject: of the measurement.
        metric: its name; for ``"magnitude"`` the terms are squared norms, like its linear terms.
        unreliable: (V,) which choices are read back with errors.
    """
    terms = np.zeros(int(subject.offsets[-1]))
    for number, group in enumerate(subject.layout.groups):
        first = int(subject.offsets[number])
        # Groups of reliable choices need not be stored again.
        if not unreliable[first : first + len(subject.choices[number])].any():
            continue
        noisy = {k: packed for k, packed in enumerate(subject.choices.packed(number)) if packed.unreliable}
        if not noisy:
            continue
        curvature: tuple[Tensor, ...] | None = None
        if metric != "magnitude":
            calibration = subject.choices.calibration
            if calibration is None:
                raise InvalidChannel("random errors need the curvature, and there is no calibration to take it from")
            curvature = Curvature().collect(calibration, group)
        for k, packed in noisy.items():
            terms[first + k] = expected_loss(packed.variances(), curvature)
    return terms


def expected_loss(variances: tuple[Tensor, ...], curvature: tuple[Tensor, ...] | None) -> float:
    """1/2 sum h v over the members of a group; without curvature, the expected squared norm of the errors."""
    if curvature is None:
        return float(sum(v.double().sum() for v in variances))
    return float(sum(0.5 * (v.double() * h.double().cpu()).sum() for v, h in zip(variances, curvature, strict=True)))


def priced_in_cells(table: SensitivityTable, medium: Medium) -> SensitivityTable:
    """The same table with every reliable choice, and the rest of the file, priced in cells of one memory.

    A table prices a reliable bit at one cell. If cells hold several bits, or flip, an error-free bit costs
    ``medium.cells_per_reliable_bit``; ``analog`` and ``digital`` choices are already priced this way.
    """
    price = medium.cells_per_reliable_bit
    names = [name for group in table.choices for name in group]
    unreliable = np.array([parse(name).unreliable for name in names])
    protected = np.ceil(8 * table.costs["bytes"] * price).astype(np.int64)
    costs = {**table.costs, "cells": np.where(unreliable, table.costs["cells"], protected)}
    fixed = {**table.fixed_costs, "cells": math.ceil(8 * table.fixed_costs["bytes"] * price)}
    return replace(table, costs=costs, fixed_costs=fixed, allowed=table.allowed.copy())

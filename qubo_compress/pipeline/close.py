"""Measures the linear terms of the choices that matter: those that a first solve, its pool or its opponents use.

``products`` knows a choice's divergence to second order in its displacement. That ranks choices well and is accurate
for mild ones; for two bits or 75 % zeros it was half of the measured value, and an optimiser finds such errors. So the
choices of the first plans run through the network, on as many examples as the work of products pays for, and the
problem is solved again, until no plan uses a choice that was not run. Other choices are corrected by the median
correction of their name in other groups. Rows are scaled by the root of the same correction: a displacement whose
measured divergence exceeds its square carries that factor into its pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.budget import Budget
from qubo_compress.calibration.evaluation import outputs_of
from qubo_compress.calibration.examples import Examples
from qubo_compress.errors import QuboCompressError
from qubo_compress.menu.operator import stored_as
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.inputs import map_tensors
from qubo_compress.network.losses.classification import Loss, make_loss
from qubo_compress.network.private import private_copy
from qubo_compress.network.replay import run_model
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray
from qubo_compress.selection.candidates import opponents
from qubo_compress.sensitivity.specimen import Specimen
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import Solution

logger = logging.getLogger(__name__)

ROUNDS = 3
"""Most solves: each measures only choices that no earlier one used, and the third rarely finds any."""

POOL = 8
"""Plans of a solver's pool whose choices are measured."""

FEWEST_EXAMPLES, MOST_EXAMPLES = 8, 256
WORTH = 3e11
"""Multiplications that measuring choices may take in any case: about half a minute of one core."""

LARGEST_CORRECTION = 30.0
"""Larger corrections, in either direction, come from choices without effect."""


@dataclass(frozen=True, eq=False)
class _ChoiceRuns:
    """A network and the examples that choices are run on.

    Attributes:
        tensors: of the uncompressed network.
        examples: some of the calibration examples.
        loss: whose divergence is measured.
        reference: the network's outputs on them.
    """

    tensors: NetworkTensors
    examples: Examples
    loss: Loss
    reference: list[Tensor]

    @classmethod
    def of(cls, specimen: Specimen) -> _ChoiceRuns:
        """Run a copy of the network once, for its reference outputs."""
        model = private_copy(specimen.model)
        return cls(
            NetworkTensors(model), specimen.examples, make_loss(specimen.loss), outputs_of(model, specimen.examples)
        )

    def divergence(self, table: SensitivityTable, group: int, choice: str) -> float:
        """Mean divergence of the network with one choice from the network without it."""
        found = table.layout.groups[group]
        number = int(table.offsets[group]) + table.choices[group].index(choice)
        fit = None if table.fits is None else table.fits.of(number)
        payload = table.payloads.get((found.name, choice))
        stored = stored_as(choice, found, self.tensors.parts(found), payload, fit)
        ranges = dict(zip((member.name for member in found.members), stored.input_ranges, strict=False))
        total = 0.0
        with self.tensors.swapped(self.tensors.assembled(zip(found.members, stored.tensors(), strict=True)), ranges):
            for part, reference in zip(self.examples.slices, self.reference, strict=True):
                inputs = map_tensors(part.inputs, lambda t, home=reference.device: t.to(home))
                rows = self.examples.reading.rows(run_model(self.tensors.model, inputs))
                targets = None if part.targets is None else part.targets.to(rows.device)
                values = self.loss.divergence(rows, targets, reference).double().reshape(len(part), -1).mean(1)
                total += float((values.cpu() * part.weights.double().cpu()).sum())
        return total


def closely_measured(
    specimen: Specimen,
    table: SensitivityTable,
    budget: Budget,
    solve: Callable[[ChoiceProblem], Solution],
    tell: Callable[[str], None] = logger.info,
) -> SensitivityTable:
    """The table with measured divergences for the choices that plans under a budget use, and corrected others.

    Args:
        specimen: the uncompressed network, which is unchanged, and the calibration examples.
        table: measured to second order.
        budget: the limits of the plans.
        solve: problem -> solution.
        tell: called with a sentence on what is about to be done.
    """
    values = np.zeros(table.linear.size)
    measured = np.zeros(table.linear.size, dtype=bool)
    measured[table.offsets[:-1]] = True  # keeping changes nothing
    current = table
    runs: _ChoiceRuns | None = None
    for number in range(ROUNDS):
        problem = current.problem(budget)
        solution = solve(problem)
        near = [*(solution.pool or (solution,))[:POOL], *(found for _, found in opponents(problem))]
        touched = _untouched(table, near, measured)
        if not touched.size:
            break
        if runs is None:
            count = affordable(touched.size, specimen.examples.count, table)
            runs = _ChoiceRuns.of(specimen.on(specimen.examples.spread(count)))
        tell(f"measuring {touched.size:,} choices of the first plans on {runs.examples.count} examples")
        values[touched], measured[touched] = _measured(runs, table, touched), True
        logger.info("close round %d: %d choices were run", number, touched.size)
        current = corrected(table, values, measured)
    return current


def affordable(choices: int, examples: int, table: SensitivityTable) -> int:
    """The number of examples to run choices on: as many as the first measurement's work pays for."""
    multiplications = table.provenance.multiplications
    own = multiplications * table.provenance.evaluations * table.provenance.examples
    count = int(max(WORTH, own) / max(1.0, choices * multiplications))
    return min(examples, max(FEWEST_EXAMPLES, min(MOST_EXAMPLES, count)))


def _untouched(
    table: SensitivityTable, solutions: Iterable[Solution], measured: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Numbers of the choices in these plans that are not yet measured."""
    used = {
        int(number)
        for solution in solutions
        for number in table.offsets[:-1] + table.assignment(solution.choices)
        if not measured[number]
    }
    return np.array(sorted(used), dtype=np.int64)


def _measured(runs: _ChoiceRuns, table: SensitivityTable, touched: npt.NDArray[np.int64]) -> FloatArray:
    """Divergences of some choices from running each; a multiple of the table's if that fails or is not finite.

    They run on the examples that they were made from, so the table's correction applies to them, too.
    """
    group_of = np.searchsorted(table.offsets, touched, side="right") - 1
    optimism = np.ones(touched.size) if table.optimism is None else table.optimism[touched]
    found = LARGEST_CORRECTION * table.linear[touched]
    with every_layer_runs(), torch.no_grad():
        for position, (choice, group) in enumerate(zip(touched, group_of, strict=True)):
            name = table.choices[group][int(choice) - int(table.offsets[group])]
            try:
                value = runs.divergence(table, int(group), name)
            except QuboCompressError as cause:
                logger.info("%s as %s was not run (%s)", table.group_names[group], name, cause)
                continue
            if np.isfinite(value):
                found[position] = max(0.0, value) * optimism[position]
    return found


def corrected(table: SensitivityTable, values: FloatArray, measured: npt.NDArray[np.bool_]) -> SensitivityTable:
    """The table with measured linear terms; all other terms and all rows are corrected in proportion.

    Args:
        table: measured to second order.
        values: (V,) divergences of the choices that were run.
        measured: (V,) which choices were run; any other takes the median factor of its name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import qubo_compress as qc
        >>> net, data = nn.Linear(4, 3), [(torch.randn(32, 4), torch.arange(32) % 3)]
        >>> table = qc.measure(net, data, menu=qc.Menu(bits=(2,), vector_bits=()), metric="products", progress=False)
        >>> run = np.arange(table.linear.size) < 2
        >>> found = corrected(table, 2 * table.linear, run)
        >>> bool(np.allclose(found.linear[run], 2 * table.linear[run]))
        True
    """
    names = np.array([name for group in table.choices for name in group])
    keeps = np.zeros(names.size, dtype=bool)
    keeps[table.offsets[:-1]] = True
    known = measured & ~keeps & (table.linear > 0)
    factors = np.ones(names.size)
    factors[known] = np.clip(values[known] / table.linear[known], 1 / LARGEST_CORRECTION, LARGEST_CORRECTION)
    for name in np.unique(names[~measured]):
        alike = known & (names == name)
        if alike.any():
            factors[(names == name) & ~measured] = np.median(factors[alike])
    linear = np.where(measured & ~keeps, values, table.linear * factors)
    factor = table.factor
    if factor is not None:
        # Rows stay short enough for their linear terms, so that no energy is negative.
        squares = np.einsum("vr,vr->v", factor, factor, dtype=np.float64)
        longest = np.sqrt(np.maximum(2.0 * linear, 0.0) / np.maximum(squares, 1e-300))
        factor = np.asarray(factor * np.minimum(np.sqrt(factors), longest)[:, None].astype(np.float32), np.float32)
    divergence = None if table.divergence is None else linear.copy()
    return replace(table, linear=linear, factor=factor, divergence=divergence, allowed=table.allowed.copy())

"""The convex relaxation of a choice problem, the source of all dual bounds.

If every group may hold a mixture x of its choices, the problem is convex whenever the quadratic part is positive
semidefinite. A factor is so by construction. Pair energies are made so without changing the energy of any
assignment: an assignment has x[v]^2 = x[v], so weight can be moved from the linear terms onto the diagonal of the
matrix; and x sums to one in every group, so the part of an interaction that depends on one group only can be moved
into that group's linear terms.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FactorArray, FloatArray, IntArray
from qubo_compress.solvers.exact import price_kernels
from qubo_compress.solvers.exact import relaxation_kernels as kernels
from qubo_compress.solvers.exact.relaxation_kernels import ConvexForm, FactorForm

LARGEST_GRAM = 4000
"""Most choices for which the matrix of all pairs (8 bytes each) is formed."""

_LANCZOS_STEPS = 50
"""These give an extreme eigenvalue to about a percent, which the factor 1.01 below covers; Cholesky proves it."""

_EVALUATE_EVERY = 8
"""Sweeps between two bounds."""

_PATIENCE = 12
"""The relaxation counts as solved after this many bounds in a row without a better one."""


@dataclass
class Mixture:
    """A point of the relaxation, changed in place by the sweeps.

    Attributes:
        x: (V,) share of each choice in its group.
        gradient: (V,) diagonal + gram x.
        used: (B,) scaled cost of the mixture.
        multipliers: (B,) current prices of the budgets.
    """

    x: FloatArray
    gradient: FloatArray
    used: FloatArray
    multipliers: FloatArray


def stiffness_of(curvature: float, diagonal: FloatArray, offsets: IntArray, costs: FloatArray) -> FloatArray:
    """(B,) penalty weights from the typical curvature, or from the spread of the linear terms if that is zero."""
    starts = offsets[:-1]
    spread = np.maximum.reduceat(diagonal, starts) - np.minimum.reduceat(diagonal, starts)
    typical = max(curvature, 1e-3 * float(spread.mean()), 1e-12)
    return np.asarray(typical / np.maximum((costs**2).mean(axis=0), 1e-12), dtype=np.float64)


def scaled_costs(problem: ChoiceProblem) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Costs (V, B), room (B,) and scales (B,); exact, because the scales are powers of two."""
    largest = np.maximum(problem.costs.max(axis=1, initial=1), 1).astype(np.float64)
    scales = 2.0 ** np.ceil(np.log2(largest))
    costs = np.ascontiguousarray((problem.costs / scales[:, None]).T)
    return costs, (problem.limits - problem.fixed_costs) / scales, scales


def convex_form(problem: ChoiceProblem) -> ConvexForm:
    """The relaxation of a problem small enough for its Gram matrix."""
    costs, room, _ = scaled_costs(problem)
    constant, diagonal = problem.constant, problem.diagonal.copy()
    if problem.factor is not None:
        rows = problem.factor.astype(np.float64)
        gram = rows @ rows.T
    elif problem.pairs is not None and problem.pairs.nnz:
        constant, diagonal, gram = _convexified(problem, problem.pairs.toarray())
    else:
        gram = np.zeros((diagonal.size, diagonal.size))
    return form_of(constant, diagonal, gram, problem.group_offsets.copy(), costs, room)


def form_of(
    constant: float, diagonal: FloatArray, gram: FloatArray, offsets: IntArray, costs: FloatArray, room: FloatArray
) -> ConvexForm:
    """A form with a suitable stiffness: a unit of overspending matters as much as a choice."""
    stiffness = stiffness_of(float(np.trace(gram)) / diagonal.size, diagonal, offsets, costs)
    return ConvexForm(constant, diagonal, gram, offsets, costs, room, stiffness)


def factor_form(problem: ChoiceProblem, factor: FactorArray) -> FactorForm:
    """The relaxation of a problem in terms of its factor, if the Gram matrix would not fit."""
    costs, room, _ = scaled_costs(problem)
    diagonal, norms = problem.diagonal.copy(), 2.0 * (problem.linear - problem.diagonal)
    offsets = problem.group_offsets.copy()
    return FactorForm(
        factor, norms, diagonal, offsets, costs, room, stiffness_of(float(norms.mean()), diagonal, offsets, costs)
    )


def _convexified(problem: ChoiceProblem, matrix: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """Constant, linear terms and positive semidefinite matrix with the pairs' energies; overwrites ``matrix``."""
    offsets, sizes = problem.group_offsets, problem.group_sizes
    # With c the even mixture and y = c + z: 1/2 y.Qy = 1/2 z.Qz + (Qc).y - 1/2 c.Qc, and z = y less its group means.
    centre = np.repeat(1.0 / sizes, sizes)
    average = matrix @ centre  # pair energy of each choice with the even mixture
    constant = problem.constant - 0.5 * float(centre @ average)
    linear = problem.linear + average
    for axis in (0, 1):
        means = np.add.reduceat(matrix, offsets[:-1], axis=axis) / np.expand_dims(sizes, 1 - axis)
        matrix -= np.repeat(means, sizes, axis=axis)
    matrix = 0.5 * (matrix + matrix.T)
    # Strongly coupled choices get more curvature; the least eigenvalue decides how much.
    strength = np.sqrt(np.sqrt((matrix**2).sum(axis=1)) + 1e-12 * np.abs(matrix).max(initial=1e-300))
    shift = (_shift_to_semidefinite(matrix / np.outer(strength, strength)) + 1e-9) * strength**2
    matrix[np.diag_indices_from(matrix)] += shift
    return constant, linear - 0.5 * shift, matrix


def _shift_to_semidefinite(matrix: FloatArray) -> float:
    """The diagonal shift that makes a matrix positive semidefinite: estimated by Lanczos, proven by Cholesky.

    Neither passes a large matrix to LAPACK: its threads wait for each other thousands of times, which turned 0.1 s
    into 20 s in a measurement on a busy machine.
    """
    size = matrix.shape[0]
    diagonal, beside = kernels.lanczos(matrix, min(size, _LANCZOS_STEPS))
    least = float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))[0])
    shift = 1.01 * max(0.0, -least) + 1e-9
    while not kernels.is_definite(matrix + shift * np.eye(size)):
        shift *= 1.02
    return shift


def start_at(form: ConvexForm, vertex: IntArray) -> Mixture:
    """The mixture that equals one assignment; ``vertex`` holds global choice numbers."""
    x = np.zeros(form.diagonal.size)
    x[vertex] = 1.0
    gradient = form.diagonal + form.gram[vertex].sum(axis=0)
    return Mixture(x, gradient, form.costs[vertex].sum(axis=0), np.zeros(form.room.size))


def bound_at(form: ConvexForm, mixture: Mixture, choices: IntArray, price: FloatArray) -> float:
    """A valid bound from a mixture, whose gradient is recomputed; polishes ``price`` in place."""
    support = np.flatnonzero(mixture.x)
    coupled = mixture.x[support] @ form.gram[support]
    quadratic = float(coupled @ mixture.x)
    slopes = form.diagonal + coupled
    if np.isinf(price_kernels.polish_prices(slopes, form.offsets, choices, form.costs, form.room, price, 4)):
        return np.inf
    return form.constant + price_kernels.certified_bound(
        form.diagonal, slopes, quadratic, form.offsets, choices, (form.costs, form.room), price, slopes.size
    )


def relax(form: ConvexForm, mixture: Mixture, deadline: float, tolerance: float = 1e-9) -> tuple[float, FloatArray]:
    """Solve the relaxation from a mixture, in place, until the deadline; the best bound and its prices."""
    choices = np.arange(form.diagonal.size)
    price, scratch = mixture.multipliers.copy(), np.empty(form.room.size)
    best, best_price = bound_at(form, mixture, choices, price), price.copy()
    mixture.multipliers[:] = price
    stale = 0
    while stale < _PATIENCE and np.isfinite(best) and time.perf_counter() < deadline:
        for sweep in range(_EVALUATE_EVERY):
            kernels.descend_gram(
                form, form.offsets, choices, mixture.x, mixture.gradient, mixture.used, mixture.multipliers, scratch
            )
            if sweep % 2:  # prices updated after every sweep would oscillate
                kernels.prices_of(mixture.multipliers, form.stiffness, mixture.used, form.room, mixture.multipliers)
        price = mixture.multipliers.copy()
        value = bound_at(form, mixture, choices, price)
        stale = 0 if value > best + tolerance * max(abs(best), 1e-9) else stale + 1
        if value > best:
            best, best_price = value, price
    return best, best_price

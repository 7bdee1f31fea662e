"""A tighter convex form of the same problem: removes curvature that affects no assignment from the matrix.

An assignment has x_v x_w = 0 for two choices of one group and x_v^2 = x_v. So for any symmetric block-diagonal D

    d . x + 1/2 x . G x  =  (d + 1/2 diag D) . x + 1/2 x . (G - D) x      on assignments,

while on mixtures the right-hand side grows as more of the diagonal blocks is removed. It stays convex as
long as G - D is positive semidefinite on the directions that preserve every group's sum. The best D is the dual
solution of the semidefinite relaxation

    minimise <C, Y>  over  Y = [[1, x'], [x, X]] psd,  X_vv = x_v,  X_vw = 0 within groups,  costs . x <= room

(quadratic convex reformulation: Billionnet, Elloumi, Plateau 2009), which is solved approximately by the alternating
direction method on its dual (Wen, Goldfarb, Yin 2010). A shift, checked by a Cholesky factorisation, makes the result
exactly feasible, so a poor solution gives a weaker bound but never a wrong one.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.exact import relaxation_kernels as kernels
from qubo_compress.solvers.exact.convex_relaxation import form_of, relax, start_at
from qubo_compress.solvers.exact.relaxation_kernels import ConvexForm

LARGEST_STRENGTHENED = 1600
"""Most choices for strengthening: every iteration solves an eigenvalue problem (some seconds at this size)."""

_ITERATIONS = 300
_STEP = 1.6
"""Over-relaxation of the primal step; it converges below (1 + sqrt 5) / 2."""
_DIAGONAL_NORM = 1.5
"""Squared norm of a constraint X_vv - x_v = 0, whose second term has two entries in the matrix."""

_SHARES_TRIED = (1.0, 0.9, 0.75, 0.5)
"""Shares of the blocks to remove, largest first: an approximate solution may be too bold."""
_LOOK_EVERY = 50
"""Iterations between two evaluations of the bound."""


@dataclass(frozen=True, eq=False)
class Strengthened:
    """The result of strengthening.

    Attributes:
        form: the tighter form, or the given one if nothing was gained.
        bound: lower bound that its relaxation proves.
        iterations: iterations done.
    """

    form: ConvexForm
    bound: float
    iterations: int


def strengthen(
    form: ConvexForm, vertex: IntArray, deadline: float, iterations: int = _ITERATIONS, target: float = np.inf
) -> Strengthened:
    """Search for the block-diagonal matrix that raises the root bound the most.

    Args:
        form: the form to start from, preferably restricted to the choices that can be in an optimum.
        vertex: (G,) global numbers of one choice per group, preferably of a good assignment.
        deadline: value of ``time.perf_counter`` at which to stop.
        iterations: most iterations.
        target: a bound that is enough.

    Example:
        >>> from qubo_compress import ChoiceProblem
        >>> from qubo_compress.solvers.exact.convex_relaxation import convex_form
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=6, choices=5, seed=0)
        >>> form, vertex = convex_form(problem), problem.group_offsets[:-1].copy()
        >>> plain = relax(form, start_at(form, vertex), time.perf_counter() + 5.0)[0]
        >>> strengthen(form, vertex, time.perf_counter() + 10.0).bound > plain
        True
    """
    best = Strengthened(form, relax(form, start_at(form, vertex), deadline)[0], 0)
    reduced = _reduced(form, vertex)
    if reduced.free.size == 0:
        return best
    done, longest = 0, 0.0
    with single_threaded_algebra():
        method = _AlternatingDirections(reduced)
        while done < iterations and time.perf_counter() + 2.0 * longest < deadline:
            start = time.perf_counter()
            method.iterate()
            done += 1
            longest = max(longest, time.perf_counter() - start)
            if done % _LOOK_EVERY == 0 or done == iterations:
                best = _better(form, vertex, reduced, method.blocks(), best, deadline)
                if best.bound >= target or method.converged:
                    break
        else:
            if done % _LOOK_EVERY:
                best = _better(form, vertex, reduced, method.blocks(), best, deadline)
    return replace(best, iterations=done)


@dataclass(frozen=True, eq=False)
class _Reduced:
    """The form without the reference choice of each group, whose share is one minus all others."""

    free: IntArray
    group: IntArray
    matrix: FloatArray
    linear: FloatArray
    costs: FloatArray
    room: FloatArray


def _reduced(form: ConvexForm, vertex: IntArray) -> _Reduced:
    group = np.repeat(np.arange(form.offsets.size - 1), np.diff(form.offsets))
    free = np.setdiff1d(np.arange(form.diagonal.size), vertex)
    beside = vertex[group[free]]
    slopes = form.diagonal + form.gram[vertex].sum(axis=0)
    return _Reduced(
        free=free,
        group=group[free],
        matrix=_apart(form.gram, free, beside),
        linear=slopes[free] - slopes[beside],
        costs=form.costs[free] - form.costs[beside],
        room=form.room - form.costs[vertex].sum(axis=0),
    )


def _apart(matrix: FloatArray, free: IntArray, beside: IntArray) -> FloatArray:
    """The matrix between differences of choices and their references."""
    rows = matrix[free] - matrix[beside]
    apart = rows[:, free] - rows[:, beside]
    return np.asarray(0.5 * (apart + apart.T), dtype=np.float64)


def _better(
    form: ConvexForm, vertex: IntArray, reduced: _Reduced, blocks: FloatArray, best: Strengthened, deadline: float
) -> Strengthened:
    """The best of the present form and the forms without a share of the blocks."""
    for share in _SHARES_TRIED:
        if time.perf_counter() >= deadline:
            break
        candidate = without_blocks(form, vertex, reduced, share * blocks)
        bound = relax(candidate, start_at(candidate, vertex), deadline)[0]
        if bound > best.bound:
            best = Strengthened(candidate, bound, 0)
    return best


def without_blocks(form: ConvexForm, vertex: IntArray, reduced: _Reduced, blocks: FloatArray) -> ConvexForm:
    """The form with ``blocks`` (between the free choices) moved from the matrix to the linear terms, made convex.

    The reference choices get zero rows: around the vertex e, 1/2 x.Gx = 1/2 (x-e).G(x-e) + (Ge).x - 1/2 e.Ge.
    """
    linear = form.diagonal + form.gram[vertex].sum(axis=0)
    constant = form.constant - 0.5 * float(form.gram[np.ix_(vertex, vertex)].sum())
    matrix = reduced.matrix - blocks
    scale = float(np.abs(np.diag(matrix)).mean()) + 1e-300
    shift = max(0.0, -float(np.linalg.eigvalsh(matrix)[0])) + 1e-11 * scale
    steps = np.diag_indices_from(matrix)
    while not kernels.is_definite(matrix + shift * np.eye(matrix.shape[0])):
        shift = 1.5 * shift + 1e-11 * scale
    # Slightly more than the checked shift, because the successful factorisation was itself rounded.
    shift += 1e-12 * scale * matrix.shape[0]
    matrix[steps] += shift
    linear[reduced.free] += 0.5 * (np.diag(blocks) - shift)
    gram = np.zeros_like(form.gram)
    gram[np.ix_(reduced.free, reduced.free)] = matrix
    return form_of(constant, linear, gram, form.offsets, form.costs, form.room)


class _AlternatingDirections:
    """Dual alternating direction method for the semidefinite relaxation over the free choices."""

    def __init__(self, reduced: _Reduced) -> None:
        size, budgets = reduced.free.size, reduced.room.size
        same = reduced.group[:, None] == reduced.group[None, :]
        np.fill_diagonal(same, False)
        self.within = np.zeros((size + 1, size + 1), dtype=np.bool_)
        self.within[1:, 1:] = same
        self.objective = np.zeros((size + 1, size + 1))
        self.objective[1:, 1:] = 0.5 * reduced.matrix
        self.objective[0, 1:] = self.objective[1:, 0] = 0.5 * reduced.linear
        self.scale = float(np.linalg.norm(self.objective)) + 1e-300
        self.objective /= self.scale
        rows = reduced.costs.T
        lengths = np.linalg.norm(rows, axis=1) + 1e-300
        self.rows, self.room = rows / lengths[:, None], reduced.room / lengths
        # Inner products of the constraints X_vv - x_v = 0 with the budgets, and of the budgets with each other.
        self.cross = -0.5 * self.rows.T
        products = 0.5 * self.rows @ self.rows.T + np.eye(budgets)
        self.schur = products - self.cross.T @ self.cross / _DIAGONAL_NORM
        self.primal = np.zeros((size + 1, size + 1))
        self.primal[0, 0] = 1.0
        self.dual = np.zeros_like(self.primal)
        self.slack, self.price = np.zeros(budgets), np.zeros(budgets)
        self.weight = 1.0
        self.count = 0
        self.converged = False
        self._multipliers = np.zeros_like(self.primal)

    def iterate(self) -> None:
        """One step in the multipliers, the dual matrix and the primal one."""
        weight, places = self.weight, np.arange(1, self.primal.shape[0])
        residue = weight * self.primal + self.dual - self.objective
        diagonal = residue[places, places] - residue[0, 1:]
        budget = self.rows @ residue[0, 1:] + weight * (self.slack - self.room) + self.price
        on_budget = -np.linalg.solve(self.schur, budget - self.cross.T @ diagonal / _DIAGONAL_NORM)
        on_diagonal = -(diagonal + self.cross @ on_budget) / _DIAGONAL_NORM
        multipliers = np.zeros_like(self.primal)
        multipliers[self.within] = -residue[self.within]
        multipliers[places, places] = on_diagonal
        multipliers[0, 1:] = 0.5 * (self.rows.T @ on_budget - on_diagonal)
        multipliers[1:, 0] = multipliers[0, 1:]
        multipliers[0, 0] = weight - residue[0, 0]
        target = self.objective - multipliers - weight * self.primal
        values, vectors = np.linalg.eigh(0.5 * (target + target.T))
        negative = int(np.searchsorted(values, 0.0))
        part = vectors[:, :negative]
        primal = -(part * values[:negative]) @ part.T
        self.dual = target + primal
        price = -on_budget - weight * self.slack
        slack = np.maximum(-price, 0.0) / weight
        self.price = np.maximum(price, 0.0)
        self.primal += _STEP * (primal / weight - self.primal)
        self.slack += _STEP * (slack - self.slack)
        self._multipliers = multipliers
        self.count += 1
        if self.count % 10 == 0:
            self._balance(multipliers)

    def _balance(self, multipliers: FloatArray) -> None:
        """Adjust the penalty so that the primal and dual residuals stay comparable."""
        places = np.arange(1, self.primal.shape[0])
        gap = np.concatenate(
            [
                self.primal[self.within],
                self.primal[places, places] - self.primal[0, 1:],
                self.rows @ self.primal[0, 1:] + self.slack - self.room,
                [self.primal[0, 0] - 1.0],
            ]
        )
        infeasible = 0.5 * float(np.linalg.norm(gap))
        unmet = 0.5 * float(np.linalg.norm(multipliers + self.dual - self.objective))
        self.converged = max(infeasible, unmet) < 1e-6
        if infeasible < unmet / 1.5:
            self.weight /= 1.3
        elif infeasible > 1.5 * unmet:
            self.weight *= 1.3

    def blocks(self) -> FloatArray:
        """The block-diagonal matrix between the free choices, in the units of the form."""
        inside = self._multipliers[1:, 1:] * 2.0 * self.scale
        return np.asarray(0.5 * (inside + inside.T), dtype=np.float64)


@contextlib.contextmanager
def single_threaded_algebra() -> Iterator[None]:
    """One thread for LAPACK, if that can be set: its threads wait for each other thousands of times."""
    try:
        limited = importlib.import_module("threadpoolctl").threadpool_limits(limits=1)
    except ImportError:
        limited = contextlib.nullcontext()
    with limited:
        yield

"""Corrects a problem's energy by measured losses: a Gaussian model of what the energy misses.

With f the mean loss of the network, E = L + P the energy in its linear and pair terms, and b an assignment that all
others are compared with, the model is

    f(x) - f(b) = E(x) - E(b) + theta . (phi(x) - phi(b)) + u(x) - u(b)

where phi are the features of an assignment, theta are independent normal numbers of mean zero, and u is what no feature
explains. The features are the sum of linear terms and the sum of pair terms, so that both are scaled; the linear terms
of every choice name and of every group, since an operator is misjudged alike in all groups, and a group with all its
choices; and the choices themselves, each as uncertain as its linear term is large. A draw of theta from the posterior
turns into a corrected problem with the same groups and budgets, which any solver solves: Thompson sampling (Thompson
1933), as Baptista and Poloczek (2018) do it for binary variables without a prior problem.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import linalg

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray

SCALE_DEVIATION = 0.5
"""Prior standard deviation of the factors on the linear and on the pair terms."""

LEAST_DEVIATION = 0.1
"""A choice is at least as uncertain as this share of the mean linear term in the best assignment."""

CHOICE_DEVIATIONS = (0.03, 0.1, 0.3, 1.0)
"""Prior standard deviations of a choice, relative to its linear term; the likeliest is taken."""

UNEXPLAINED = (0.03, 0.1, 0.3)
"""Standard deviations of u, relative to the difference of losses; the likeliest is taken."""

BASE_UNEXPLAINED = 0.3
"""The standard deviation of u is at least this share of it, relative to the energy of the best assignment."""


Spread = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Observations:
    """Measured losses, as differences to one assignment on the same examples.

    Attributes:
        baseline: (G,) that assignment.
        assignments: (n, G) the others.
        differences: (n,) of their mean losses.
        variances: (n,) of these means, by the choice of examples.
        luck: variance of the baseline's own mean by the choice of examples.
    """

    baseline: IntArray
    assignments: IntArray
    differences: FloatArray
    variances: FloatArray
    luck: float = 0.0


def nothing_observed(baseline: IntArray) -> Observations:
    """No observations, of which a draw is one from the prior."""
    return Observations(baseline, np.zeros((0, baseline.size), dtype=np.int64), np.zeros(0), np.zeros(0))


class EnergyTerms:
    """The features of assignments that a problem's energy is made of, each computed once.

    Args:
        problem: the problem.
    """

    def __init__(self, problem: ChoiceProblem) -> None:
        self.problem = problem
        names, self.name_of = np.unique(np.array(problem.choice_names), return_inverse=True)
        self.names = int(names.size)
        self.group_of = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
        self._known: dict[bytes, FloatArray] = {}

    def features(self, assignments: IntArray) -> FloatArray:
        """(n, 2 + names + G) linear and pair energies, and linear energies by choice name and by group."""
        new = {a.tobytes(): a for a in assignments if a.tobytes() not in self._known}
        if new:
            computed = self._computed(np.array(list(new.values())))
            self._known |= dict(zip(new, computed, strict=True))
        return np.array([self._known[a.tobytes()] for a in assignments]).reshape(
            -1, 2 + self.names + assignments.shape[1]
        )

    def _computed(self, assignments: IntArray) -> FloatArray:
        chosen = self.problem.group_offsets[:-1] + assignments
        each = self.problem.linear[chosen]
        linear = each.sum(axis=1)
        pairs = self.problem.energies(assignments) - self.problem.constant - linear
        rows = np.repeat(np.arange(len(chosen)), chosen.shape[1])
        by_name = np.zeros((len(chosen), self.names))
        np.add.at(by_name, (rows, self.name_of[chosen].reshape(-1)), each.reshape(-1))
        return np.column_stack([linear, pairs, by_name, each])


@dataclass(frozen=True, eq=False)
class _Setting:
    """Hyperparameters with what they make of the observations.

    Attributes:
        spread: standard deviations of choices and of u.
        deviations: (p,) prior standard deviations of theta.
        unexplained: (n,) variances of u.
        whitened: Cholesky factor of the covariance of the observations.
        weights: (n,) the inverse covariance times the residuals.
        likelihood: logarithm of that of the observations, up to a constant.
    """

    spread: Spread
    deviations: FloatArray
    unexplained: FloatArray
    whitened: tuple[FloatArray, bool]
    weights: FloatArray
    likelihood: float


class Correction:
    """The posterior of a problem's corrections, given observations.

    Args:
        energies: of the problem.
        observed: the losses.
        spread: standard deviations of choices and of u, each a share; None: the likeliest are looked for.

    Example:
        >>> problem = ChoiceProblem.random(kind="separable", groups=3, choices=2, seed=0)
        >>> baseline, other = np.zeros(3, np.int64), np.array([[1, 0, 0]])
        >>> observed = Observations(baseline, other, np.array([9.0]), np.array([1e-6]))
        >>> corrected = Correction(EnergyTerms(problem), observed).problem()
        >>> bool(corrected.energy([1, 0, 0]) > problem.energy([1, 0, 0]))
        True
    """

    def __init__(self, energies: EnergyTerms, observed: Observations, spread: Spread | None = None) -> None:
        self.energies, self.base, self.observed = energies, energies.problem, observed
        self._start = energies.features(observed.baseline[None])[0]
        self.unit = max(abs(float(self._start[:2].sum())), 1e-12)
        self.least = LEAST_DEVIATION * self.unit / max(1, self.base.num_groups)
        self._design = self._features(observed.assignments)
        self._expected = self._design[:, 1:3].sum(axis=1)
        self._residuals = observed.differences - self._expected
        wanted = itertools.product(CHOICE_DEVIATIONS, UNEXPLAINED) if spread is None else (spread,)
        self._best = max((self._setting(*pair) for pair in wanted), key=lambda setting: setting.likelihood)

    @property
    def spread(self) -> Spread:
        """The standard deviations of choices and of u that were taken."""
        return self._best.spread

    def at_observed(self) -> FloatArray:
        """(n,) expected differences of the observed assignments, their own observations included."""
        best = self._best
        explained = self._design @ (best.deviations**2 * (self._design.T @ best.weights))
        return np.asarray(self._expected + explained + best.unexplained * best.weights) - self.baseline_luck

    @property
    def baseline_luck(self) -> float:
        """The expected difference of all losses that is due to the choice of examples, which favoured the baseline."""
        return self.observed.luck * float(self._best.weights.sum())

    def problem(self, rng: np.random.Generator | None = None) -> ChoiceProblem:
        """The corrected problem: of the posterior mean, or of a draw from the posterior.

        Args:
            rng: draws; None: the mean.
        """
        best, design = self._best, self._design
        theta = np.zeros(best.deviations.size)
        weights = best.weights
        if rng is not None:
            # Matheron's rule: a draw from the prior, corrected by the observations as the data are.
            theta = best.deviations * rng.standard_normal(theta.size)
            noise = rng.standard_normal(weights.size) * np.sqrt(best.unexplained + self.observed.variances)
            weights = linalg.cho_solve(best.whitened, self._residuals - design @ theta - noise)
        return self._corrected(theta + best.deviations**2 * (design.T @ weights), rng is not None)

    def _corrected(self, theta: FloatArray, drawn: bool) -> ChoiceProblem:
        base, energies = self.base, self.energies
        names, groups, choices = np.split(theta[3:], np.cumsum([energies.names, base.num_groups]))
        factors = 1.0 + theta[1] + names[energies.name_of] + groups[energies.group_of]
        linear = base.linear * factors + choices
        if drawn:
            # A draw may deny that a choice costs anything, but not call it a gain.
            linear = np.maximum(linear, np.minimum(base.linear, 0.0))
        scale = max(0.0, 1.0 + theta[2])
        factor = None if base.factor is None else base.factor * np.float32(np.sqrt(scale))
        pairs = None if base.pairs is None else base.pairs * scale
        return replace(base, linear=linear, factor=factor, pairs=pairs)

    def _features(self, assignments: IntArray) -> FloatArray:
        """(m, 3 + names + G + V) differences of the features: u(b), linear, pairs, names, groups, choices."""
        chosen = self.base.group_offsets[:-1] + assignments
        one_hot = np.zeros((len(assignments), self.base.num_choices))
        one_hot[np.repeat(np.arange(len(assignments)), self.base.num_groups), chosen.reshape(-1)] = 1.0
        one_hot[:, self.base.group_offsets[:-1] + self.observed.baseline] -= 1.0
        return np.column_stack([np.ones(len(assignments)), self.energies.features(assignments) - self._start, one_hot])

    def _setting(self, choice: float, unexplained: float) -> _Setting:
        observed = self.observed
        deviations = np.concatenate(
            [
                [
                    np.sqrt((unexplained * BASE_UNEXPLAINED * self.unit) ** 2 + observed.luck),
                    SCALE_DEVIATION,
                    SCALE_DEVIATION,
                ],
                np.full(self.energies.names + self.base.num_groups, choice),
                choice * (np.abs(self.base.linear) + self.least),
            ]
        )
        own = unexplained**2 * (observed.differences**2 + (BASE_UNEXPLAINED * self.unit) ** 2)
        scaled = self._design * deviations
        covariance = scaled @ scaled.T
        covariance[np.diag_indices_from(covariance)] += own + observed.variances
        whitened: tuple[npt.NDArray[np.float64], bool] = linalg.cho_factor(covariance, lower=True)
        weights = linalg.cho_solve(whitened, self._residuals)
        determinant = 2.0 * float(np.log(np.diag(whitened[0])).sum())
        likelihood = -0.5 * (float(self._residuals @ weights) + determinant)
        return _Setting((choice, unexplained), deviations, own, whitened, weights, likelihood)

"""How budgets enter a model without constraints.

Every treatment adds energies to the choices, and squares of linear forms that may include slack bits:

    sum_v linear[v] x[v] + 1/2 x . pairs x + constant + sum_s weight_s (costs_s . x + slack_s . z_s + offset_s)^2

A square is stored as its vectors, a form of rank one, and becomes couplings only when a model is built. The pairs are
priced pair costs; a square of a budget with pair costs would be of the fourth order, which no model here can hold.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress._internal.registry import Registry
from qubo_compress.encodings.quadratic import energy_spread
from qubo_compress.errors import InvalidBudget, UnsupportedProblem
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.pair_costs import priced_pair_costs


@dataclass(frozen=True, eq=False)
class Square:
    """weight * (costs . x + slack . z + offset)^2 for selections x and the square's own slack bits z.

    Attributes:
        weight: energy per squared unit.
        costs: (V,) coefficient of each choice.
        slack: (S,) coefficient of each slack bit; empty for none.
        offset: the constant term.
    """

    weight: float
    costs: FloatArray
    slack: FloatArray
    offset: float


@dataclass(frozen=True, eq=False)
class BudgetTerms:
    """The terms that a treatment adds to the energy of a problem.

    Attributes:
        linear: (V,) energy of each choice.
        constant: energy of every assignment.
        squares: at most one per budget.
        pairs: (V, V) symmetric energies of pairs of choices, or None.
    """

    linear: FloatArray
    constant: float = 0.0
    squares: tuple[Square, ...] = ()
    pairs: sparse.csr_array | None = None

    @property
    def num_slack_bits(self) -> int:
        """Number of slack bits in all squares together."""
        return sum(square.slack.size for square in self.squares)


class Treatment(ABC):
    """One way to write budgets without constraints: a frozen dataclass whose fields are its options."""

    name: ClassVar[str]

    @abstractmethod
    def terms(self, problem: ChoiceProblem) -> BudgetTerms:
        """The terms that it adds to this problem's energy."""


treatments: Registry[type[Treatment]] = Registry("budget treatment")


def make_treatment(name: str, options: dict[str, Any]) -> Treatment:
    """The named treatment with these options.

    Raises:
        UnknownName: when there is none of that name.
        InvalidBudget: when it has no such option.
    """
    kind = treatments.get(name)
    allowed = list(inspect.signature(kind).parameters)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise InvalidBudget(
            f"budget={name!r} has no option {unknown[0]!r}; it has: {', '.join(allowed) or 'none'}. "
            f"Treatments: {', '.join(treatments.names())}"
        )
    return kind(**options)


@treatments.register
@dataclass(frozen=True)
class Multiplier(Treatment):
    """Add multipliers . (totals - limits) to the energy: linear terms only, no couplings and no slack bits.

    Pair costs become couplings, of the pairs of choices that have them.

    The sampler must search for the multipliers; the default, zero, is right for budgets that do not bind.
    Any ground state is the optimum for the limits that its own totals would just meet; whether some
    multipliers have the optimum for the given limits as ground state depends on the problem.

    Args:
        multipliers: one non-negative price per budget, in energy per unit of cost.
    """

    name: ClassVar[str] = "multiplier"
    multipliers: npt.ArrayLike | None = None

    def terms(self, problem: ChoiceProblem) -> BudgetTerms:
        """Linear terms: each choice's cost times the price; pairs: the pair costs times the price.

        Raises:
            InvalidBudget: when the multipliers are not one non-negative number per budget.
        """
        given = np.zeros(problem.num_budgets) if self.multipliers is None else self.multipliers
        prices = np.asarray(given, dtype=np.float64)
        if prices.shape != (problem.num_budgets,) or not (np.isfinite(prices).all() and (prices >= 0).all()):
            raise InvalidBudget(
                f"multipliers must be {problem.num_budgets} non-negative numbers, one per budget; "
                f"got {self.multipliers!r}"
            )
        constant = float(prices @ (problem.fixed_costs - problem.limits))
        return BudgetTerms(prices @ problem.costs, constant, pairs=priced_pair_costs(problem, prices))


@treatments.register
@dataclass(frozen=True)
class NoTreatment(Treatment):
    """``"none"``: leave the budgets out of the model."""

    name: ClassVar[str] = "none"

    def terms(self, problem: ChoiceProblem) -> BudgetTerms:
        """No terms: the model ignores the budgets."""
        return BudgetTerms(np.zeros(problem.num_choices))


DEFAULT_SHARE = 0.1
"""Default weights of squares, as a share of a weight proven to suffice or of the range of energies."""

LARGEST_SLACK_BITS = 32
"""Most slack bits per budget: beyond, the square of the largest slack leaves no float64 digits for energies."""


@treatments.register
@dataclass(frozen=True)
class Slack(Treatment):
    """Add weight * (spent + slack - room)^2, where slack bits fill up what is not spent: zero if within budget.

    The cost of the cheapest choices is subtracted from spending and room first. Then both are divided by ``unit``,
    costs rounded **up** and the room **down**, so that what fits in units really fits. Rounding never exceeds a budget,
    but if the unit is above the common divisor of the costs, an assignment that just fits may count as too large, by at
    most one unit per group. Slack bits are worth 1, 2, 4, ..., the last one the remainder, and reach exactly from 0 to
    the largest slack. A budget that even the most expensive choices meet adds nothing.

    If every assignment's energy is above the optimum by less than ``weight`` (see :func:`slack_weight`), the unit
    divides all costs, ``lower=0`` and penalties keep groups valid, then the ground state is the optimum within the
    budgets.

    Args:
        weight: energy per squared unit, one number or one per budget. Default: a tenth of the proven weight, divided by
            the largest slack in units. That suits samplers, but a few units may be overspent.
        unit: cost per unit, one integer or one per budget. Default: the smallest multiple of the costs' common divisor
            with which the slack takes at most ``bits`` bits.
        lower: share of the room, in [0, 1), that is assumed to be spent anyway. Slack covers only the rest, which saves
            bits; assignments that spend less are penalised like those that spend too much.
        bits: most slack bits per budget if ``unit`` is not given.
    """

    name: ClassVar[str] = "slack"
    weight: npt.ArrayLike | None = None
    unit: npt.ArrayLike | None = None
    lower: float = 0.0
    bits: int = 10

    def terms(self, problem: ChoiceProblem) -> BudgetTerms:
        """One square per budget that binds.

        Raises:
            InvalidBudget: for options out of range, or a budget that no assignment meets.
            UnsupportedProblem: for a budget with pair costs, if it binds.
        """
        if not 0.0 <= self.lower < 1.0 or not 1 <= self.bits <= LARGEST_SLACK_BITS:
            raise InvalidBudget(
                f"lower must be in [0, 1) and bits from 1 to {LARGEST_SLACK_BITS}; got {self.lower} and {self.bits}"
            )
        units = None if self.unit is None else _per_budget("unit", self.unit, problem, positive=True)
        weights = None if self.weight is None else _per_budget("weight", self.weight, problem)
        spread = DEFAULT_SHARE * slack_weight(problem) if weights is None and problem.num_budgets else 0.0
        squares = []
        for b in range(problem.num_budgets):
            above, room, most = _above_cheapest(problem, b)
            if most <= room:
                continue
            unit = self._default_unit(above, room) if units is None else max(1, int(units[b]))
            scaled, largest = -(-above // unit), room // unit
            slack = _slack_values(largest - int(self.lower * largest))
            weight = spread / max(1, int(slack.sum())) if weights is None else float(weights[b])
            squares.append(Square(weight, scaled.astype(np.float64), slack.astype(np.float64), float(-largest)))
        return BudgetTerms(np.zeros(problem.num_choices), squares=tuple(squares))

    def _default_unit(self, above: IntArray, room: int) -> int:
        divisor = max(1, int(np.gcd.reduce(above)))
        whole = room // divisor
        multiple: int = max(1, -(-(whole - int(self.lower * whole)) // (2**self.bits - 1)))
        while (largest := whole // multiple) - int(self.lower * largest) >= 2**self.bits:
            multiple += 1
        return divisor * multiple


@treatments.register
@dataclass(frozen=True)
class Unbalanced(Treatment):
    """Add -l1 h + l2 h^2 with h = (limit - total) / span: no slack bits, cheap within budget and expensive beyond.

    The second-order expansion of exp(-h) by Montanez-Barrera et al., arXiv 2211.13914. The span is the total of the
    most expensive choices less that of the cheapest, so h is a share and both weights are energies. The term is not
    zero for feasible assignments: it rewards them by up to l1^2 / (4 l2), most at h = l1 / (2 l2).

    The ground state need not be the optimum. It is within budget if no feasible assignment is penalised and one unit
    too much costs more than the range of energies (see :func:`unbalanced_weights`).

    Args:
        weights: (l1, l2), or one such pair per budget, not negative. Default: l1 is half of the largest range of
            energies, and l2 twice that.
    """

    name: ClassVar[str] = "unbalanced"
    weights: npt.ArrayLike | None = None

    def terms(self, problem: ChoiceProblem) -> BudgetTerms:
        """Linear terms and one square per budget that binds.

        Raises:
            InvalidBudget: for weights of another shape or negative ones.
            UnsupportedProblem: for a budget with pair costs, if it binds.
        """
        count = problem.num_budgets
        if self.weights is None:
            spread = energy_spread(problem) if count else 0.0
            given = np.array([0.5 * spread, spread])
        else:
            given = np.asarray(self.weights, dtype=np.float64)
        if given.shape not in ((2,), (count, 2)) or not (np.isfinite(given).all() and (given >= 0).all()):
            raise InvalidBudget(
                f"weights must be two non-negative numbers, or two for each of {count} budgets; got {self.weights!r}"
            )
        linear, constant, squares = np.zeros(problem.num_choices), 0.0, []
        for b, (first, second) in enumerate(np.broadcast_to(given, (count, 2))):
            above, room, most = _above_cheapest(problem, b)
            if most <= room:
                continue
            shares, share = above / most, room / most
            linear += first * shares
            constant -= first * share
            squares.append(Square(float(second), shares, np.zeros(0), -share))
        return BudgetTerms(linear, constant, tuple(squares))


def slack_weight(problem: ChoiceProblem) -> float:
    """A weight for ``slack`` at which one unit too much costs more than any assignment can gain from it."""
    return 1.001 * energy_spread(problem) + 1e-9


def unbalanced_weights(problem: ChoiceProblem) -> FloatArray:
    """(B, 2) weights for ``unbalanced`` at which every valid ground state is within budget, if any assignment is.

    For each budget, l1 h exceeds the range of energies where h is one cost over, and l2 is l1 divided by the largest h,
    so that nothing within budget is penalised. This is proven for one budget that binds: with several, the reward of
    one can pay for exceeding another.
    """
    found = np.zeros((problem.num_budgets, 2))
    spans = [_above_cheapest(problem, b) for b in range(problem.num_budgets)]
    for b, (_, room, most) in enumerate(spans):
        if most > room:
            step = slack_weight(problem) * most
            found[b] = step, step * most / max(1, room)
    return found


def _above_cheapest(problem: ChoiceProblem, budget: int) -> tuple[IntArray, int, int]:
    """Costs above each group's cheapest choice, the room for them, and the most that they can total.

    Raises:
        InvalidBudget: when there is no room even for the cheapest choices.
        UnsupportedProblem: when the budget has pair costs and may bind.
    """
    paired = problem.pair_costs is not None and problem.pair_costs[budget] is not None
    linear = problem.without_pair_costs("most") if paired else problem
    starts, costs = problem.group_offsets[:-1], linear.costs[budget]
    least = np.minimum.reduceat(costs, starts)
    room = int(linear.limits[budget] - linear.fixed_costs[budget] - least.sum())
    if paired and np.maximum.reduceat(costs, starts).sum() > room + least.sum():
        raise UnsupportedProblem(
            f"the square of the budget {problem.budget_names[budget]!r} would be of the fourth order, because it has "
            "pair costs. Use budget='multiplier', whose prices make them couplings, or to_cqm or to_nonlinear, which "
            "hold them as they are"
        )
    if room < 0:
        raise InvalidBudget(
            f"no assignment meets the budget {problem.budget_names[budget]!r}: the smallest total is "
            f"{int(problem.limits[budget]) - room}, and {int(problem.limits[budget])} are allowed"
        )
    above = costs - np.repeat(least, problem.group_sizes)
    return above, room, int(np.maximum.reduceat(above, starts).sum())


def _slack_values(largest: int) -> IntArray:
    """Values of slack bits that together reach every integer from 0 to ``largest``, and none beyond."""
    count = largest.bit_length()
    values = 2 ** np.arange(count, dtype=np.int64)
    if count:
        values[-1] = largest - (2 ** (count - 1) - 1)
    return values


def _per_budget(name: str, given: npt.ArrayLike, problem: ChoiceProblem, positive: bool = False) -> FloatArray:
    """A setting as one number per budget.

    Raises:
        InvalidBudget: for other shapes and numbers.
    """
    values = np.asarray(given, dtype=np.float64)
    whole = not positive or ((values >= 1).all() and np.array_equal(values, np.rint(values)))
    if values.shape not in ((), (problem.num_budgets,)) or not (
        np.isfinite(values).all() and (values >= 0).all() and whole
    ):
        raise InvalidBudget(
            f"{name} must be one {'positive integer' if positive else 'non-negative number'} or one per budget "
            f"({problem.num_budgets}); got {given!r}"
        )
    return np.broadcast_to(values, problem.num_budgets)

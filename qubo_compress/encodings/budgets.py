"""How budgets enter a model that knows no constraints.

Every treatment adds energies to the choices and squares of linear forms, which may include slack bits:

    sum_v linear[v] x[v] + constant + sum_s weight_s (costs_s . x + slack_s . z_s + offset_s)^2

A square is kept as its vectors, a form of rank one, and becomes couplings only where a model is built.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from qubo_compress.errors import InvalidBudget
from qubo_compress.problem import ChoiceProblem, FloatArray
from qubo_compress.registry import Registry


@dataclass(frozen=True, eq=False)
class Square:
    """weight * (costs . x + slack . z + offset)^2 for selections x and slack bits z of its own.

    Attributes:
        weight: energy per squared unit.
        costs: (V,) what each choice adds.
        slack: (S,) what each slack bit adds; empty for none.
        offset: what stands beside them.
    """

    weight: float
    costs: FloatArray
    slack: FloatArray
    offset: float


@dataclass(frozen=True, eq=False)
class BudgetTerms:
    """What a treatment adds to the energy of a problem.

    Attributes:
        linear: (V,) energy of each choice.
        constant: energy of every assignment.
        squares: at most one per budget.
    """

    linear: FloatArray
    constant: float = 0.0
    squares: tuple[Square, ...] = ()

    @property
    def num_slack_bits(self) -> int:
        """Slack bits of all squares together."""
        return sum(square.slack.size for square in self.squares)


class Treatment(Protocol):
    """One way to write budgets without constraints: a frozen dataclass whose fields are its options."""

    name: ClassVar[str]

    def terms(self, problem: ChoiceProblem) -> BudgetTerms:
        """What it adds to this problem's energy."""
        ...


treatments: Registry[type[Treatment]] = Registry("budget treatment")


def make_treatment(name: str, options: dict[str, Any]) -> Treatment:
    """A treatment of that name with these options.

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


@treatments.register("multiplier")
@dataclass(frozen=True)
class Multiplier:
    """Add multipliers . (totals - limits) to the energy: linear terms only, no couplings and no slack bits.

    The search for multipliers is the sampler's; zero, the default, is right for budgets that do not bind.
    Any ground state is the optimum for the limits that its own totals would just meet; whether some
    multipliers have the optimum for the given limits as ground state depends on the problem.

    Args:
        multipliers: one non-negative price per budget, in energy per unit of cost.
    """

    name: ClassVar[str] = "multiplier"
    multipliers: npt.ArrayLike | None = None

    def terms(self, problem: ChoiceProblem) -> BudgetTerms:
        """Prices of the choices.

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
        return BudgetTerms(prices @ problem.costs, float(prices @ (problem.fixed_costs - problem.limits)))


@treatments.register("none")
@dataclass(frozen=True)
class NoTreatment:
    """Leave the budgets out."""

    name: ClassVar[str] = "none"

    def terms(self, problem: ChoiceProblem) -> BudgetTerms:
        """Nothing."""
        return BudgetTerms(np.zeros(problem.num_choices))

"""The constraints of a dimod model as rules with exact numbers, and the groups that some of them state."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import dimod
import numpy as np

from qubo_compress._internal.reader import printable
from qubo_compress.encodings.whole_costs import as_fraction, common_unit
from qubo_compress.errors import InvalidProblem
from qubo_compress.problem.choice_problem import IntArray


@dataclass(frozen=True, eq=False)
class Rule:
    """A constraint: coefficients of variables and of pairs of them, in whole units.

    Attributes:
        label: of the constraint.
        columns: (K,) numbers of its variables, without those of coefficient zero.
        coefficients: (K,) their integer coefficients, without a common divisor.
        ends: (2, P) numbers of the two variables of every product.
        products: (P,) integer coefficients of the products.
        least: smallest allowed total, in the same unit; None for any.
        most: largest allowed total; None for any.
    """

    label: Hashable
    columns: IntArray
    coefficients: IntArray
    ends: IntArray
    products: IntArray
    least: int | None
    most: int | None

    @property
    def one_of(self) -> str | None:
        """``"one"`` or ``"at most one"`` if this is what it says of its variables, where they are binary; else None."""
        if self.products.size or not self.columns.size or np.unique(self.coefficients).size > 1:
            return None
        # Equal coefficients are 1 or -1, because they have no common divisor.
        bounds = self.bounds if self.coefficients[0] > 0 else self.negated
        if bounds == (1, 1):
            return "one"
        return "at most one" if bounds == (None, 1) else None

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """Smallest and largest allowed total."""
        return self.least, self.most

    @property
    def negated(self) -> tuple[int | None, int | None]:
        """Smallest and largest allowed total with all signs turned."""
        return None if self.most is None else -self.most, None if self.least is None else -self.least


def rules_of(cqm: dimod.ConstrainedQuadraticModel) -> list[Rule]:
    """All constraints of a model, in its order.

    Raises:
        InvalidProblem: for a soft constraint, and for coefficients that are not finite or not multiples of one unit.
    """
    number = {label: i for i, label in enumerate(cqm.variables)}
    return [_rule(label, constraint, number) for label, constraint in cqm.constraints.items()]


def shown(label: Hashable) -> str:
    """A label in a message: printable and of bounded length."""
    return printable(repr(label))


def _rule(label: Hashable, constraint: Any, number: dict[Hashable, int]) -> Rule:
    left = constraint.lhs
    if left.is_soft():
        raise InvalidProblem(
            f"the constraint {shown(label)} is soft (weight {left.weight():g}), and a budget is never exceeded; add it "
            "without a weight, or its penalty to the objective"
        )
    try:
        linear = [(number[v], as_fraction(bias)) for v, bias in left.iter_linear() if bias]
        quadratic = [(number[u], number[v], as_fraction(bias)) for u, v, bias in left.iter_quadratic() if bias]
        right = as_fraction(constraint.rhs) - as_fraction(left.offset)
        unit = common_unit([*(value for _, value in linear), *(value for _, _, value in quadratic)])
    except ValueError as cause:
        raise InvalidProblem(f"the constraint {shown(label)} cannot become a budget: {cause}") from cause
    sense, total = constraint.sense.name, right / unit
    return Rule(
        label=label,
        columns=np.array([i for i, _ in linear], dtype=np.int64),
        coefficients=np.array([int(value / unit) for _, value in linear], dtype=np.int64),
        ends=np.array([(i, j) for i, j, _ in quadratic], dtype=np.int64).reshape(-1, 2).T,
        products=np.array([int(value / unit) for _, _, value in quadratic], dtype=np.int64),
        least=None if sense == "Le" else math.ceil(total),
        most=None if sense == "Ge" else math.floor(total),
    )

"""Which groups the variables of a dimod model form, and the value of every variable in every choice."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import dimod
import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.encodings.linear_rules import Rule, shown
from qubo_compress.encodings.quadratic import LARGEST_COUPLINGS
from qubo_compress.errors import InfeasibleBudget, InvalidProblem, ProblemTooLarge
from qubo_compress.problem.choice_problem import IntArray

MOST_VALUES = 1024
"""Most values of an integer variable: each becomes a choice."""


@dataclass(frozen=True)
class ModelGroup:
    """Choices of which a sample has exactly one.

    Attributes:
        name: of the constraint or of the variable.
        choices: what the choices are called.
        columns: the variable that each choice gives a value; all others of the group are 0.
        values: that value; 0 for a choice that leaves all variables at 0.
    """

    name: Hashable
    choices: tuple[Hashable, ...]
    columns: tuple[int, ...]
    values: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class VariableValues:
    """The value of every variable where a choice is selected.

    Attributes:
        offsets: (G + 1,) first choice of each group.
        values: (V, N) sparse integers.
        group_of: (N,) the group of each variable.
    """

    offsets: IntArray
    values: sparse.csr_array
    group_of: IntArray

    @classmethod
    def of(cls, groups: list[ModelGroup], variables: int) -> VariableValues:
        """The grid of groups that together have every variable."""
        sizes = np.array([len(group.choices) for group in groups])
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        columns = np.array([column for group in groups for column in group.columns], dtype=np.int64)
        values = np.array([value for group in groups for value in group.values], dtype=np.int64)
        group_of = np.zeros(variables, dtype=np.int64)
        group_of[columns] = np.repeat(np.arange(sizes.size), sizes)
        set_ = np.flatnonzero(values)
        shape = (columns.size, variables)
        return cls(offsets, sparse.csr_array((values[set_], (set_, columns[set_])), shape=shape), group_of)

    def linear(self, coefficients: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(V,) what each choice adds to a linear form with (N,) coefficients."""
        return np.asarray(self.values @ coefficients)

    def quadratic(self, ends: IntArray, coefficients: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], sparse.csr_array]:
        """What choices alone, (V,), and pairs of them, (V, V), add to a sum of products of two variables.

        Args:
            ends: (2, P) the two variables of each product.
            coefficients: (P,) of the products.

        Raises:
            ProblemTooLarge: for more pairs than can be built.
        """
        count = np.bincount(self.values.indices, minlength=self.values.shape[1]).astype(np.float64)
        if float(count[ends[0]] @ count[ends[1]]) > LARGEST_COUPLINGS:
            raise ProblemTooLarge(
                f"the products of the model's variables would become {int(count[ends[0]] @ count[ends[1]]):,} pairs of "
                f"choices; at most {LARGEST_COUPLINGS:,} are built. Give integer variables fewer values"
            )
        half = sparse.csr_array((coefficients, (ends[0], ends[1])), shape=(self.values.shape[1],) * 2)
        both = (self.values @ (half + half.T) @ self.values.T).tocoo()
        group = np.repeat(np.arange(self.offsets.size - 1), np.diff(self.offsets))
        alone = np.zeros(self.values.shape[0], dtype=both.dtype)
        own = both.row == both.col
        alone[both.row[own]] = both.data[own] / 2 if both.dtype.kind == "f" else both.data[own] // 2
        apart = (group[both.row] != group[both.col]) & (both.data != 0)
        places = (both.row[apart], both.col[apart])
        return alone, sparse.csr_array((both.data[apart], places), shape=both.shape)


def groups_of(cqm: dimod.ConstrainedQuadraticModel, rules: list[Rule]) -> tuple[list[ModelGroup], list[Rule]]:
    """The groups of a model, ordered by their first variables, and the rules that are not yet met by them.

    Raises:
        InvalidProblem: for variables without a moderate number of values.
        InfeasibleBudget: for an integer variable that no value is left for.
    """
    labels = list(cqm.variables)
    free = np.array([cqm.vartype(label) is dimod.BINARY for label in labels])
    groups, met = [], set()
    for rule in sorted((rule for rule in rules if rule.one_of), key=lambda rule: _rank(rule, cqm)):
        if not free[rule.columns].all():
            continue
        free[rule.columns] = False
        met.add(id(rule))
        groups.append(_selection(rule, labels))
    taken = {column for group in groups for column in group.columns}
    bounds = {i: (math.ceil(cqm.lower_bound(v)), math.floor(cqm.upper_bound(v))) for i, v in enumerate(labels)
              if i not in taken and cqm.vartype(v) is dimod.INTEGER}  # fmt: skip
    for rule in rules:
        if rule.columns.size == 1 and not rule.products.size and (column := int(rule.columns[0])) in bounds:
            bounds[column] = _within(bounds[column], rule)
            met.add(id(rule))
    groups += [_values(cqm, i, label, bounds.get(i)) for i, label in enumerate(labels) if i not in taken]
    return sorted(groups, key=lambda group: min(group.columns)), [rule for rule in rules if id(rule) not in met]


def _rank(rule: Rule, cqm: dimod.ConstrainedQuadraticModel) -> int:
    """Which rules become groups first: what the model calls discrete, then those that leave no variables at 0."""
    return 0 if rule.label in cqm.discrete else 1 if rule.one_of == "one" else 2


def _selection(rule: Rule, labels: list[Hashable]) -> ModelGroup:
    """The group of binary variables of which one is 1, or none."""
    columns = tuple(rule.columns.tolist())
    choices, values = tuple(labels[i] for i in columns), (1,) * len(columns)
    if rule.one_of == "one":
        return ModelGroup(rule.label, choices, columns, values)
    return ModelGroup(rule.label, ("none", *choices), (columns[0], *columns), (0, *values))


def _within(bounds: tuple[int, int], rule: Rule) -> tuple[int, int]:
    """The bounds of a variable and of a rule on it alone, whose coefficient is 1 or -1."""
    least, most = rule.bounds if rule.coefficients[0] > 0 else rule.negated
    return max(bounds[0], bounds[0] if least is None else least), min(bounds[1], bounds[1] if most is None else most)


def _values(
    cqm: dimod.ConstrainedQuadraticModel, column: int, label: Hashable, bounds: tuple[int, int] | None
) -> ModelGroup:
    """The group of one variable's values."""
    kind = cqm.vartype(label)
    if kind is dimod.BINARY or kind is dimod.SPIN:
        values = (0, 1) if kind is dimod.BINARY else (-1, 1)
        return ModelGroup(label, values, (column, column), values)
    if bounds is None:
        raise InvalidProblem(
            f"the variable {shown(label)} is real, and a group has a choice for each of its values; make it an "
            "integer, for example of hundredths"
        )
    least, most = bounds
    if least > most:
        raise InfeasibleBudget(
            f"it is proven that nothing fits: the integer {shown(label)} would have to be at least {least} and at most "
            f"{most}"
        )
    if most - least >= MOST_VALUES:
        raise InvalidProblem(
            f"the integer {shown(label)} goes from {least} to {most}, and at most {MOST_VALUES} values become choices; "
            "set tighter bounds with cqm.set_lower_bound and cqm.set_upper_bound, or count in a larger unit"
        )
    span = tuple(range(least, most + 1))
    return ModelGroup(label, span, (column,) * len(span), span)

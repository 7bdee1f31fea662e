"""A dimod constrained quadratic model as a choice problem: discrete variables are groups, constraints are budgets."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import NamedTuple

import dimod
import numpy as np
from scipy import sparse

from qubo_compress.encodings.linear_rules import Rule, rules_of, shown
from qubo_compress.encodings.model_groups import MOST_VALUES, VariableValues, groups_of
from qubo_compress.encodings.model_samples import ModelSamples, unique_names
from qubo_compress.encodings.quadratic import LARGEST_COUPLINGS
from qubo_compress.errors import InvalidProblem, ProblemTooLarge
from qubo_compress.problem.checks import LARGEST_TOTAL
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.pair_costs import largest_pair_totals

__all__ = ["MOST_COSTS", "MOST_VALUES", "from_cqm"]

MOST_COSTS = 2**26
"""Most costs of all choices under all budgets: half a gigabyte."""


class _Budget(NamedTuple):
    name: Hashable
    costs: IntArray
    limit: int
    fixed: int
    pair_costs: sparse.csr_array | None


def from_cqm(cqm: dimod.ConstrainedQuadraticModel) -> tuple[ChoiceProblem, ModelSamples]:
    """A choice problem with the model's energies and feasible samples, and its inverse.

    Groups are, in this order, as far as they do not overlap: discrete constraints, other constraints that exactly one
    of some binary variables is 1, and constraints that at most one is, which get a choice ``none``. Every other
    variable is a group of its values: 0 and 1, -1 and 1, or the integers within its bounds (and within constraints on
    this variable alone). Groups are ordered by their first variables and named after their constraint or variable.

    All other constraints become budgets of the same name: ``>=`` with the signs turned, ``==`` as two budgets, of which
    the second one's name ends with ``>=``. Products of variables become pair costs. Constraints that every assignment
    meets are left out. Coefficients are brought to integers exactly, where 0.1 counts as 1/10 and 0.1 + 0.2, which is
    not 0.3 in float64, as 3/10; costs are counted from the least of each group, and the rest is a fixed cost, which may
    be negative. So a total is the constraint's left side in its unit. Nothing is tolerated, whereas dimod allows a
    violation of 1e-6 of the right side.

    Args:
        cqm: the model.

    Returns:
        The problem, and an object that translates its assignments to samples of the model, and back.

    Raises:
        InfeasibleBudget: for an integer variable that its bounds and constraints leave no value.
        InvalidProblem: for real variables, integers with more than :data:`MOST_VALUES` values, soft constraints,
            and coefficients that are not finite or that have no common unit; names the variable or
            constraint.
        ProblemTooLarge: for more couplings or costs than can be built; found before any is built.

    Example:
        >>> cqm = dimod.ConstrainedQuadraticModel()
        >>> x, y, z = dimod.Binaries(["x", "y", "z"])
        >>> cqm.set_objective(-2 * x - 3 * y - 2 * z + 2 * x * z)
        >>> cqm.add_constraint(x + y == 1, label="one of two")
        'one of two'
        >>> cqm.add_constraint(0.5 * x + 1.5 * y + z <= 2, label="weight")
        'weight'
        >>> problem, samples = from_cqm(cqm)
        >>> problem.group_names, problem.choice_names, problem.costs.tolist(), problem.limits.tolist()
        (('one of two', 'z'), ('x', 'y', '0', '1'), [[0, 2, 0, 2]], [4])
        >>> problem.energy([1, 0]), samples([1, 0])
        (-3.0, {'x': 0, 'y': 1, 'z': 0})
    """
    if not isinstance(cqm, dimod.ConstrainedQuadraticModel):
        raise InvalidProblem(
            f"from_cqm takes a dimod.ConstrainedQuadraticModel; got {type(cqm).__name__}. There is from_dqm for "
            "discrete models, and ConstrainedQuadraticModel.from_bqm"
        )
    if not cqm.num_variables():
        raise InvalidProblem("the model has no variables, so there is nothing to choose")
    labels = tuple(cqm.variables)
    groups, rules = groups_of(cqm, rules_of(cqm))
    values = VariableValues.of(groups, len(labels))
    linear, pairs = _objective(cqm, values)
    budgets = _budgets(rules, values)
    problem = ChoiceProblem(
        linear=linear,
        group_offsets=values.offsets,
        costs=np.array([budget.costs for budget in budgets], dtype=np.int64).reshape(len(budgets), linear.size),
        limits=np.array([budget.limit for budget in budgets], dtype=np.int64),
        fixed_costs=np.array([budget.fixed for budget in budgets], dtype=np.int64),
        pair_costs=tuple(budget.pair_costs for budget in budgets),
        pairs=pairs if pairs.nnz else None,
        group_names=unique_names(group.name for group in groups),
        choice_names=tuple(name for group in groups for name in unique_names(group.choices)),
        budget_names=unique_names(budget.name for budget in budgets),
        constant=float(cqm.objective.offset),
    )
    return problem, ModelSamples(problem, labels, values.values, values.group_of)


def _objective(cqm: dimod.ConstrainedQuadraticModel, values: VariableValues) -> tuple[FloatArray, sparse.csr_array]:
    """(V,) energies of choices and (V, V) of pairs of them."""
    number = {label: i for i, label in enumerate(cqm.variables)}
    biases = np.zeros(len(number))
    for label, bias in cqm.objective.iter_linear():
        biases[number[label]] = bias
    terms = [(number[u], number[v], bias) for u, v, bias in cqm.objective.iter_quadratic()]
    ends = np.array([(i, j) for i, j, _ in terms], dtype=np.int64).reshape(-1, 2).T
    alone, pairs = values.quadratic(ends, np.array([bias for _, _, bias in terms], dtype=np.float64))
    return values.linear(biases) + alone, pairs


def _budgets(rules: list[Rule], values: VariableValues) -> list[_Budget]:
    """The budgets of all rules, without those that every assignment meets."""
    total, found, pairs = values.values.shape[0], [], 0
    for rule in rules:
        for budget in _budgets_of(rule, values):
            found.append(budget)
            pairs += 0 if budget.pair_costs is None else budget.pair_costs.nnz
            if len(found) * total > MOST_COSTS or pairs > LARGEST_COUPLINGS:
                raise ProblemTooLarge(
                    f"the constraints up to {shown(rule.label)} are {len(found):,} budgets for {total:,} choices with "
                    f"{pairs:,} pair costs, and at most {MOST_COSTS:,} costs and {LARGEST_COUPLINGS:,} pair costs are "
                    "built; state fewer constraints, or mark discrete ones with add_discrete"
                )
    return found


def _budgets_of(rule: Rule, values: VariableValues) -> Iterator[_Budget]:
    """One budget for each end of the allowed range that some assignment may be beyond."""
    totals, pairs = _totals(rule, values)
    if rule.most is not None:
        yield from _budget(rule.label, totals, pairs, rule.most, values.offsets)
    if rule.least is not None:
        name = rule.label if rule.most is None else f"{rule.label} >="
        yield from _budget(name, -totals, -pairs, -rule.least, values.offsets)


def _totals(rule: Rule, values: VariableValues) -> tuple[IntArray, sparse.csr_array]:
    """(V,) what each choice adds to a rule's total, in its unit, and (V, V) each pair of choices.

    Raises:
        InvalidProblem: when the totals exceed 2**52.
    """
    coefficients = np.zeros(values.values.shape[1], dtype=np.int64)
    coefficients[rule.columns] = rule.coefficients
    _refuse_large(rule, values, np.abs(coefficients.astype(np.float64)))
    alone, pairs = values.quadratic(rule.ends, rule.products)
    return np.asarray(values.linear(coefficients) + alone, dtype=np.int64), pairs


def _refuse_large(rule: Rule, values: VariableValues, sizes: FloatArray) -> None:
    """Raise :class:`InvalidProblem` if a rule's totals may be too large to be counted exactly."""
    reach = np.zeros(sizes.size)
    np.maximum.at(reach, values.values.indices, np.abs(values.values.data.astype(np.float64)))
    first, second = rule.ends
    largest = reach @ sizes + (reach[first] * reach[second]) @ np.abs(rule.products.astype(np.float64))
    if largest > LARGEST_TOTAL / 2:
        raise InvalidProblem(
            f"the constraint {shown(rule.label)} cannot become a budget: its left side may exceed 2**52 of the unit of "
            "its coefficients, and that cannot be counted exactly. Round them, for example to three decimals"
        )


def _budget(
    name: Hashable, totals: IntArray, pairs: sparse.csr_array, most: int, offsets: IntArray
) -> Iterator[_Budget]:
    """The budget that totals are at most ``most``; nothing if they certainly are."""
    pair_costs = pairs if pairs.nnz else None
    least = np.minimum.reduceat(totals, offsets[:-1])
    beyond = 0.0 if pair_costs is None else float(largest_pair_totals((pair_costs,), offsets)[0])
    if int(np.maximum.reduceat(totals, offsets[:-1]).sum()) + beyond > most:
        limit = max(most, -LARGEST_TOTAL)
        yield _Budget(name, totals - np.repeat(least, np.diff(offsets)), limit, int(least.sum()), pair_costs)

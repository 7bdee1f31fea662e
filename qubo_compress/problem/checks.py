"""Checks of a choice problem's fields, and their conversion to arrays of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.errors import InvalidProblem
from qubo_compress.problem.pair_costs import PairCosts, largest_pair_totals

if TYPE_CHECKING:
    from qubo_compress.problem.choice_problem import ChoiceProblem, FactorArray, FloatArray, IntArray


def read_vector(name: str, given: Any, dtype: Any) -> npt.NDArray[Any]:
    """The values as an array of one axis; anything else is refused."""
    array = np.array(given, dtype=None)
    if array.ndim != 1:
        raise InvalidProblem(f"{name} has shape {array.shape}; it must have one axis")
    return converted(name, array, dtype)


def converted(name: str, array: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    """An array of the given type; floats are never rounded to integers."""
    if np.issubdtype(dtype, np.integer) and array.size and not np.issubdtype(array.dtype, np.integer):
        raise InvalidProblem(f"{name} must hold integers; got {array.dtype}. Scale and round them yourself")
    if not (np.issubdtype(array.dtype, np.number) or array.size == 0):
        raise InvalidProblem(f"{name} must hold numbers; got {array.dtype}")
    return np.ascontiguousarray(array, dtype=dtype)


def check_offsets(offsets: IntArray, total: int) -> None:
    """Refuse groups that are empty, or do not cover the choices."""
    if offsets.size < 2 or offsets[0] != 0 or offsets[-1] != total:
        raise InvalidProblem(
            f"group_offsets must begin with 0 and end with the number of choices, {total}; got {offsets.tolist()[:8]}"
        )
    if (np.diff(offsets) < 1).any():
        raise InvalidProblem(f"group {int(np.argmax(np.diff(offsets) < 1))} is empty; every group needs a choice")


def check_budgets(costs: Any, limits: Any, fixed: Any, total: int) -> tuple[IntArray, IntArray, IntArray]:
    """Costs (B, V), limits (B,) and fixed costs (B,) as integers."""
    limit_array = read_vector("limits", limits, np.int64)
    raw = np.array(costs)
    cost_array = converted("costs", raw.reshape(0, total) if raw.size == 0 else raw, np.int64)
    if cost_array.shape != (limit_array.size, total):
        raise InvalidProblem(
            f"costs must have shape (budgets, choices) = ({limit_array.size}, {total}); got {cost_array.shape}"
        )
    fixed_array = np.zeros_like(limit_array) if fixed is None else read_vector("fixed_costs", fixed, np.int64)
    if fixed_array.shape != limit_array.shape:
        raise InvalidProblem(f"fixed_costs must have shape {limit_array.shape}; got {fixed_array.shape}")
    if (cost_array < 0).any():
        raise InvalidProblem("costs must not be negative")
    return cost_array, limit_array, fixed_array


def check_sums(diagonal: FloatArray, offsets: IntArray, pairs: sparse.csr_array | None) -> None:
    """Refuse energies whose sums overflow double precision."""
    with np.errstate(over="ignore", invalid="ignore"):
        largest = np.maximum.reduceat(np.abs(diagonal), offsets[:-1]).sum()
        coupled = 0.0 if pairs is None else np.abs(pairs.data).sum()
    if not np.isfinite(largest + coupled):
        raise InvalidProblem(
            "energies of assignments overflow: they must be below 1e308. Give the loss in a larger unit"
        )


LARGEST_TOTAL = 2**53
"""Totals up to here are exact in double precision, which prices and integer programs use."""


def check_totals(
    costs: IntArray, limits: IntArray, fixed: IntArray, offsets: IntArray, pair_costs: PairCosts | None = None
) -> None:
    """Refuse budgets whose totals could overflow, or be rounded by solvers that use floats."""
    most_expensive = np.maximum.reduceat(costs.astype(np.float64), offsets[:-1], axis=1).sum(axis=1)
    if pair_costs is not None:
        most_expensive = most_expensive + largest_pair_totals(pair_costs, offsets)
    for budget, total in enumerate((most_expensive + np.abs(fixed.astype(np.float64))).tolist()):
        if total > LARGEST_TOTAL:
            raise InvalidProblem(
                f"the costs of budget {budget} sum to as much as {total:.4g}; at most 2**53 = {LARGEST_TOTAL} can be "
                "added exactly. Count in a larger unit, such as bytes instead of bits"
            )
    beyond = np.flatnonzero(np.abs(limits.astype(np.float64)) > 2.0**62)
    if beyond.size:
        raise InvalidProblem(
            f"limits[{int(beyond[0])}] is {int(limits[beyond[0]])}; limits lie between -2**62 and 2**62. No total "
            "exceeds 2**53, so that is a limit that never binds"
        )


def check_factor(given: Any, total: int) -> FactorArray:
    """The factor's rows in single precision; shared with the caller's array if possible."""
    factor = np.asarray(given)
    if factor.ndim != 2 or factor.shape[0] != total:
        raise InvalidProblem(f"factor must have shape ({total}, rank); got {factor.shape}")
    # A read-only contiguous float32 array is shared, not copied: factors are the largest arrays here.
    if factor.dtype != np.float32 or factor.flags.writeable or not factor.flags.c_contiguous:
        factor = np.array(factor, dtype=np.float32, order="C")
    if not np.isfinite(factor).all():
        raise InvalidProblem("factor holds NaN or infinity")
    return factor


def read_names(argument: str, given: Sequence[str] | None, stem: str, count: int) -> tuple[str, ...]:
    """The given names as text, or numbered names for None."""
    names = tuple(f"{stem}{i}" for i in range(count)) if given is None else tuple(given)
    if len(names) != count:
        raise InvalidProblem(f"{argument} must hold {count} names; got {len(names)}")
    return names


def check_unique(problem: ChoiceProblem) -> None:
    """Refuse two groups, or two choices of a group, of the same name."""
    if len(set(problem.group_names)) != problem.num_groups:
        raise InvalidProblem("group_names must be unique")
    for group in range(problem.num_groups):
        names = problem.choice_names[problem.group_offsets[group] : problem.group_offsets[group + 1]]
        if len(set(names)) != len(names):
            raise InvalidProblem(f"choice names of group {problem.group_names[group]!r} are not unique: {names}")

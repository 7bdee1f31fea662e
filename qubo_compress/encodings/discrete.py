"""The choice problem as a dimod discrete quadratic model: one variable per group, one case per choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dimod
import numpy as np
from scipy import sparse

from qubo_compress.encodings.budgets import make_treatment
from qubo_compress.encodings.encoding import Couplings, Decoded
from qubo_compress.encodings.quadratic import PairEnergies, pair_energies, with_pairs
from qubo_compress.errors import InvalidAssignment, InvalidBudget
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray


def to_dqm(
    problem: ChoiceProblem, budget: str = "multiplier", **options: Any
) -> tuple[dimod.DiscreteQuadraticModel, DiscreteDecoder]:
    """A discrete quadratic model (a variable per group, labelled by its name) and its inverse.

    Every sample is one choice per group, so only the budgets, which such a model cannot constrain, need penalties: by
    default, prices.

    Args:
        problem: the problem.
        budget: ``"multiplier"`` (linear terms; pair costs become couplings), ``"unbalanced"`` (couples all groups; not
            for pair costs) or ``"none"``.
        options: of the treatment, such as ``multipliers=`` (one price per budget; default: zero).

    Raises:
        UnknownName: for another budget treatment.
        InvalidBudget: for a treatment that needs slack bits, or for options out of range.
        UnsupportedProblem: for ``"unbalanced"`` and a budget with pair costs that binds.
        ProblemTooLarge: when there would be too many couplings.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=3, choices=4, seed=0)
        >>> dqm, decode = to_dqm(problem)
        >>> list(dqm.variables), dqm.num_cases()
        (['group0', 'group1', 'group2'], 12)
        >>> sample = {"group0": 2, "group1": 0, "group2": 3}
        >>> bool(abs(dqm.energy(sample) - problem.energy([2, 0, 3])) < 1e-9)
        True
        >>> decode(sample).assignments.tolist()
        [2, 0, 3]
    """
    treatment = make_treatment(budget, options)
    terms = treatment.terms(problem)
    if terms.num_slack_bits:
        raise InvalidBudget(
            f"budget={budget!r} needs slack bits, which a discrete model does not have; "
            "use 'multiplier', 'unbalanced' or 'none', or to_bqm or to_cqm"
        )
    linear, constant = problem.linear + terms.linear, problem.constant + terms.constant
    pairs = with_pairs(pair_energies(problem, dense=True if terms.squares else None), terms.pairs)
    for square in terms.squares:
        linear = linear + square.weight * (square.costs**2 + 2 * square.offset * square.costs)
        constant += square.weight * square.offset**2
        pairs = pairs + np.outer(2 * square.weight * square.costs, square.costs)
    rows, columns, values = _couplings(problem, pairs)
    dqm = dimod.DiscreteQuadraticModel.from_numpy_vectors(
        problem.group_offsets[:-1].copy(), linear, (rows, columns, values), list(problem.group_names), constant
    )  # type: ignore[no-untyped-call]
    return dqm, DiscreteDecoder(problem)


def _couplings(problem: ChoiceProblem, pairs: PairEnergies) -> Couplings:
    """The energy of every pair of choices in different groups, each pair once."""
    groups = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    upper = sparse.triu(sparse.coo_array(pairs), k=1).tocoo()
    apart = groups[upper.row] != groups[upper.col]
    return Couplings(upper.row[apart].astype(np.int64), upper.col[apart].astype(np.int64), upper.data[apart])


@dataclass(frozen=True, eq=False)
class DiscreteDecoder:
    """Reads assignments from a dimod sample set, a mapping from group name to case, or rows of cases.

    Attributes:
        problem: that was encoded.
    """

    problem: ChoiceProblem

    def __call__(self, samples: Any) -> Decoded:
        """Assignments from the labels of the samples; cases out of range are clipped and counted as invalid.

        Rows of cases have no labels: their columns are the groups in the problem's order.

        Raises:
            InvalidAssignment: when a group is missing.
        """
        rows = self._rows(samples)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.problem.num_groups:
            raise InvalidAssignment(
                f"samples of this model have {self.problem.num_groups} cases, one per group; got shape {rows.shape}"
            )
        valid = np.clip(rows, 0, self.problem.group_sizes - 1)
        return Decoded(valid.astype(np.int64), (valid != rows).sum(axis=-1))

    def _rows(self, samples: Any) -> FloatArray:
        names = self.problem.group_names
        if isinstance(samples, dimod.SampleSet):
            missing = set(names) - set(samples.variables)
            if missing:
                raise InvalidAssignment(f"the samples lack group {min(missing)!r}")
            columns = [samples.variables.index(name) for name in names]
            return np.asarray(samples.record.sample[:, columns])
        if isinstance(samples, Mapping):
            missing = set(names) - set(samples)
            if missing:
                raise InvalidAssignment(f"the sample lacks group {min(missing)!r}")
            return np.array([samples[name] for name in names])
        return np.asarray(samples)

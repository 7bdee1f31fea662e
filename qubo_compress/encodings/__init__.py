"""Conversion of choice problems to the models of annealers and other solvers, and back."""

from __future__ import annotations

from typing import Any

import dimod
import numpy.typing as npt

from qubo_compress.encodings.budgets import (
    BudgetTerms,
    Multiplier,
    Slack,
    Square,
    Treatment,
    Unbalanced,
    make_treatment,
    slack_weight,
    unbalanced_weights,
)
from qubo_compress.encodings.constrained import to_cqm
from qubo_compress.encodings.discrete import DiscreteDecoder, to_dqm
from qubo_compress.encodings.domain_wall import DomainWall
from qubo_compress.encodings.encoding import Decoded, Decoder, Encoding, build_bqm, encodings, worst_case_penalties
from qubo_compress.encodings.from_cqm import from_cqm
from qubo_compress.encodings.from_dqm import from_dqm
from qubo_compress.encodings.lp_file import from_lp, to_lp
from qubo_compress.encodings.model_samples import ModelSamples
from qubo_compress.encodings.nonlinear import NonlinearDecoder, to_nonlinear
from qubo_compress.encodings.one_hot import OneHot
from qubo_compress.encodings.quadratic import pair_energies, with_pairs
from qubo_compress.problem.choice_problem import ChoiceProblem

__all__ = [
    "BudgetTerms",
    "Decoded",
    "Decoder",
    "DiscreteDecoder",
    "DomainWall",
    "Encoding",
    "ModelSamples",
    "Multiplier",
    "NonlinearDecoder",
    "OneHot",
    "Slack",
    "Square",
    "Treatment",
    "Unbalanced",
    "from_cqm",
    "from_dqm",
    "from_lp",
    "names",
    "slack_weight",
    "to_bqm",
    "to_cqm",
    "to_dqm",
    "to_lp",
    "to_nonlinear",
    "unbalanced_weights",
    "worst_case_penalties",
]


def names() -> tuple[str, ...]:
    """Names of all encodings, sorted."""
    return encodings.names()


def to_bqm(
    problem: ChoiceProblem,
    encoding: str = "domain-wall",
    budget: str = "multiplier",
    *,
    penalty: npt.ArrayLike | None = None,
    **options: Any,
) -> tuple[dimod.BinaryQuadraticModel, Decoder]:
    """A binary quadratic model of a choice problem, and its inverse.

    On valid bit patterns the model's energy is the problem's, plus what the budget treatment adds.

    Args:
        problem: the problem.
        encoding: ``"domain-wall"`` (K - 1 bits per group) or ``"one-hot"`` (K bits).
        budget: ``"multiplier"`` adds ``multipliers . (totals - limits)``, ``"slack"`` a square with slack bits,
            ``"unbalanced"`` a parabola without, ``"none"`` nothing; see :mod:`qubo_compress.encodings.budgets`.
        penalty: energy of one invalid group, one number or one per group. Default: a tenth of the worst case, which is
            stiff enough in practice but not proven; see :func:`worst_case_penalties`.
        options: of the budget treatment, such as ``multipliers=`` (one price per budget; default: zero).

    Returns:
        The model over the variables 0, 1, ... (slack bits last), and a decoder of samples.

    Raises:
        UnknownName: for another encoding or budget treatment.
        InvalidBudget: for options that the treatment lacks or that are out of range.
        InvalidProblem: for a penalty out of range.
        ProblemTooLarge: for more couplings than can be built.
        UnsupportedProblem: for ``"slack"`` or ``"unbalanced"`` and a budget with pair costs that binds.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=3, choices=4, seed=0)
        >>> bqm, decode = to_bqm(problem)
        >>> bqm.num_variables
        9
        >>> decoded = decode([1, 0, 0, 1, 1, 1, 0, 0, 0])
        >>> decoded.assignments.tolist(), int(decoded.invalid)
        ([2, 0, 3], 0)
        >>> bool(abs(bqm.energy([1, 0, 0, 1, 1, 1, 0, 0, 0]) - problem.energy([2, 0, 3])) < 1e-9)
        True
    """
    chosen = encodings.get(encoding)()
    terms = make_treatment(budget, options).terms(problem)
    bqm = build_bqm(
        problem,
        chosen,
        problem.linear + terms.linear,
        problem.constant + terms.constant,
        penalty,
        squares=terms.squares,
        pairs=None if terms.pairs is None else with_pairs(pair_energies(problem), terms.pairs),
    )
    return bqm, Decoder(problem, chosen, bqm.num_variables)

"""The binary model that samplers draw from, and a forecast of its building and sampling time from a part of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import dimod
import numpy as np
from scipy import sparse

from qubo_compress.encodings.encoding import PENALTY_SHARE, BitMap, Couplings, Decoder, Encoding, build_bqm
from qubo_compress.encodings.quadratic import binary_model, coupling_sums, pair_energies, with_pairs
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray
from qubo_compress.problem.pair_costs import priced_pair_costs
from qubo_compress.problem.subproblems import condition

_PART = 100_000
"""Terms of the part of a model that is tried first: hundredths of a second for most samplers."""

_CAUTION = 2.0
"""A part fits into the processor's cache, the whole does not: it took up to 2.1 times the scaled time, measured
with six samplers on 500 groups of 12 choices."""

_WORTH_A_TRIAL = 5 * _PART
"""Models with at least this many terms are tried in part first."""


class PricedPairs:
    """Adds the pair costs of one budget to a model, at any change of its price."""

    def __init__(self, bit_map: BitMap, pair_costs: sparse.csr_array) -> None:
        costs = pair_costs.astype(np.float64)
        selected = np.asarray(costs @ bit_map.start)
        offset = 0.5 * float(bit_map.start @ selected)
        self.terms = binary_model(bit_map.of_choices(selected), bit_map.of_pairs(costs), offset)
        self.terms.change_vartype(dimod.SPIN, inplace=True)

    def add(self, bqm: dimod.BinaryQuadraticModel, price: float) -> None:
        """Add the pair costs times a price of either sign."""
        if price:
            extra = self.terms.copy()  # type: ignore[no-untyped-call]
            extra.scale(price)
            bqm.update(extra)


class PenaltyTerms:
    """Adds a multiple of the groups' penalties to a model, which is faster than building it again."""

    def __init__(self, worst: FloatArray, terms: tuple[FloatArray, Couplings, float]) -> None:
        linear, couplings, offset = terms
        self.mean = float(worst.mean())
        self.terms = dimod.BinaryQuadraticModel.from_numpy_vectors(linear, tuple(couplings), offset, dimod.BINARY)
        self.terms.change_vartype(dimod.SPIN, inplace=True)

    def add(self, bqm: dimod.BinaryQuadraticModel, share: float) -> None:
        """Add ``share`` (of either sign) of the worst-case penalties."""
        extra = self.terms.copy()  # type: ignore[no-untyped-call]
        extra.scale(share)
        bqm.update(extra)


@dataclass(eq=False)
class QuboModel:
    """A problem's model over spins; prices and penalties can change without building it again.

    Attributes:
        problem: the problem.
        bqm: the model, whose variables are 0, 1, ...
        bit_map: the choice that each bit selects.
        penalty: of invalid groups, at their worst case.
        share: of the worst case, at present in the model.
        decode: reads assignments from bits.
        pair_costs: of each budget, or None.
    """

    problem: ChoiceProblem
    bqm: dimod.BinaryQuadraticModel
    bit_map: BitMap
    penalty: PenaltyTerms
    share: float
    decode: Decoder
    pair_costs: tuple[PricedPairs | None, ...] = ()

    def charge(self, prices: FloatArray) -> None:
        """Add these amounts (of either sign) to the price per unit of each budget."""
        change = self.bit_map.of_choices(prices @ self.problem.costs)
        # A bit is (1 + spin) / 2; the constant is omitted because it does not matter to a sampler.
        self.bqm.add_linear_from_array(0.5 * change)  # type: ignore[arg-type]
        for price, pairs in zip(prices.tolist(), self.pair_costs, strict=False):
            if pairs is not None:
                pairs.add(self.bqm, price)

    def penalise(self, share: float) -> None:
        """Set the penalties to a share of their worst case."""
        if share != self.share:
            self.penalty.add(self.bqm, share - self.share)
            self.share = share


def build_model(problem: ChoiceProblem, encoding: Encoding, prices: FloatArray) -> QuboModel:
    """The model at given prices, (B,) energy per unit of each budget, and at a tenth of the worst-case penalties."""
    pairs = with_pairs(pair_energies(problem), priced_pair_costs(problem, prices))
    worst = encoding.worst_case(problem, coupling_sums(pairs), problem.linear)
    bit_map = encoding.bit_map(problem)
    penalty = PenaltyTerms(worst, encoding.penalty_terms(problem, worst))
    charged = problem.linear + prices @ problem.costs
    bqm = build_bqm(problem, encoding, charged, problem.constant, PENALTY_SHARE * worst, pairs=pairs)
    bqm.change_vartype(dimod.SPIN, inplace=True)
    decode = Decoder(problem, encoding, bqm.num_variables)
    costs = tuple(None if matrix is None else PricedPairs(bit_map, matrix) for matrix in problem.pair_costs or ())
    return QuboModel(problem, bqm, bit_map, penalty, PENALTY_SHARE, decode, costs)


@dataclass(frozen=True)
class ModelForecast:
    """Upper estimates of a large model's seconds, from a part of it.

    Attributes:
        build: until it is built.
        draw: of the first call of the sampler.
    """

    build: float = 0.0
    draw: float = 0.0


def forecast(
    problem: ChoiceProblem, encoding: Encoding, prices: FloatArray, draw: Callable[[QuboModel], object]
) -> ModelForecast:
    """Build the model of a part of the problem, draw from it once, and scale the seconds to the whole.

    Neither can be interrupted, and both take time proportional to the couplings. The forecast of a model that is small
    enough to be tried itself is zero.

    Args:
        problem: the problem.
        encoding: of its choices.
        prices: (B,) of its budgets.
        draw: calls the sampler like its first call.
    """
    whole = _terms(problem)
    if whole < _WORTH_A_TRIAL:
        return ModelForecast()
    part = _leading_part(problem, whole)
    begin = time.perf_counter()
    model = build_model(part, encoding, prices)
    built = time.perf_counter()
    if model.bqm.num_variables:
        draw(model)
    factor = _CAUTION * whole / _terms(part)
    return ModelForecast(factor * (built - begin), factor * (time.perf_counter() - built))


def _terms(problem: ChoiceProblem) -> float:
    """The number of choices plus that of interacting pairs."""
    total = problem.num_choices
    if problem.structure == "factor":
        return total + 0.5 * total**2
    stored = sum(m.nnz for m in (problem.pairs, *(problem.pair_costs or ())) if m is not None)
    return float(total + 0.5 * stored)


def _leading_part(problem: ChoiceProblem, whole: float) -> ChoiceProblem:
    """The first groups with about :data:`_PART` terms; at least one."""
    choices = problem.num_choices * np.sqrt(_PART / whole)
    groups = max(1, int(np.searchsorted(problem.group_offsets, choices)) - 1)
    everything = np.zeros(problem.num_groups, dtype=np.int64)
    return condition(problem, everything, np.arange(groups)).problem

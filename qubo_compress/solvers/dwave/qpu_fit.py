"""The size check: whether an encoded problem fits a chip, decided before any search for an embedding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import dimod
import numpy as np

from qubo_compress.encodings.encoding import Encoding, build_bqm
from qubo_compress.encodings.quadratic import pair_energies, with_pairs
from qubo_compress.errors import ProblemTooLarge
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray
from qubo_compress.problem.pair_costs import priced_pair_costs
from qubo_compress.problem.subproblems import Subproblem, reduce_dominated, whole
from qubo_compress.solvers.dwave.minor_embedding import find_minor
from qubo_compress.solvers.dwave.qpu_device import Device
from qubo_compress.solvers.dwave.qpu_embedding import Chains, may_fit, pattern_of
from qubo_compress.solvers.dwave.qpu_sampling import fixed_spins

_WORTH_REDUCING = 8
"""Dominated choices are searched up to this many times the bits that fit; larger problems never shrink enough."""
_WORTH_FIXING = 2
"""The same for roof duality, which fixes few spins of dense problems."""
_COUPLINGS_PER_COUPLER = 4
"""Domain walls take at least a quarter of the pair energies as couplings (two choices, one bit)."""
_SEARCH_SHARE = 0.5
"""Largest share of the time left for a minor embedding search."""


@dataclass(frozen=True, eq=False)
class Fit:
    """How a problem is placed on a chip.

    Attributes:
        reduction: the problem without dominated choices, which is the one to encode.
        bits: of the encoded problem.
        minor: chains of an embedding found by a general search; None if a clique is used.
    """

    reduction: Subproblem
    bits: int
    minor: Chains | None


def shrink(problem: ChoiceProblem, encoding: Encoding, device: Device) -> Subproblem:
    """The problem without dominated choices, if removing them may help."""
    if _bits(problem, encoding) <= _WORTH_REDUCING * device.largest_clique:
        return reduce_dominated(problem)
    return whole(problem)


def fit(
    reduction: Subproblem,
    encoding: Encoding,
    device: Device,
    prices: Callable[[], FloatArray],
    *,
    reduce: bool,
    deadline: float,
    stop: Callable[[], bool],
) -> Fit:
    """Find room for a problem on a chip, or raise.

    A clique takes any problem up to its size. Beyond, a problem with few couplings gets an embedding search if the
    counts of qubits and couplers allow one, and a dense problem is checked again after roof duality.

    Args:
        reduction: of the problem, see :func:`shrink`.
        encoding: how it is encoded.
        device: the chip.
        prices: estimates the budgets' prices for roof duality; called only if that is tried.
        reduce: whether to use roof duality.
        deadline: of ``time.perf_counter()``, of the whole search.
        stop: polled several times a second.

    Raises:
        ProblemTooLarge: when there is no room; the message names the bits, the largest clique and an alternative.
    """
    problem, most = reduction.problem, device.largest_clique
    bits = _bits(problem, encoding)
    if bits <= most:
        return Fit(reduction, bits, None)
    if reduce and bits <= _WORTH_FIXING * most:
        charged = _priced(problem, encoding, prices())
        if bits - len(fixed_spins(charged)) <= most:
            return Fit(reduction, bits, None)
    if bits > len(device.graph) or _too_many_pairs(problem, device):
        raise _too_large(bits, encoding, device, "which a problem with so many couplings needs")
    # Any positive prices show the couplings of pair costs; roots, so that those of two budgets do not cancel.
    some = np.sqrt(np.arange(2, 2 + problem.num_budgets)) if problem.pair_costs is not None else None
    model = _priced(problem, encoding, some)
    rows, columns, _ = model.to_numpy_vectors(variable_order=range(bits)).quadratic
    if not may_fit(device.graph, np.bincount(rows, minlength=bits) + np.bincount(columns, minlength=bits)):
        raise _too_large(bits, encoding, device, "which a problem with so many couplings needs")
    couplings = list(zip(rows.tolist(), columns.tolist(), strict=True))
    budget = _SEARCH_SHARE * max(0.0, deadline - time.perf_counter())
    edges = list(device.graph.edges)
    minor = device.remembered(
        pattern_of(bits, couplings), bits, couplings, lambda: find_minor(couplings, bits, edges, 0, budget, stop)
    )
    if not minor:
        raise _too_large(bits, encoding, device, f"and {budget:.1f} s of search found no other embedding")
    return Fit(reduction, bits, minor)


def _priced(problem: ChoiceProblem, encoding: Encoding, prices: FloatArray | None) -> dimod.BinaryQuadraticModel:
    """The model at these prices of the budgets, or without budgets."""
    if prices is None:
        return build_bqm(problem, encoding, problem.linear, problem.constant, None)
    pairs = with_pairs(pair_energies(problem), priced_pair_costs(problem, prices))
    return build_bqm(problem, encoding, problem.linear + prices @ problem.costs, problem.constant, None, pairs=pairs)


def _bits(problem: ChoiceProblem, encoding: Encoding) -> int:
    return int(encoding.bit_map(problem).matrix.shape[1])


def _too_many_pairs(problem: ChoiceProblem, device: Device) -> bool:
    """Whether there are too many pairs, without building the model, which takes seconds for large dense problems."""
    if problem.structure == "factor":
        return True
    stored = sum(m.nnz // 2 for m in (problem.pairs, *(problem.pair_costs or ())) if m is not None)
    return bool(stored > _COUPLINGS_PER_COUPLER * device.graph.number_of_edges())


def _too_large(bits: int, encoding: Encoding, device: Device, why: str) -> ProblemTooLarge:
    return ProblemTooLarge(
        f"this problem takes {bits} bits ({encoding.name}) and the largest clique on {device.name} has "
        f"{device.largest_clique}, {why}: use 'qpu-decomposition', which solves blocks that fit, 'leap-cqm' in the "
        "cloud, or 'annealer' on this machine"
    )

"""The published objective as a choice problem: one group per filter, one per layer's width."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.encodings.published.objective import Bits, FiltersAndBits
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray


def to_problem(objective: FiltersAndBits) -> ChoiceProblem:
    """The same energies over groups: keep or prune for every filter, then one of 2^K widths for every layer.

    Example:
        >>> from qubo_compress.encodings.published import FilterLayer
        >>> objective = FiltersAndBits((FilterLayer("conv", [0.5, 0.1], 9, [[0.01]]),), gamma=1.0, most_bits=4)
        >>> problem = to_problem(objective)
        >>> problem.names_of([0, 1, 1])
        {'conv[0]': 'keep', 'conv[1]': 'prune', 'conv bits': 'bits=3'}
        >>> abs(problem.energy([0, 1, 1]) - objective.energy([0, 1, 1])) < 1e-12
        True
    """
    bqm, filters = objective.to_bqm(), int(objective.starts[-1])
    linear, (rows, columns, values), offset, *_ = bqm.to_numpy_vectors(variable_order=range(bqm.num_variables))
    matrix = sparse.coo_array((values, (rows, columns)), shape=(linear.size, linear.size)).tocsr()
    matrix = sparse.csr_array(matrix + matrix.T)
    choice = _choice_matrix(objective)
    pairs = sparse.csr_array(choice @ matrix @ choice.T)
    sizes = np.concatenate([np.full(filters, 2), np.full(len(objective.layers), 2**objective.code_bits)])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    own = np.asarray(choice @ linear).ravel() + 0.5 * np.asarray(choice.multiply(choice @ matrix).sum(axis=1)).ravel()
    pairs = _between_groups(pairs, offsets)
    names = [f"{layer.name}[{number}]" for layer in objective.layers for number in range(layer.filters)]
    widths = [f"bits={objective.most_bits - removed}" for removed in range(2**objective.code_bits)]
    return ChoiceProblem(
        linear=own,
        group_offsets=offsets,
        costs=np.zeros((0, own.size), dtype=np.int64),
        limits=np.zeros(0, dtype=np.int64),
        pairs=pairs,
        constant=float(offset),
        group_names=(*names, *(f"{layer.name} bits" for layer in objective.layers)),
        choice_names=(*["keep", "prune"] * filters, *widths * len(objective.layers)),
    )


def bits_of_assignment(objective: FiltersAndBits, assignment: Any) -> Bits:
    """(n,) bits of an assignment of :func:`to_problem`."""
    chosen, filters = np.asarray(assignment), int(objective.starts[-1])
    codes = (chosen[filters:, None] >> np.arange(objective.code_bits)) & 1
    return np.concatenate([chosen[:filters], codes.ravel()]).astype(np.int8)


def _choice_matrix(objective: FiltersAndBits) -> sparse.csr_array:
    """(V, n) the bits that each choice sets."""
    filters, codes = int(objective.starts[-1]), np.arange(2**objective.code_bits)
    which, bit = np.nonzero((codes[:, None] >> np.arange(objective.code_bits)) & 1)
    layers = np.arange(len(objective.layers))[:, None]
    rows: IntArray = np.concatenate([2 * np.arange(filters) + 1, (2 * filters + codes.size * layers + which).ravel()])
    columns: IntArray = np.concatenate([np.arange(filters), (filters + objective.code_bits * layers + bit).ravel()])
    shape = (2 * filters + codes.size * layers.size, objective.num_bits)
    return sparse.coo_array((np.ones(rows.size), (rows, columns)), shape=shape).tocsr()


def _between_groups(pairs: sparse.csr_array, offsets: IntArray) -> sparse.csr_array:
    """Pairs of different groups only."""
    group = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    entries = pairs.tocoo()
    apart: npt.NDArray[np.bool_] = group[entries.row] != group[entries.col]
    values: FloatArray = entries.data[apart]
    return sparse.csr_array(sparse.coo_array((values, (entries.row[apart], entries.col[apart])), shape=pairs.shape))

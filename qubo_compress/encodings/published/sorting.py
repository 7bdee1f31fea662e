"""The exact minimum of the published objective, by sorting filters and enumerating counts and widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qubo_compress.encodings.published.objective import Bits, FiltersAndBits
from qubo_compress.errors import InvalidProblem, UnsupportedProblem
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray


def layer_energies(objective: FiltersAndBits) -> list[FloatArray]:
    """For every layer (F + 1, 2^K) least energies, by the number of pruned filters and of removed bits.

    Their sum over layers is H. L_p is least for the filters of least score, whatever else is chosen.

    Raises:
        UnsupportedProblem: if feeds couple the layers.
    """
    if not objective.separable:
        raise UnsupportedProblem(
            "with feeds, H is not a sum over layers, so that sorting is not exact; use an annealer, or leave feeds out"
        )
    codes = _codes(objective)
    removed = np.arange(len(codes))
    found = []
    for layer in objective.layers:
        pruned = np.concatenate([[0.0], np.cumsum(np.sort(layer.scores))]) ** 2
        coarse = np.einsum("ck,kl,cl->c", codes, layer.bit_losses, codes)
        count = np.arange(layer.filters + 1)[:, None]
        saved = objective.most_bits * layer.filter_size * count + (layer.weights - layer.filter_size * count) * removed
        found.append(pruned[:, None] + objective.beta * coarse - objective.price * saved)
    return found


def minimum(objective: FiltersAndBits) -> Bits:
    """(n,) bits of least energy, proven; of equal ones, those that prune and remove least.

    Raises:
        UnsupportedProblem: if feeds couple the layers.

    Example:
        >>> from qubo_compress.encodings.published import FilterLayer
        >>> objective = FiltersAndBits((FilterLayer("conv", [0.5, 0.1], 9, [[0.01]]),), gamma=0.2, most_bits=4)
        >>> minimum(objective).tolist()
        [0, 1, 1]
    """
    energies = layer_energies(objective)
    places = [np.unravel_index(int(np.argmin(table)), table.shape) for table in energies]
    return bits_of_counts(objective, [int(count) for count, _ in places], [int(code) for _, code in places])


def bits_of_counts(objective: FiltersAndBits, counts: Sequence[int], removed: Sequence[int]) -> Bits:
    """(n,) bits that prune the ``counts[n]`` filters of least score and remove ``removed[n]`` bits in layer n."""
    chosen = []
    for layer, count in zip(objective.layers, counts, strict=True):
        pruned = np.zeros(layer.filters, dtype=np.int8)
        pruned[np.argsort(layer.scores, kind="stable")[:count]] = 1
        chosen.append(pruned)
    codes = _codes(objective)[np.asarray(removed, dtype=np.int64)].astype(np.int8)
    return np.concatenate([*chosen, codes.ravel()])


def to_sorted_problem(
    objective: FiltersAndBits,
    costs: Sequence[IntArray] | None = None,
    limit: int = 0,
    fixed: int = 0,
) -> ChoiceProblem:
    """A separable choice problem with one group per layer, whose choices are (number pruned, bits removed).

    Its optimum is that of H, also under a budget where all filters of a layer cost the same at a width.

    Args:
        objective: without feeds.
        costs: for every layer (F + 1, 2^K) whole numbers, such as stored bytes; None: no budget.
        limit: largest total.
        fixed: cost that no choice changes.

    Raises:
        UnsupportedProblem: if feeds couple the layers.
        InvalidProblem: if the costs do not fit the layers.
    """
    energies = layer_energies(objective)
    offsets = np.concatenate([[0], np.cumsum([table.size for table in energies])])
    names = [
        f"pruned={count},bits={objective.most_bits - removed}"
        for table in energies
        for count in range(table.shape[0])
        for removed in range(table.shape[1])
    ]
    total = sum(table.size for table in energies)
    budget: dict[str, Any] = {"costs": np.zeros((0, total), dtype=np.int64), "limits": np.zeros(0, dtype=np.int64)}
    if costs is not None:
        shapes = [table.shape for table in energies]
        if [np.shape(cost) for cost in costs] != shapes:
            raise InvalidProblem(f"costs must have one table per layer of shapes {shapes[:3]}, ...")
        budget = {
            "costs": np.concatenate([np.ravel(cost) for cost in costs])[None],
            "limits": [limit],
            "fixed_costs": [fixed],
        }
    return ChoiceProblem(
        linear=np.concatenate([table.ravel() for table in energies]),
        group_offsets=offsets,
        group_names=tuple(layer.name for layer in objective.layers),
        choice_names=tuple(names),
        **budget,
    )


def _codes(objective: FiltersAndBits) -> IntArray:
    """(2^K, K) bits of every code, by the number of bits it removes."""
    return (np.arange(2**objective.code_bits)[:, None] >> np.arange(objective.code_bits)) & 1

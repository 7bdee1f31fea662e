"""Frequency assignment: sub-problem 0 of CELAR's scenario 6.

The numbers in ``celar06_sub0.json`` are those of the French Centre d'Electronique de l'Armement, published for the
EUCLID CALMA project: Cabon, de Givry, Lobjois, Schiex, Warners, "Radio Link Frequency Assignment", Constraints 4
(1999). They were read from the data of https://github.com/xcsp3team/PyCSP3-models (realistic/CELAR).

Links come in pairs whose frequencies are exactly 238 apart, which every frequency allows in just one way: a pair is one
group, and the first link's frequency its choice. A soft constraint costs its weight where two links are not more than
its distance apart. The weights of scenario 6 are 1000, 100, 10 and 1; those of scenario 7, on the same constraints, are
10^6, 10^4, 100 and 1, which makes a harder problem that was not published: ``weights``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy import sparse

from qubo_compress import ChoiceProblem

_DATA = Path(__file__).parent / "celar06_sub0.json"
WEIGHTS = (1000, 100, 10, 1)
STEEP_WEIGHTS = (1_000_000, 10_000, 100, 1)


def frequency_problem(weights: tuple[int, ...] = WEIGHTS) -> ChoiceProblem:
    """The choice problem of 16 pairs of links.

    Example:
        >>> frequency_problem()
        ChoiceProblem(16 groups, 640 choices, 64,032 pair energies, no budget)
    """
    data = json.loads(_DATA.read_text())
    choices = [_both(data["frequencies"][kind], data["apart"]) for kind in data["kinds"]]
    sizes = np.array([len(pairs) for pairs in choices])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    linear = np.zeros(offsets[-1])
    pairs = sparse.lil_array((linear.size, linear.size))
    for weight, first, second, distance in data["soft"]:
        (g, one), (h, other) = divmod(first, 2), divmod(second, 2)
        near = np.abs(choices[g][:, one][:, None] - choices[h][:, other]) <= distance
        if g == h:
            linear[offsets[g] : offsets[g + 1]] += weights[weight] * np.diag(near)
        else:
            pairs[offsets[g] : offsets[g + 1], offsets[h] : offsets[h + 1]] += weights[weight] * near.astype(float)
    total = sparse.csr_array(pairs + pairs.T)
    total.eliminate_zeros()
    return ChoiceProblem(
        linear=linear,
        group_offsets=offsets,
        costs=np.zeros((0, linear.size), dtype=np.int64),
        limits=np.zeros(0, dtype=np.int64),
        pairs=total,
        group_names=tuple(f"links{2 * g}+{2 * g + 1}" for g in range(sizes.size)),
        choice_names=tuple(str(low) for pairs in choices for low in pairs[:, 0].tolist()),
    )


def _both(frequencies: list[int], apart: int) -> np.ndarray:
    """(K, 2) each frequency with the one that is that far from it."""
    allowed = set(frequencies)
    partners = [[f + apart * sign for sign in (1, -1) if f + apart * sign in allowed] for f in frequencies]
    if any(len(found) != 1 for found in partners):
        raise ValueError("a frequency has no partner, or two")
    return np.array([[f, found[0]] for f, found in zip(frequencies, partners, strict=True)])

"""The published layer data of HAWQ-V3 as choice problems: ResNet-18 and ResNet-50 on ImageNet, 4 or 8 bits per layer.

The numbers in ``hawq_v3.json`` are those of the notebook ``ILP.ipynb`` in the authors' repository
(https://github.com/Zhen-Dong/HAWQ, MIT licence) to Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization", ICML
2021. A layer's energy is the mean diagonal of its Hessian times the squared error of rounding its weights.
Layers whose outputs are added must have the same bits and are one group here. The first and the last layer are not
counted, as in the notebook. There are no pair energies: dynamic programming solves these in milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qubo_compress import ChoiceProblem

_DATA = Path(__file__).parent / "hawq_v3.json"
_BITS = (8, 4)
NETWORKS = ("resnet18", "resnet50")


def hawq_problem(network: str, between: float = 0.5, operations: bool = False) -> ChoiceProblem:
    """The choice problem of a published network.

    Args:
        network: ``"resnet18"`` or ``"resnet50"``.
        between: the budgets, as a fraction of the way from 4 bits everywhere to 8 bits everywhere.
        operations: add the second budget, bit operations at equal bits of weights and activations.

    Example:
        >>> hawq_problem("resnet18").num_groups
        16
    """
    published = json.loads(_DATA.read_text())["networks"][network]
    layers = published["layers"]
    owner = np.arange(len(layers))
    for first, second in published["ties"]:
        owner[second] = first
    firsts, group = np.unique(owner, return_inverse=True)
    energies, sizes, work = (np.zeros((firsts.size, len(_BITS))) for _ in range(3))
    for layer, g in zip(layers, group, strict=True):
        for k, bits in enumerate(_BITS):
            energies[g, k] += layer["trace"] * layer[f"error_{bits}_bits"]
            sizes[g, k] += layer["weights"] * bits / 8
            # The notebook divides by four for each of the two operands at 8 bits, and by eight at 4 bits.
            work[g, k] += layer["operations"] * (bits / 32) ** 2
    tables = [sizes, work] if operations else [sizes]
    low, high = (np.array([table[:, k].sum() for table in tables]) for k in (1, 0))
    return ChoiceProblem(
        linear=energies.ravel(),
        group_offsets=np.arange(firsts.size + 1) * len(_BITS),
        costs=np.rint([table.ravel() for table in tables]).astype(np.int64),
        limits=np.floor(low + between * (high - low)).astype(np.int64),
        group_names=tuple(f"layer{first}" for first in firsts),
        choice_names=tuple(f"quantize(bits={bits})" for bits in _BITS) * firsts.size,
        budget_names=("bytes", "bit_operations")[: len(tables)],
    )

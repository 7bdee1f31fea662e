"""What keeping coupled channels costs: products of the channels along both axes of every tensor.

With k the indicators of the sets that stay, f the number of indices along an axis that always stay and c_u those of set
u, a tensor has (f_0 + sum c_0u k_u) (f_1 + sum c_1v k_v) numbers, times its other axes: a fixed cost, a linear and a
pair cost. A set with a part in both axes has k_u^2 = k_u, a linear cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.network.channels import Channels
from qubo_compress.network.tensors import NetworkTensors

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PairPrices:
    """A cost of the decisions to keep, in whole numbers.

    Attributes:
        fixed: what is there without any of them.
        linear: (G,) of each decision.
        pairs: (G, G) symmetric, without a diagonal: of two decisions together.
    """

    fixed: int
    linear: IntArray
    pairs: sparse.csr_array

    @classmethod
    def nothing(cls, decisions: int) -> PairPrices:
        """What costs nothing, for a number of decisions."""
        return cls(0, np.zeros(decisions, dtype=np.int64), sparse.csr_array((decisions, decisions), dtype=np.int64))

    def times(self, number: int) -> PairPrices:
        """So many times as expensive."""
        return PairPrices(number * self.fixed, number * self.linear, number * self.pairs)

    def total(self, kept: npt.NDArray[np.bool_]) -> int:
        """The cost of keeping some decisions."""
        chosen = kept.astype(np.int64)
        return int(self.fixed + self.linear @ chosen + (chosen @ (self.pairs @ chosen)) // 2)


@dataclass(frozen=True, eq=False)
class AxisCounts:
    """How many indices of every axis each decision keeps.

    Attributes:
        decisions: how many there are.
        sets: how many coupled sets they are about.
        by_tensor: tensor -> axis -> (G,) indices of each decision.
        shapes: tensor -> its shape.
    """

    decisions: int
    sets: int
    by_tensor: Mapping[str, Mapping[int, IntArray]]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, channels: Channels, blocks: Sequence[Sequence[int]], tensors: NetworkTensors) -> AxisCounts:
        """Count the indices that belong to the blocks of sets; every set is in one block."""
        block_of = np.zeros(len(channels.sets), dtype=np.int64)
        for number, block in enumerate(blocks):
            block_of[list(block)] = number
        counts: dict[str, dict[int, IntArray]] = {}
        for number, item in enumerate(channels.sets):
            for part in item.slices:
                axes = counts.setdefault(part.tensor, {})
                if part.axis not in axes:
                    axes[part.axis] = np.zeros(len(blocks), dtype=np.int64)
                axes[part.axis][block_of[number]] += len(part.indices)
        return cls(
            len(blocks), len(channels.sets), counts, {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        )

    def priced(self, price: Mapping[str, int]) -> PairPrices:
        """The cost of keeping blocks.

        Args:
            price: tensor -> cost of one of its numbers.
        """
        fixed, linear = 0, np.zeros(self.decisions, dtype=np.int64)
        pairs = sparse.csr_array((self.decisions, self.decisions), dtype=np.int64)
        for name, each in price.items():
            shape, axes = self.shapes[name], self.by_tensor.get(name, {})
            other = each * int(np.prod([n for axis, n in enumerate(shape) if axis not in axes], dtype=np.int64))
            if not axes:
                fixed += other
                continue
            (one, *more) = axes.items()
            first, always = one[1], shape[one[0]] - int(one[1].sum())
            if not more:
                fixed += other * always
                linear += other * first
                continue
            second, also = more[0][1], shape[more[0][0]] - int(more[0][1].sum())
            fixed += other * always * also
            linear += other * (also * first + always * second + first * second)
            product = sparse.csr_array(first[:, None]) @ sparse.csr_array(second[None, :])
            found = sparse.csr_array(other * (product + product.T))
            found.setdiag(0)
            pairs = pairs + found
        pairs.eliminate_zeros()
        return PairPrices(fixed, linear, sparse.csr_array(pairs))

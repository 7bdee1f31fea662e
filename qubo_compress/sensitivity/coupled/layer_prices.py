"""What the choices of layers cost while their channels may leave: products of a choice and two axes of channels.

With c_g(v) the cost of choice v for the whole layer g and s_g(k) the share of its weights that is left, a polynomial of
degree two in the decisions k to keep, a plan costs

    sum_g c_g(v_g) s_g(k)

of a budget, products of three decisions. A problem has products of two. So the sum is expanded around a plan (v*, k*):

    c_g(v) s_g(k)  ~=  c_g(v*) s_g(k) + (c_g(v) - c_g(v*)) (s_g(k*) + s_g'(k*) (k - k*))

which lacks only the product of all three changes. It is exact for every plan with the layers' choices v* and for every
plan with the channels k*. Around the network as it is, it is never below the true cost of choices that are not larger
than ``keep``, because s_g lies above its tangent where all channels stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.sensitivity.coupled.prices import PairPrices

UNIT = 256
"""A problem's costs count this part of a byte or a multiplication: one weight at three bits is less than one byte."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Expansion:
    """A budget as a problem takes it, in units of ``1 / UNIT``.

    Attributes:
        costs: (V,) of each choice.
        fixed: of no choice.
        pairs: (V, V) symmetric: of two choices together.
    """

    costs: IntArray
    fixed: int
    pairs: sparse.csr_array


@dataclass(frozen=True, eq=False)
class LayerPrices:
    """Costs of whole layers, and how much of every layer some decisions about channels leave.

    Attributes:
        layers: names of the layers, which are the first groups of the table.
        whole: budget -> for every layer, choice -> cost of the layer with all channels.
        left: budget -> for every layer, its weights, or their multiplications, by the decisions to keep.
        rest: budget -> what belongs to no layer.
    """

    layers: tuple[str, ...]
    whole: Mapping[str, Sequence[Mapping[str, int]]]
    left: Mapping[str, Sequence[PairPrices]]
    rest: Mapping[str, PairPrices]

    def shares(self, budget: str, kept: npt.NDArray[np.bool_]) -> FloatArray:
        """(L,) the share of every layer that is left, 1 where nothing of it is counted.

        Args:
            budget: its name.
            kept: (G,) which decisions are to keep.
        """
        everything = np.ones_like(kept)
        return np.array([_share(left, kept, everything) for left in self.left[budget]])

    def weights_left(self, assignment: IntArray) -> FloatArray:
        """(G,) the share of its weights that a plan leaves of every layer, and 1 for every decision.

        Args:
            assignment: (G,) position of the plan's choice in each group.
        """
        found = np.ones(len(assignment))
        found[: len(self.layers)] = self.shares("bytes", assignment[len(self.layers) :] == 0)
        return found

    def total(self, budget: str, choices: Mapping[str, str], kept: npt.NDArray[np.bool_]) -> float:
        """The cost of a plan, with every layer's price in proportion to what is left of it.

        Args:
            budget: its name.
            choices: layer -> choice; a layer that is missing is kept.
            kept: (G,) which decisions are to keep.
        """
        prices = [costs[choices.get(name, "keep")] for name, costs in zip(self.layers, self.whole[budget], strict=True)]
        return float(np.array(prices) @ self.shares(budget, kept)) + self.rest[budget].total(kept)

    def expanded(self, budget: str, choices: Sequence[Sequence[str]], around: IntArray) -> Expansion:
        """The costs of all choices and pairs, expanded around a plan.

        Args:
            budget: its name.
            choices: names of the choices of every group: the layers, then the decisions, which begin with ``keep``.
            around: (G,) position of the plan's choice in each group.
        """
        number = len(self.layers)
        offsets = np.concatenate([[0], np.cumsum([len(names) for names in choices])]).astype(np.int64)
        keep, kept = offsets[number:-1], around[number:] == 0
        rest = self.rest[budget]
        costs, fixed = np.zeros(int(offsets[-1])), float(rest.fixed)
        alone, products = rest.linear.astype(np.float64), rest.pairs.astype(np.float64)
        rows, columns, values = [], [], []
        for layer, left in enumerate(self.left[budget]):
            own = np.arange(offsets[layer], offsets[layer + 1])
            prices = np.array([self.whole[budget][layer][name] for name in choices[layer]], dtype=np.float64)
            everything = left.total(np.ones_like(kept))
            if everything == 0:
                costs[own] += prices
                continue
            here = prices[around[layer]]
            fixed += here * left.fixed / everything
            alone += here / everything * left.linear
            products = products + here / everything * left.pairs
            slope = (left.linear + left.pairs @ kept.astype(np.int64)) / everything
            costs[own] += (prices - here) * (left.total(kept) / everything - slope @ kept)
            moving, other = np.flatnonzero(slope), np.flatnonzero(prices != here)
            rows.append(np.repeat(own[other], moving.size))
            columns.append(np.tile(keep[moving], other.size))
            values.append(np.outer(prices[other] - here, slope[moving]).ravel())
        costs[keep] += alone
        spread = products.tocoo()
        one = np.concatenate([keep[spread.row], *rows, *columns])
        two = np.concatenate([keep[spread.col], *columns, *rows])
        whole = np.rint(UNIT * np.concatenate([spread.data, *values, *values])).astype(np.int64)
        pairs = sparse.csr_array((whole, (one, two)), shape=(costs.size, costs.size))
        pairs.eliminate_zeros()
        return Expansion(np.ceil(UNIT * costs).astype(np.int64), int(np.ceil(UNIT * fixed)), pairs)


def _share(left: PairPrices, kept: npt.NDArray[np.bool_], everything: npt.NDArray[np.bool_]) -> float:
    whole = left.total(everything)
    return left.total(kept) / whole if whole else 1.0

"""Prices of codes for rate-distortion decisions, from the bits that the adaptive coder would take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.adaptive.rates import rate_table
from qubo_compress.menu.coding.layout import SECOND_QUANTIZER, CodeLayout, states_of

Floats = npt.NDArray[np.float64]

FIRST_QUANTIZER = np.zeros(1, dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Rates:
    """The bits, or prices, of the codes of a tensor.

    Attributes:
        bits: (classes, quantizers, reach + 1) of every magnitude, the sign included; two quantizers with a trellis.
        classes: (columns, rows) class of every code: what the coder expects from the codes before it.
        states: of the trellis.
    """

    bits: Floats
    classes: npt.NDArray[np.uint8]
    states: int

    @classmethod
    def of(cls, codes: npt.NDArray[np.integer[Any]], layout: CodeLayout, reach: int) -> Rates:
        """The rates that codes suggest.

        Args:
            codes: (columns, rows).
            layout: of their tensor.
            reach: largest magnitude.

        Example:
            >>> codes = np.array([[0, 0], [1, -1]] * 100)
            >>> 200 < Rates.of(codes, CodeLayout(2, 200), 2).total(codes) < 700  # a sign for every second code
            True
        """
        found = rate_table(codes.T, layout, reach)
        bits = np.ascontiguousarray(found.bits.transpose(1, 0, 2))
        return cls(bits, np.ascontiguousarray(found.levels.T), layout.states)

    @classmethod
    def free(cls, layout: CodeLayout, reach: int) -> Rates:
        """Bits that cost nothing."""
        bits = np.zeros((1, 2 if layout.states else 1, reach + 1))
        return cls(bits, np.zeros((layout.columns, layout.rows), dtype=np.uint8), layout.states)

    def priced(self, price: float) -> Rates:
        """The same codes at a price per bit."""
        return replace(self, bits=price * self.bits)

    def total(self, codes: npt.NDArray[np.integer[Any]]) -> float:
        """Sum over (columns, rows) codes."""
        second = SECOND_QUANTIZER[self.states] if self.states else FIRST_QUANTIZER
        quantizers = second[states_of(codes.T, self.states).T]
        return float(self.bits[self.classes, quantizers, np.abs(codes)].sum())

"""The settings of the published formulation, most of which could not be read in the paper."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from qubo_compress._internal.checks import plain, whole
from qubo_compress.encodings.published.layers import MOST_CODE_BITS
from qubo_compress.errors import InvalidOption, unknown_name

QUANTIZATION_LOSSES = ("error", "magnitude", "fitted")
"""Named forms of L_q."""

FEWEST_BITS, MOST_BITS = 2, 16
"""Widths that ``quantize`` stores."""

VECTOR_BITS = (None, 32, 16, 8)


@dataclass(frozen=True)
class Formulation:
    """How the numbers of the published objective are made from a network. All defaults are ours.

    With e_n(b) the sum over the filters of layer n of the mean absolute error of their weights at b bits, which has the
    unit of L_p's sum, and r_n the number of bits removed, L_q is one of

    - ``"error"``: sum_n (e_n(b_min) r_n / r_max)^2: right at both ends, quadratic between;
    - ``"fitted"``: the quadratic function of the code's bits closest to e_n(b)^2 - e_n(b_max)^2 at all widths;
    - ``"magnitude"``: sum_n (sum_i a[n,i] r_n / b_max)^2: removing all bits would lose what pruning all filters loses;
    - sum_n (s_n r_n)^2 for given sensitivities: layer name -> s_n.

    Attributes:
        beta: weight of L_q, at least 0.
        most_bits: b_max, the width of a layer that loses no bits; at most 16.
        code_bits: K, the bits of a layer's code, which removes 0 to 2^K - 1 bits; at least two bits must be left. The
            default offers 2 to 9 bits.
        quantization: the form of L_q, by name or by sensitivities.
        layers: a regular expression on the names of weights; None: all weights. The others are kept unchanged.
        feeds: (name of the producing weight, name of the reading weight): weights that read pruned filters count as
            saved in R, as far as they can; H is then not separable. Files still store them. None by default.
        vector_bits: of normalisations and biases, which have no bits in the objective: 8, 16 or 32, or None to keep
            them unchanged. Normalisations are folded.

    Raises:
        InvalidOption, UnknownName: for values out of range.

    Example:
        >>> Formulation(most_bits=8, code_bits=2).widths
        (8, 7, 6, 5)
    """

    beta: float = 1.0
    most_bits: int = 9
    code_bits: int = 3
    quantization: str | Mapping[str, float] = "error"
    layers: str | None = None
    feeds: tuple[tuple[str, str], ...] = ()
    vector_bits: int | None = 16

    def __post_init__(self) -> None:
        code = whole("code_bits", self.code_bits, 1)
        most = whole("most_bits", self.most_bits, FEWEST_BITS + 1)
        least = most - (2**code - 1)
        if code > MOST_CODE_BITS or most > MOST_BITS or least < FEWEST_BITS:
            raise InvalidOption(
                f"most_bits={most} and code_bits={code} offer {least} to {most} bits; files store {FEWEST_BITS} to "
                f"{MOST_BITS}, so that code_bits is at most 3, most_bits at most {MOST_BITS}, and most_bits at least "
                f"{2**code - 1 + FEWEST_BITS} for this code_bits"
            )
        beta = plain(self.beta)
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < math.inf:
            raise InvalidOption(f"beta must be a finite number that is not negative; got {self.beta!r}")
        for name, value in {"code_bits": code, "most_bits": most, "beta": float(beta)}.items():
            object.__setattr__(self, name, value)
        self._check_quantization()
        self._check_names()

    def _check_quantization(self) -> None:
        if isinstance(self.quantization, str):
            if self.quantization not in QUANTIZATION_LOSSES:
                raise unknown_name("quantization", self.quantization, QUANTIZATION_LOSSES)
            return
        if not isinstance(self.quantization, Mapping):
            raise InvalidOption(
                f"quantization must be one of {', '.join(QUANTIZATION_LOSSES)}, or a sensitivity for every layer's "
                f"name; got {self.quantization!r}"
            )
        found = {name: plain(value) for name, value in self.quantization.items()}
        for name, value in found.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise InvalidOption(f"the sensitivity of {name!r} must be a number that is not negative; got {value!r}")
        object.__setattr__(self, "quantization", found)

    def _check_names(self) -> None:
        if self.layers is not None:
            try:
                re.compile(self.layers)
            except (re.error, TypeError) as cause:
                raise InvalidOption(f"layers={self.layers!r} must be a regular expression or None: {cause}") from cause
        feeds = tuple(tuple(pair) if not isinstance(pair, str) else (pair,) for pair in self.feeds)
        if any(len(pair) != 2 or not all(isinstance(name, str) for name in pair) for pair in feeds):
            raise InvalidOption(f"feeds must be pairs of weights' names, (producer, reader); got {self.feeds!r}")
        object.__setattr__(self, "feeds", feeds)
        if self.vector_bits not in VECTOR_BITS:
            raise InvalidOption(f"vector_bits must be 8, 16, 32 or None; got {self.vector_bits!r}")

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths, by the number of bits removed."""
        return tuple(self.most_bits - removed for removed in range(2**self.code_bits))

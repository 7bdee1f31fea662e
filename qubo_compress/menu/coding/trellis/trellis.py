"""Dependent quantization: codes of two quantizers, chosen by a Viterbi search, made for the entropy coder.

Two quantizers share one step, and the parities of the codes before decide which one a code belongs to (trellis-coded
quantization, Marcellin & Fischer, IEEE Trans. Communications 1990; with states as in VVC, ITU-T H.266, and NNC, ISO/IEC
15938-17). Each quantizer is as coarse as a plain one of the same rate, but together their values are twice as dense,
and a search among all sequences of states uses that: up to 1 dB less error at equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.coding.layout import CodeLayout
from qubo_compress.menu.coding.trellis.rates import Rates
from qubo_compress.menu.coding.trellis.search import Integers, Quantizers, Target, descended, propagated
from qubo_compress.menu.coding.trellis.stored import LARGEST_CODE, TrellisTensor, TrellisTensors
from qubo_compress.menu.compensation.layer_error import Compensating
from qubo_compress.menu.families import offer
from qubo_compress.menu.operator import operators, values_of
from qubo_compress.menu.quantize import half_scale
from qubo_compress.menu.storage.streams import Reader
from qubo_compress.network.groups import Group, Member

PROPAGATIONS, SWEEPS = 2, 3
"""Passes with prices of bits, each with those of the codes before; further ones gain less than 0.05 dB."""

SPARE = 2
"""Compensated weights may be larger than all others by this many codes."""

STATES = (0, 4, 8)

LARGEST_RATE = 10.0

OFFERED = tuple(float(f"{step:.2g}") for step in np.geomspace(0.2, 6.0, 14))
"""Steps of the family, from about four bits to less than one; neighbours differ by 0.3 to 0.4 bits."""


@operators.register
@dataclass(frozen=True)
class Trellis(Compensating):
    """Compensated codes of a trellis; small when coded: ``coded(of='trellis(step=1.0)')``.

    Codes minimise output error + rate x b x bits, with b = 2 ln 2 times the mean output error of a weight without it,
    which is what a bit is worth there (6 dB per bit).

    Args:
        step: distance between two values of one quantizer, in units of the root mean square of the tensor; at equal
            steps and a high rate, all ``states`` need equally many bits.
        rate: weight of a bit; 0: bits do not count.
        states: 4 or 8; 0: one plain quantizer.
        damping: share of the mean input moment that is added to every input's, at least; more where there are few
            examples, see :mod:`qubo_compress.calibration.statistics.damping`. A large one, such as 1e6, makes all
            inputs independent and alike, so nothing is compensated.

    Raises:
        InvalidMenu: for settings out of range.

    Example:
        >>> Trellis(step=0.5).needs
        (InputMoments(),)
    """

    operator_name: ClassVar[str] = "trellis"
    takes_unseen_inputs: ClassVar[bool] = True
    step: float
    rate: float = 1.0
    states: int = 8
    damping: float = 0.01

    def __post_init__(self) -> None:
        for name, low, high in (("step", 0.005, 20.0), ("rate", 0.0, LARGEST_RATE), ("damping", 1e-9, 1e9)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and low <= value <= high):
                raise InvalidMenu(f"{name} must be a number from {low} to {high}; got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.states not in STATES:
            raise InvalidMenu(f"states must be 4 or 8, or 0 for plain codes; got {self.states!r}")

    @classmethod
    def samples(cls) -> tuple[Trellis, ...]:
        return cls(0.3, rate=0.0), cls(1.0), cls(2.0, states=4), cls(1.0, states=0)

    @classmethod
    def faithful(cls) -> tuple[Trellis, float] | None:
        return cls(0.01), 0.03

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Accept all weights: nothing is compensated in those of embeddings and LSTMs, whose inputs count alike."""
        return None if group.kind == "weight" else f"{group.kind} vectors have no inputs to compensate with"

    def at_price(self, price: float) -> Trellis | None:
        return replace(self, rate=min(self.rate * price, LARGEST_RATE)) if self.rate > 0 else None

    def encode_with(
        self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, tuple[Any, ...]]
    ) -> TrellisTensors:
        found = zip(group.members, parts, evidence[InputMoments()], strict=True)
        return TrellisTensors(tuple(self._one(*item) for item in found))

    def _one(self, member: Member, part: Tensor, moments: Moments) -> TrellisTensor:
        values = values_of(part).double()
        root, largest = float(values.square().mean().sqrt()), float(values.abs().max())
        shares = 2 if self.states else 1
        step = half_scale(torch.tensor(max(self.step * root, largest / (LARGEST_CODE - SPARE)) / shares))
        width = float(step) * shares
        reach = min(math.ceil(largest / width) + SPARE, LARGEST_CODE)
        target = Target.of(values.numpy(), moments, moments.at_least(self.damping))
        codes = self._codes(target, Quantizers(CodeLayout.of(member.part_shape, self.states), width, reach))
        stored = torch.from_numpy(np.ascontiguousarray(codes.T)).to(torch.int16)
        return TrellisTensor(member, self.states, step, stored, int(stored.abs().max()))

    def _codes(self, target: Target, quantizers: Quantizers) -> Integers:
        free = quantizers.free()
        codes = propagated(target, quantizers, free)
        worth = 2 * math.log(2) * target.error(quantizers.values(codes)) / codes.size

        def rates() -> Rates:
            if self.rate == 0:
                return free
            return quantizers.rates(codes).priced(self.rate * worth)

        for _ in range(PROPAGATIONS if self.rate > 0 else 0):
            codes = propagated(target, quantizers, rates())
        for _ in range(SWEEPS):
            descended(target, codes, quantizers, rates())
        return codes

    def read(self, group: Group, reader: Reader) -> TrellisTensors:
        return TrellisTensors(tuple(TrellisTensor.read(member, self.states, reader) for member in group.members))


offer("trellis", *(f"coded(of='trellis(step={step})')" for step in OFFERED))

"""Streams of an adaptive coder: tensors of codes and raw bytes, one after the other, through one arithmetic coder.

Why our own coder, when ``constriction`` codes the older streams: an adaptive model changes after every decision, and
``constriction`` would need one call from Python for each. These kernels are compiled as a whole, and whoever reads such
a stream needs no other package.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled
from qubo_compress.menu.coding.adaptive.arithmetic import (
    HALF,
    PLACE,
    READING,
    Bytes,
    Coder,
    code_fields,
    coded_bit,
    finish,
    reading,
    wide,
    writing,
)
from qubo_compress.menu.coding.adaptive.mixing import BitMixture, Whole, moved, new_mixture
from qubo_compress.menu.coding.adaptive.prior import PRIOR
from qubo_compress.menu.coding.adaptive.sizes import LEVELS, START_BITS, new_sums, start_number, start_size
from qubo_compress.menu.coding.adaptive.tables import ONE, RAREST, SQUASH
from qubo_compress.menu.coding.adaptive.tensor import (
    ALL_MAGNITUDES,
    DECISIONS,
    MODELLED,
    SIGN_STARTS,
    SIGNS,
    Geometry,
    TensorCoding,
    code_tensor,
)
from qubo_compress.menu.coding.layout import CodeLayout

Integers = npt.NDArray[np.int64]

LARGEST_MAGNITUDE = 4 + (1 << 15) - 1
"""Codes beyond have no decisions."""

KNOWN = 120
"""Observations that a stream's first probabilities count as."""

FEW_KNOWN, SMOOTH = 6, 32
"""What is known of signs counts less; their logits rise by 32/256 with every step of the smooth kernel's guess."""

UNKNOWN = HALF << 8 | 2
"""A slot without a prior."""

EVERYWHERE = np.zeros((0, 0), dtype=np.bool_)
NO_LEVELS = np.zeros((0, 0), dtype=np.uint8)
PLANES = (0, 1, 2, 4, 8)
"""Raw bytes are stored as they are, or modelled as numbers of so many bytes, whose bytes are alike place by place."""

FEWEST_MODELLED = 12
"""Fewer raw bytes are stored as they are."""


def refuse_too_large(low: int, high: int) -> None:
    """Raise ``ValueError`` for a range of codes that the coder has no decisions for."""
    if max(-low, high) > LARGEST_MAGNITUDE:
        raise ValueError(f"codes from {low} to {high} are too large for the adaptive coder")


class AdaptiveStream:
    """Codes what it is given, or fills it with what was coded.

    Args:
        data: the bytes to read; or, to write, room for them.
        coder: see :mod:`qubo_compress.menu.coding.adaptive.arithmetic`.

    Attributes:
        counts: trellis or not -> what was decided, as in ``TensorCoding``.
    """

    def __init__(self, data: Bytes, coder: Coder) -> None:
        self._data, self._coder = data, coder
        self._known: dict[bool, tuple[BitMixture, Whole]] = {}
        self.counts: dict[bool, Integers] = {}

    @classmethod
    def writer(cls, room: int) -> Self:
        """A stream that writes up to ``room`` bytes, and counts those beyond."""
        return cls(np.zeros(room, dtype=np.uint8), writing())

    @classmethod
    def reader(cls, data: memoryview) -> Self:
        """A stream that reads."""
        found = np.frombuffer(data, dtype=np.uint8).copy()  # kernels take writable bytes, so that they exist once
        return cls(found, reading(found))

    def finish(self) -> bytes | None:
        """The written bytes, or None if there was too little room."""
        size = finish(self._coder, self._data)
        return None if size > self._data.size else self._data[:size].tobytes()

    @property
    def place(self) -> int:
        """Number of bytes moved in or out."""
        return int(self._coder[PLACE])

    def fields(self, values: Integers, width: int) -> Integers:
        """Unsigned numbers of a fixed width, without a model."""
        code_fields(values, width, self._coder, self._data)
        return values

    def tensor(
        self, codes: Integers, low: int, high: int, layout: CodeLayout, present: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.uint8]:
        """A tensor of codes; when reading, ``codes`` is filled.

        Args:
            codes: (rows, columns).
            low: smallest that is allowed.
            high: largest that is allowed.
            layout: of the tensor.
            present: (rows, columns) which of them are coded; the others are zeros.

        Returns:
            (rows, columns) the level of every code: its expected size, and its quantizer.

        Raises:
            ValueError: when numbers are so large that they cannot be coded.
        """
        refuse_too_large(low, high)
        start = np.array([start_number(codes)], dtype=np.int64)
        self.fields(start, START_BITS)
        turned = np.zeros((layout.columns + 1, layout.rows), dtype=np.int64)
        turned[:-1] = codes.T
        where = EVERYWHERE if present is None else np.ascontiguousarray(present.T)
        levels = np.zeros((layout.columns, layout.rows), dtype=np.uint8)
        mixture, places = self._model(layout.states > 0)
        sums = new_sums(layout.rows, layout.positions, start_size(int(start[0])))
        counts = self.counts[layout.states > 0]
        work = TensorCoding(mixture, places, counts, sums, np.zeros(7, dtype=np.int64), self._coder, self._data)
        code_tensor(turned, where, Geometry.of(layout, low, high), work, levels)
        codes[:] = turned[:-1].T
        return levels.T

    def _model(self, trellis: bool) -> tuple[BitMixture, Whole]:
        if trellis not in self._known:
            mixture = new_mixture(int(SIGN_STARTS[-1]), SIGNS + 1)
            for quantizer in range(2):
                first = quantizer * ALL_MAGNITUDES
                prior = PRIOR[1 + quantizer if trellis else 0].astype(np.int32)
                mixture.slots[first : first + LEVELS * DECISIONS] = (prior << 8 | KNOWN).reshape(-1)
            mixture.slots[SIGN_STARTS[0] : SIGN_STARTS[1]] = _signs()
            self._known[trellis] = mixture, np.full(DECISIONS * MODELLED, UNKNOWN, dtype=np.int32)
            self.counts[trellis] = np.zeros((2, LEVELS, DECISIONS, 2), dtype=np.int64)
        return self._known[trellis]

    def raw(self, values: Integers) -> None:
        """Bytes, as they are or modelled, whichever is shorter; when reading, ``values`` is filled."""
        if values.size < FEWEST_MODELLED:
            self.fields(values, 8)
            return
        choice = np.array([0 if self._coder[READING] else self._shortest(values)], dtype=np.int64)
        planes = PLANES[min(int(self.fields(choice, 3)[0]), len(PLANES) - 1)]
        if planes == 0 or values.size % planes:
            self.fields(values, 8)
        else:
            slots = np.full((planes, 256), UNKNOWN, dtype=np.int32)
            code_planes(values, slots, self._coder, self._data)

    @staticmethod
    def _shortest(values: Integers) -> int:
        """The shortest way to code bytes: that of its length if the model were alone."""
        lengths = [float(values.size)]
        for planes in PLANES[1:]:
            trial, data = writing(), np.zeros(0, dtype=np.uint8)
            if values.size % planes == 0:
                code_planes(values.copy(), np.full((planes, 256), UNKNOWN, dtype=np.int32), trial, data)
            lengths.append(float(trial[PLACE]) if values.size % planes == 0 else math.inf)
        return int(np.argmin(lengths))


def _signs() -> Whole:
    """Slots of signs: a kernel's neighbours have the same one more often, the more so the larger they are."""
    guesses = np.arange(25) - 12
    logits = np.clip(-SMOOTH * guesses, -10 * SMOOTH, 10 * SMOOTH)
    return np.repeat(SQUASH[logits + 2048] << 8 | FEW_KNOWN, 3)


@compiled
def code_planes(values: Integers, slots: npt.NDArray[np.int32], coder: Coder, data: Bytes) -> None:
    """Write or read bytes, each bit in the context of those before it in the same byte and of the byte's place."""
    planes = slots.shape[0]
    for i in range(values.size):
        plane, node = i % planes, 1
        for shift in range(7, -1, -1):
            slot = slots[plane, node]
            chance = min(max(wide(slot >> 8), RAREST), ONE - RAREST)
            bit = coded_bit(values[i] >> shift & 1, chance, coder, data)
            slots[plane, node] = moved(slot, bit)
            node = node * 2 + bit
        values[i] = node - 256

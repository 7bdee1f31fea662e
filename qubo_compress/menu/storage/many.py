"""Stores many choices of one group, or of the filters of one layer, doing shared work once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.menu.coding.coded import Coded, coded_group
from qubo_compress.menu.keep import Keep
from qubo_compress.menu.operator import Operator, values_of
from qubo_compress.menu.prune import Prune, largest_of_rows, magnitude_mask
from qubo_compress.menu.quantize import (
    Quantize,
    QuantizedTensors,
    code_range,
    fit_scale,
    nearest_codes,
    scales_of,
)
from qubo_compress.menu.storage.parts import within_range
from qubo_compress.menu.storage.row_kernels import mask_sizes
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import code_bytes
from qubo_compress.menu.zero import Zero
from qubo_compress.network.groups import Group

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fits:
    """The results of encoding's searches, choice by choice, so that nothing is searched twice.

    Attributes:
        data: all bytes, one choice after the other.
        ends: (V,) end of every choice's bytes.

    Example:
        >>> fits = Fits.joined([b"ab", b"", b"c"])
        >>> fits.of(0), fits.of(1), fits.select([2, 0]).of(0)
        (b'ab', b'', b'c')
    """

    data: npt.NDArray[np.uint8]
    ends: Counts

    @classmethod
    def joined(cls, found: Sequence[bytes]) -> Fits:
        """Join entries, one per choice, into one object."""
        ends = np.cumsum([len(fit) for fit in found], dtype=np.int64)
        return cls(np.frombuffer(b"".join(found), dtype=np.uint8), ends)

    def of(self, choice: int) -> bytes:
        """The bytes of one choice, by its number among all."""
        start = int(self.ends[choice - 1]) if choice else 0
        return self.data[start : int(self.ends[choice])].tobytes()

    def select(self, index: Sequence[int] | npt.NDArray[np.integer]) -> Fits:
        """The entries of the given choices, in their order."""
        return Fits.joined([self.of(int(choice)) for choice in index])


@dataclass
class _Shared:
    """A group's values and masks, each computed once."""

    group: Group
    parts: Sequence[Tensor]
    masks: dict[float, list[Tensor]] = field(default_factory=dict)
    values: list[Tensor] = field(default_factory=list)

    def rows(self) -> list[Tensor]:
        """(rows, columns) float32 of every member."""
        if not self.values:
            self.values = [values_of(part) for part in self.parts]
        return self.values

    def kept(self, sparsity: float) -> list[Tensor]:
        """Flat mask of every member."""
        if sparsity not in self.masks:
            self.masks[sparsity] = [magnitude_mask(part, sparsity) for part in self.parts]
        return self.masks[sparsity]

    def quantized(self, operator: Quantize, fit: bytes | None) -> QuantizedTensors:
        """The group as stored by the operator's own ``encode`` or ``encode_at``."""
        rows = self.rows()
        scales: Sequence[Tensor | None] = [None] * len(rows)
        if fit is not None:
            scales = scales_of(fit, [len(values) for values in rows])
        masks: Sequence[Tensor | None] = [None] * len(rows)
        if operator.sparsity > 0:
            masks = [m.reshape(v.shape) for m, v in zip(self.kept(operator.sparsity), rows, strict=True)]
        found = zip(self.group.members, rows, masks, scales, strict=True)
        return QuantizedTensors(tuple(operator.stored(m, v, mask, scale) for m, v, mask, scale in found))


def encoded(
    group: Group, parts: Sequence[Tensor], offered: Mapping[str, Operator], fits: Mapping[str, bytes] | None = None
) -> Iterator[tuple[str, Stored]]:
    """Every choice of a group by name, in the given order, exactly as its operator's own ``encode`` stores it.

    Choices of equal sparsity share masks, and ``coded(of=...)`` reuses the plain choice if it is also offered.

    Args:
        group: what is stored.
        parts: its members' values on the CPU.
        offered: choice name -> operator; none of them needs data.
        fits: choice name -> the result of its operator's search on these values.
    """
    shared, known = _Shared(group, parts), fits or {}
    wanted = {operator.of for operator in offered.values() if isinstance(operator, Coded) and operator.rate == 0}
    plain: dict[str, Stored] = {}
    for name, operator in offered.items():
        fit = known.get(name)
        stored: Stored
        # A subclass may store its values differently.
        if type(operator) is Quantize:
            stored = shared.quantized(operator, fit)
        elif type(operator) is Prune:
            stored = operator.stored(parts, shared.kept(operator.sparsity))
        elif type(operator) is Coded and operator.rate == 0 and operator.of in plain:
            stored = coded_group(plain[operator.of], group, operator.of)
        else:
            stored = operator.encode(group, parts) if fit is None else operator.encode_at(group, parts, fit)
        if name in wanted:
            plain[name] = stored
        yield name, stored


def of_equal_values(operator: Operator) -> Operator:
    """A faster operator that stores the same values: a coded choice without its coder.

    Example:
        >>> of_equal_values(Coded("quantize(bits=4)")), of_equal_values(Keep())
        (Quantize(bits=4, sparsity=0.0), Keep())
    """
    return operator.inner if type(operator) is Coded and operator.rate == 0 else operator


@dataclass(frozen=True, eq=False)
class RowPrices:
    """One choice of many groups of one row each.

    Attributes:
        nbytes: (R,) stored bytes.
        nonzeros: (R,) values that multiply.
        weight_bits: bits of one stored value.
        fits: (R,) entries of :class:`Fits`.
    """

    nbytes: Counts
    nonzeros: Counts
    weight_bits: int
    fits: list[bytes]


def prices_rows(operator: Operator) -> bool:
    """Whether :class:`Rows` can price and store a choice."""
    return type(operator) in (Keep, Prune, Quantize, Zero)


class Rows:
    """Groups that are one row each of one tensor, such as the filters of a layer, stored and priced together.

    Args:
        values: (R, D), a row per group, in the tensor's own dtype on the CPU.

    Example:
        >>> Rows(torch.tensor([[3.0, -3.0], [0.0, 7.0]])).priced(Quantize(4)).nonzeros.tolist()
        [2, 1]
    """

    def __init__(self, values: Tensor) -> None:
        self._given = values
        self._item = values.dtype.itemsize
        self._values = values.float()
        self._masks: dict[float, tuple[Tensor, Counts, Counts]] = {}

    def priced(self, operator: Operator) -> RowPrices:
        """Every group's costs under one choice, equal to those of its stored form."""
        rows, columns = self._values.shape
        every = np.full(rows, columns, dtype=np.int64)
        if isinstance(operator, Prune):
            _, survivors, sizes = self._masked(operator.sparsity)
            return RowPrices(sizes + self._item * survivors, survivors, 8 * self._item, [b""] * rows)
        if isinstance(operator, Quantize):
            return self._quantized(operator, every)
        if isinstance(operator, Zero):
            return RowPrices(0 * every, 0 * every, 1, [b""] * rows)
        return RowPrices(every * self._item, every, 8 * self._item, [b""] * rows)

    def stored(self, operator: Operator) -> Tensor:
        """(R, D) every group's values under one choice, in the tensor's dtype: equal to those of its stored form."""
        if isinstance(operator, Prune):
            return self._given.where(self._masked(operator.sparsity)[0], torch.zeros_like(self._given))
        if isinstance(operator, Zero):
            return torch.zeros_like(self._given)
        if not isinstance(operator, Quantize):
            return self._given
        mask = self._masked(operator.sparsity)[0] if operator.sparsity > 0 else None
        scale = fit_scale(self._values, mask, operator.bits)
        codes = nearest_codes(self._values, mask, scale, operator.bits)
        return within_range(codes.float() * scale.float(), self._given.dtype)

    def _quantized(self, operator: Quantize, counts: Counts) -> RowPrices:
        mask, nbytes = None, np.full(len(counts), 2, dtype=np.int64)
        if operator.sparsity > 0:
            mask, counts, packed = self._masked(operator.sparsity)
            nbytes = nbytes + packed
        scale = fit_scale(self._values, mask, operator.bits)
        codes = nearest_codes(self._values, mask, scale, operator.bits)
        low, high = code_range(operator.bits, mask is not None)
        sizes = {count: code_bytes(count, low, high) for count in set(counts.tolist())}
        nbytes = nbytes + np.array([sizes[count] for count in counts.tolist()])
        stored = scale.numpy().tobytes()
        fits = [stored[start : start + 2] for start in range(0, len(stored), 2)]
        return RowPrices(nbytes, np.count_nonzero(codes.numpy(), axis=1), operator.bits, fits)

    def _masked(self, sparsity: float) -> tuple[Tensor, Counts, Counts]:
        """Masks, with the survivors and packed bytes of every row."""
        if sparsity not in self._masks:
            kept = largest_of_rows(self._values.abs().numpy(), sparsity)
            sizes = np.empty(len(kept), dtype=np.int64)
            mask_sizes(kept, sizes)
            self._masks[sparsity] = torch.from_numpy(kept), np.count_nonzero(kept, axis=1), sizes
        return self._masks[sparsity]

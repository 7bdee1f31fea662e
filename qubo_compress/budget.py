"""Limits on bytes, on arithmetic, time and memory cells, and on what may be forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real

from qubo_compress._internal.checks import plain
from qubo_compress.errors import InvalidBudget
from qubo_compress.latency import LONGEST, UNITS, LatencyTable

MILLION = 1_000_000
"""Shares of examples are counted in millionths because costs are whole numbers."""


_EXTRAS = ("macs", "bit_operations", "cells", "harmful_flips")

LATENCY = "latency_ns"
"""The name of the limit on milliseconds, which counts whole nanoseconds."""


LARGEST = 2**53
"""Sums of costs are exact in float64 up to here."""


@dataclass(frozen=True)
class Budget:
    """A limit on stored bytes, and optionally on arithmetic, milliseconds, memory cells or harmful flips.

    Exactly one of ``ratio``, ``bytes`` and ``bits_per_weight`` sets the bytes of the file, header included.

    Args:
        ratio: original bytes over stored bytes; 12 means a twelfth of the size.
        bytes: largest size of the file.
        bits_per_weight: eight times the bytes of the file over the number of unique parameters.
        macs: largest number of multiplications by non-zero weights per example; where channels are removed, by all
            weights that are left, zero or not, because that many are done.
        bit_operations: ``macs`` with each multiplication weighted by the bits of its weight and of its activation: 32,
            unless the choice rounds the layer's inputs.
        cells: largest number of one-bit memory cells for the compressed tensors.
        harmful_flips: largest expected share of calibration examples, 0 to 1, that the original gets right and the
            compressed network gets wrong. Examples count by their weights: those of the batches times
            ``example_weights``. Each choice counts the flips that it causes on its own, and the counts of all groups
            are added, as if no two choices flipped the same example and none flipped it back. That is a model, not a
            guarantee: real plans flip more or fewer (``benchmarks/studies/long_tail.py`` measures it). Counts of a few
            flips are noise, and plans that avoid just those flips may flip others: give many examples near the decision
            boundary. It needs class labels and a metric that runs every choice.
        latency_ms: most milliseconds of one run, as ``latency`` predicts them, raised by its margin.
        latency: what each choice takes, from :func:`qubo_compress.latency_table`; given if ``latency_ms`` is.

    Raises:
        InvalidBudget: when none or several of the three sizes are given, or a value is out of range.

    Example:
        >>> Budget(ratio=10).limits(original_bytes=1000, parameters=250)
        {'bytes': 100}
        >>> Budget(bits_per_weight=4, macs=5000).limits(original_bytes=1000, parameters=250)
        {'bytes': 125, 'macs': 5000}
        >>> Budget(ratio=10, harmful_flips=0.01).limits(original_bytes=1000, parameters=250)
        {'bytes': 100, 'harmful_flips': 10000}
    """

    ratio: float | None = None
    bytes: int | None = None
    bits_per_weight: float | None = None
    macs: int | None = None
    bit_operations: int | None = None
    cells: int | None = None
    harmful_flips: float | None = None
    latency_ms: float | None = None
    latency: LatencyTable | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("ratio", "bytes", "bits_per_weight")}
        given = [name for name, value in sizes.items() if value is not None]
        if len(given) != 1:
            raise InvalidBudget(
                f"give exactly one of ratio, bytes and bits_per_weight; got {', '.join(given) or 'none of them'}"
            )
        for name in (item.name for item in fields(self) if item.name != "latency"):
            object.__setattr__(self, name, plain(getattr(self, name)))
            _refuse_other_than_a_number(name, getattr(self, name))
        _refuse_half_a_latency(self.latency_ms, self.latency)
        for name in ("ratio", "bytes", "bits_per_weight", "macs", "bit_operations", "cells", "latency_ms"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InvalidBudget(f"{name} must be a positive number; got {value}")
            if value is not None and name not in ("ratio", "bits_per_weight", "latency_ms") and value != int(value):
                raise InvalidBudget(f"{name} must be a whole number; got {value}")
            if value is not None and value > LARGEST:
                raise InvalidBudget(f"{name} must be at most 2**53; got {value}")
        if self.latency_ms is not None and self.latency_ms > LONGEST:
            raise InvalidBudget(f"latency_ms must be at most {LONGEST:g}; got {self.latency_ms}")
        if self.harmful_flips is not None and not 0 <= self.harmful_flips <= 1:
            raise InvalidBudget(f"harmful_flips must be a share of the examples, 0 to 1; got {self.harmful_flips}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the limits that are set, ``bytes`` first."""
        extra = tuple(name for name in _EXTRAS if getattr(self, name) is not None)
        return ("bytes", *extra, *(() if self.latency_ms is None else (LATENCY,)))

    def resized(self, ratio: float) -> Budget:
        """The same budget at another size: only the other limits are kept.

        Example:
            >>> Budget(bytes=900, macs=50).resized(4).limits(original_bytes=1000, parameters=250)
            {'bytes': 250, 'macs': 50}
        """
        return replace(self, ratio=ratio, bytes=None, bits_per_weight=None)

    def limits(self, original_bytes: int, parameters: int) -> Mapping[str, int]:
        """Absolute limits for a network of the given size."""
        if self.bytes is not None:
            size = int(self.bytes)
        elif self.ratio is not None:
            size = math.floor(original_bytes / self.ratio)
        else:
            size = math.floor(float(self.bits_per_weight or 0.0) * parameters / 8)
        plain_limits = [name for name in self.names[1:] if name not in ("harmful_flips", LATENCY)]
        extra = {name: int(getattr(self, name)) for name in plain_limits}
        if self.harmful_flips is not None:
            extra["harmful_flips"] = math.floor(self.harmful_flips * MILLION + 1e-6)
        if self.latency_ms is not None:
            extra[LATENCY] = math.floor(self.latency_ms * UNITS)
        return {"bytes": size, **extra}


def refuse_other_than_a_budget(budget: object) -> None:
    """Raise :class:`InvalidBudget` for anything but a budget, such as a bare number."""
    if not isinstance(budget, Budget):
        example = f"qc.Budget(ratio={budget})" if isinstance(budget, Real) else "qc.Budget(ratio=8)"
        raise InvalidBudget(f"a budget is a qc.Budget, such as {example}; got {budget!r} ({type(budget).__name__})")


def _refuse_half_a_latency(limit: float | None, table: object) -> None:
    if table is not None and not isinstance(table, LatencyTable):
        raise InvalidBudget(f"latency must be a table made by qc.latency_table; got {table!r} ({type(table).__name__})")
    if (limit is None) != (table is None):
        given, missing = ("latency", "latency_ms=...") if limit is None else ("latency_ms", "latency=a table")
        raise InvalidBudget(
            f"{given} was given alone: give also {missing}; qc.latency_table(model, example) makes the table"
        )


def _refuse_other_than_a_number(name: str, value: object) -> None:
    # bool is a Real to Python, but ratio=True is a slip.
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        example = "0.01" if name == "harmful_flips" else "12"
        raise InvalidBudget(
            f"{name} must be a number or None; got {value!r} ({type(value).__name__}). "
            f"Give a plain number, such as {name}={example}"
        )

"""A folder of finished parts of a measurement, each written completely or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.arrays import array_writer, read_arrays
from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.reader import opened, parsed_json, printable, read_whole, refused_as
from qubo_compress.errors import CacheMismatch
from qubo_compress.sensitivity.ranks import ALONE, Arrays, Ranks

_CAUSES = {
    "data": "the calibration data differ: usual causes are a shuffling DataLoader or random augmentation; "
    "iterate the same examples in the same order",
    "weights": "the weights differ: the cache belongs to another model or to another state of training",
}


@dataclass(frozen=True)
class Unit:
    """A part of a measurement that any rank can compute independently of all others.

    Attributes:
        name: of its file.
        compute: returns its arrays, always the same ones.
        cost: expected work, in evaluations.
    """

    name: str
    compute: Callable[[], Arrays]
    cost: float = 1.0


class UnitCache:
    """Finished units on disk, or nowhere; several ranks divide the units among themselves.

    Args:
        folder: where the units are kept; None keeps nothing. Ranks may share one or have one each.
        signature: everything the measurement depends on.
        ranks: the processes that share the work.

    Attributes:
        loaded: number of units that were read back.

    Raises:
        CacheMismatch: when the folder was written under another signature; it is left unchanged.
    """

    def __init__(self, folder: str | Path | None, signature: Mapping[str, str], ranks: Ranks = ALONE) -> None:
        self._folder = None if folder is None else Path(folder)
        self.ranks = ranks
        self.loaded = 0
        text = json.dumps(dict(signature), indent=1, sort_keys=True).encode()
        self._digest = hashlib.sha256(text).hexdigest()[:32]
        if self._folder is None:
            return
        path = self._folder / "signature.json"
        if path.exists():
            self._compare(path, dict(signature))
        elif any(self._folder.glob("*.npz")):
            raise CacheMismatch(
                f"{self._folder} holds measurements but no signature.json that says of what; delete it or name another"
            )
        else:
            write_atomically(path, lambda handle: handle.write(text))

    def _compare(self, path: Path, signature: dict[str, str]) -> None:
        with refused_as(path, "the signature of a cache", "delete the folder or name another", CacheMismatch):
            stored = parsed_json(read_whole(path, "a signature"))
            if not isinstance(stored, dict) or not all(isinstance(text, str) for text in stored.values()):
                raise ValueError("it is no table of text")
        different = sorted(name for name in {*stored, *signature} if stored.get(name) != signature.get(name))
        if different:
            hints = [_CAUSES[name] for name in different if name in _CAUSES]
            raise CacheMismatch(
                f"the cache in {self._folder} was measured with another {printable(', '.join(different))}. "
                + ("; ".join(hints) + ". " if hints else "")
                + "Name another folder, or delete this one to measure again"
            )

    def gather(self, units: Sequence[Unit], advance: Callable[[float], None] = lambda _: None) -> list[Arrays]:
        """The arrays of all units, in order. Every rank computes its share and receives the rest, bit for bit.

        All ranks must call with the same units. A unit that any rank has on disk is not computed again; the ranks take
        turns with the others, the most expensive first, and write the ones they computed.

        Args:
            units: all units of the measurement.
            advance: called with the cost of finished units.

        Raises:
            RankFailed: when another rank could not compute its share.
        """
        found: dict[int, Arrays] = {}
        before, held = self.loaded, self.ranks.flags([self._holds(unit.name) for unit in units])
        for turn in _turns(held, [unit.cost for unit in units]):
            mine = turn[self.ranks.rank]
            given = self.ranks.exchange(None if mine is None else self.get(units[mine].name, units[mine].compute))
            for number, arrays in zip(turn, given, strict=True):
                if number is not None and arrays is not None:
                    found[number] = arrays
            advance(sum(units[number].cost for number in turn if number is not None))
        self.loaded = before + int(held.any(axis=0).sum())
        return [found[number] for number in range(len(units))]

    def _holds(self, unit: str) -> bool:
        return self._folder is not None and (self._folder / f"{unit}.npz").exists()

    def get(self, unit: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a unit: read back if complete, otherwise computed and written."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{unit}.npz"
        if path.exists():
            arrays = self._read(path, unit)
            self.loaded += 1
            return arrays
        arrays = compute()
        write_atomically(path, array_writer(arrays, self._said(unit), packed=False))
        return arrays

    def agrees(self, unit: str, arrays: Arrays, same: Callable[[Arrays, Arrays], bool]) -> bool:
        """Whether the folder has the same arrays under this name, or nothing yet, in which case they are written."""
        if self._folder is None:
            return True
        path = self._folder / f"{unit}.signature"  # not a part of the measurement, so not named like one
        if path.exists():
            return same(self._read(path, unit), arrays)
        write_atomically(path, array_writer(arrays, self._said(unit), packed=False))
        return True

    def _said(self, unit: str) -> dict[str, str]:
        """The description in the file of a unit."""
        return {"format": "qubo_compress unit 1", "unit": unit, "signature": self._digest}

    def _read(self, path: Path, unit: str) -> Arrays:
        advice = "delete that one file and its part is measured again"
        with refused_as(path, "whole", advice, CacheMismatch), opened(path, "a part of a measurement") as handle:
            found = read_arrays(handle)
            if found.said is None:
                raise ValueError("it does not say what it is")
            if found.said != self._said(unit):
                other = found.said.get("unit") if found.said.get("signature") == self._digest else "another measurement"
                raise ValueError(f"it says that it is {other}")
            return dict(found.arrays)


def _turns(held: npt.NDArray[np.bool_], costs: Sequence[float]) -> Iterator[tuple[int | None, ...]]:
    """For every turn, the number of the unit that each rank takes, or None.

    Args:
        held: (ranks, units) which rank has which unit on disk.
        costs: of the units. Sorted by cost, the units of a turn take about equally long, so ranks seldom wait.
    """
    ranks = len(held)
    if ranks == 1:
        yield from ((number,) for number in range(len(costs)))
        return
    holder = np.where(held.any(axis=0), held.argmax(axis=0), -1)
    yield from zip_longest(*(np.flatnonzero(holder == rank).tolist() for rank in range(ranks)))
    missing = sorted(np.flatnonzero(holder < 0).tolist(), key=lambda number: -costs[number])
    for start in range(0, len(missing), ranks):
        turn = missing[start : start + ranks]
        yield (*turn, *[None] * (ranks - len(turn)))

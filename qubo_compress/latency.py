"""A table of milliseconds: what each choice of each layer takes in a runtime on a processor.

Made by :func:`qubo_compress.latency_table`; plain numbers, so it can be saved, shared and used on another machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.checked_json import read_checked, with_checksum
from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.notebook import fragment
from qubo_compress._internal.reader import read_whole, refused_as
from qubo_compress.errors import CorruptArtifact, InvalidBudget

FORMAT = "qubo_compress latency table 1"

UNITS = 1_000_000
"""Costs are whole nanoseconds: this many are a millisecond."""

LONGEST = 1e7
"""Most milliseconds of anything in a table."""

FARTHEST = 100.0
"""Most times that an anchor may have taken longer than predicted: more is no measurement."""


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a network: a constant rest, and one number for each choice of each layer.

    Attributes:
        runtime: ``"onnxruntime"``, ``"openvino"`` or ``"torch"``.
        version: of the runtime.
        processor: that it was measured on.
        threads: of the runtime.
        batch: examples in one run.
        rest: milliseconds of everything that no choice changes.
        layers: group name -> choice name -> milliseconds.
        untimed: groups of weights that are in the rest whatever is chosen.
        anchors: (predicted, measured) milliseconds of whole networks that the table was fitted to.
        sizes: group name -> how many weights it has: a table serves only networks with the same.

    Example:
        >>> table = LatencyTable("torch", "2", "a processor", 1, 1, 0.5, {"w": {"keep": 2.0, "quantize(bits=8)": 1.0}})
        >>> table.predicted({"w": "quantize(bits=8)", "b": "keep"})
        1.5
    """

    runtime: str
    version: str
    processor: str
    threads: int
    batch: int
    rest: float
    layers: Mapping[str, Mapping[str, float]]
    untimed: tuple[str, ...] = ()
    anchors: tuple[tuple[float, float], ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Largest relative distance of a prediction from a measurement among the anchors; 0 without anchors."""
        return max((abs(predicted / measured - 1.0) for predicted, measured in self.anchors), default=0.0)

    @property
    def margin(self) -> float:
        """Largest share by which an anchor took longer than predicted: costs are raised by it, predictions are not."""
        return max((measured / predicted - 1.0 for predicted, measured in self.anchors if predicted > 0), default=0.0)

    def predicted(self, choices: Mapping[str, str]) -> float:
        """Milliseconds of a network with these choices, by group name; other groups are kept.

        Raises:
            InvalidBudget: when a choice was not timed.
        """
        found = self.rest
        for group, offered in self.layers.items():
            choice = choices.get(group, "keep")
            if choice not in offered:
                raise InvalidBudget(self._untimed(group, choice))
            found += offered[choice]
        return found

    def corrected(self, choices: Mapping[str, str], measured: float) -> LatencyTable:
        """The table with all times multiplied so that one network takes what it was measured to take.

        Networks near that one are then predicted far better than by a fit to all kinds of networks, so the margin falls
        to 0. A limit is met by solving, measuring and correcting until the measurement is within it.

        Args:
            choices: of the network, by group name; other groups are kept.
            measured: its milliseconds, from :func:`qubo_compress.measured_latency` with the same batch and threads.

        Raises:
            InvalidBudget: when a choice was not timed, or the milliseconds are not positive.

        Example:
            >>> table = LatencyTable("torch", "2", "a processor", 1, 1, 0.5, {"w": {"keep": 2.0, "prune(0.5)": 1.0}})
            >>> round(table.corrected({"w": "keep"}, measured=3.0).predicted({"w": "prune(0.5)"}), 6)
            1.8
        """
        predicted = self.predicted(choices)
        if not 0 < measured <= LONGEST:
            raise InvalidBudget(f"measured must be above 0 and at most {LONGEST:g} milliseconds; got {measured}")
        if predicted == 0:
            raise InvalidBudget("the table predicts 0 milliseconds for these choices, which no factor corrects")
        factor = measured / predicted
        layers = {
            group: {choice: factor * milliseconds for choice, milliseconds in offered.items()}
            for group, offered in self.layers.items()
        }
        return replace(self, rest=factor * self.rest, layers=layers, anchors=((measured, measured),))

    def _repr_html_(self) -> str:
        rows = []
        for name, offered in self.layers.items():
            if not offered:
                continue
            fastest = min(offered, key=lambda choice: offered[choice])
            kept = f"{offered['keep']:.4g}" if "keep" in offered else "–"
            rows.append([name, fastest, kept, f"{offered[fastest]:.4g}"])
        return fragment(
            f"LatencyTable: {len(self.layers):,} layers in {self.runtime} {self.version}",
            [
                f"{self.processor}; threads: {self.threads}, examples in a run: {self.batch}.",
                f"Everything else takes {self.rest:.4g} ms. Whole networks were predicted to {100 * self.error:.0f} %.",
            ],
            ["layer", "fastest choice", "ms kept", "ms"],
            rows,
            names=2,
            more="; table.layers has all",
        )

    def costs(self, groups: Sequence[str], choices: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
        """(V,) nanoseconds of every choice of every group, raised by the margin and rounded up.

        Args:
            groups: names of the groups of a network, in order.
            choices: for every group, the names of its choices.

        Raises:
            InvalidBudget: when a choice, or a layer that choices change, was not timed.
        """
        missing = sorted(set(self.layers) - set(groups))
        if missing:
            raise InvalidBudget(
                f"the latency table has times for {missing[0]}, which this network has not: make one for this network "
                "and grouping with qc.latency_table"
            )
        found = []
        for group, names in zip(groups, choices, strict=True):
            offered = self.layers.get(group)
            for name in names:
                if offered is not None and name not in offered:
                    raise InvalidBudget(self._untimed(group, name))
                ms = 0.0 if offered is None else offered[name]
                found.append(math.ceil(ms * (1.0 + self.margin) * UNITS))
        return np.array(found, dtype=np.int64)

    @property
    def fixed_cost(self) -> int:
        """Nanoseconds of the rest, raised as :meth:`costs` are."""
        return math.ceil(self.rest * (1.0 + self.margin) * UNITS)

    def knows(self, group: str) -> bool:
        """Whether a group of weights was timed, or is known to take the same time whatever is chosen."""
        return group in self.layers or group in self.untimed

    def _untimed(self, group: str, choice: str) -> str:
        return (
            f"the latency table has no time for {choice} of {group}: make it with the menu that is measured, "
            "qc.latency_table(model, example, menu=...), or take the choice off the menu"
        )

    def save(self, path: str | Path) -> None:
        """Write the table to one JSON file, atomically.

        Raises:
            StorageError: when the file cannot be written.
        """
        text = with_checksum({"format": FORMAT, **asdict(self)}, indent=1)
        write_atomically(path, lambda handle: handle.write(text))

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table written by :meth:`save`.

        Raises:
            CorruptArtifact: when the file is not a complete table, or was altered.
            StorageError: when it cannot be read.
            FileNotFoundError: when there is no file.
        """
        data = read_whole(path, "a latency table")
        with refused_as(path, "a complete latency table", "save it again", CorruptArtifact):
            values = read_checked(data)
            if values.pop("format", None) != FORMAT or set(values) != set(cls.__dataclass_fields__):
                raise ValueError("its fields are not those of a latency table")
            return cls._checked(values)

    @classmethod
    def _checked(cls, values: Mapping[str, Any]) -> LatencyTable:
        texts = [values[name] for name in ("runtime", "version", "processor")]
        counts = [values[name] for name in ("threads", "batch")]
        layers, anchors, untimed = values["layers"], values["anchors"], values["untimed"]
        if not all(isinstance(text, str) for text in (*texts, *_listed(untimed))):
            raise ValueError("a name is no text")
        if not all(type(count) is int and 1 <= count <= 2**31 for count in counts):
            raise ValueError("threads and batch must be whole numbers of at least 1")
        if not isinstance(layers, dict) or not all(isinstance(offered, dict) for offered in layers.values()):
            raise ValueError("its layers are no table")
        pairs = [tuple(_listed(pair)) for pair in _listed(anchors)]
        if not all(len(pair) == 2 and all(_is_time(number) and number > 0 for number in pair) for pair in pairs):
            raise ValueError("an anchor is no pair of times")
        if any(measured > FARTHEST * predicted for predicted, measured in pairs):
            raise ValueError(f"an anchor took more than {FARTHEST:g} times what is predicted")
        sizes = values["sizes"]
        if not isinstance(sizes, dict) or not all(type(size) is int and size >= 0 for size in sizes.values()):
            raise ValueError("its sizes are no whole numbers")
        times = [values["rest"], *(ms for offered in layers.values() for ms in offered.values())]
        if not all(_is_time(ms) for ms in times):
            raise ValueError(f"a time is no number from 0 to {LONGEST:g} ms")
        return cls(**{**values, "untimed": tuple(untimed), "anchors": tuple(pairs)})


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list is no list")
    return value


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LONGEST

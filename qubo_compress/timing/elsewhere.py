"""A compressed network in the runtimes of others: bytes and milliseconds before and after."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from qubo_compress._internal.checks import whole
from qubo_compress._internal.notebook import fragment
from qubo_compress._internal.optional import installed, require
from qubo_compress.errors import InvalidOption, unknown_name
from qubo_compress.exports.formats import checked_batches, export
from qubo_compress.exports.uncompressed import carried_or_kept
from qubo_compress.network.inputs import Inputs, map_tensors, tensors_of
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.timing.runtimes import Clock, Stopwatch, processor

RUNTIMES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class InRuntime:
    """One runtime.

    Attributes:
        runtime: its name.
        version: of the runtime.
        nbytes: of the compressed network's ONNX file.
        plain_bytes: of the original's.
        milliseconds: of one run of the compressed network.
        plain_milliseconds: of one run of the original.
        agreement: share of examples with the same answer as the compressed network has in PyTorch.
    """

    runtime: str
    version: str
    nbytes: int
    plain_bytes: int
    milliseconds: float
    plain_milliseconds: float
    agreement: float

    @property
    def speed(self) -> float:
        """How many times faster than the original; below 1: slower."""
        return self.plain_milliseconds / self.milliseconds


@dataclass(frozen=True)
class Elsewhere:
    """A compressed network in runtimes of others, beside the original in the same run.

    Attributes:
        processor: that it ran on.
        threads: of every runtime.
        batch: examples of one run.
        artifact_bytes: of the file that :func:`qubo_compress.save` writes.
        original_bytes: of the original's parameters and buffers.
        runtimes: one entry for each.
    """

    processor: str
    threads: int
    batch: int
    artifact_bytes: int
    original_bytes: int
    runtimes: tuple[InRuntime, ...]

    HEAD: ClassVar[tuple[str, ...]] = (
        "runtime", "ONNX bytes", "original's", "ms", "original's ms", "faster", "equal answers",
    )  # fmt: skip

    def rows(self) -> list[list[str]]:
        """A line for every runtime, under :attr:`HEAD`."""
        return [
            [
                f"{one.runtime} {one.version}", f"{one.nbytes:,}", f"{one.plain_bytes:,}", f"{one.milliseconds:.3g}",
                f"{one.plain_milliseconds:.3g}", f"{one.speed:.2f}x", f"{100 * one.agreement:.1f} %",
            ]
            for one in self.runtimes
        ]  # fmt: skip

    @property
    def caption(self) -> str:
        """What the figures were measured on."""
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"{self.artifact_bytes:,} bytes in our own file, {self.original_bytes:,} before. Medians of warm runs of "
            f"{self.batch:,} example{'s' * (self.batch != 1)} on {threads} of this processor: {self.processor}."
        )

    def __str__(self) -> str:
        lines = [self.HEAD, *self.rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.HEAD))]
        table = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([self.caption, *table])

    def _repr_html_(self) -> str:
        return fragment("In other runtimes", [self.caption], self.HEAD, self.rows())


def run_elsewhere(
    small: nn.Module,
    plain: nn.Module,
    example_inputs: Inputs | Sequence[Inputs],
    batch: int = 1,
    runtimes: Sequence[str] | None = None,
    threads: int = 1,
    runs: int = 30,
    clock: Clock = time.perf_counter,
) -> Elsewhere:
    """Export a compressed network and the original, and run both.

    Args:
        small: made by ``plan.apply``, ``recover``, ``compress`` or ``load``, or any other network.
        plain: the original.
        example_inputs: what the network is called with; the answers on all are compared.
        batch: of them in a run that is timed, at most as many as the first batch has.
        runtimes: ``"onnxruntime"``, ``"openvino"``; None: those that are installed.
        threads: of every runtime.
        runs: that count, of each network and round.
        clock: returns seconds.

    Raises:
        WrongModel: when the values of a module have left the grid of its plan.
        ExportRefused: when the network has no ONNX form.
        InvalidBatches, UnknownName, InvalidOption: for other arguments.
        MissingDependency: without a runtime.
    """
    small, plain = unwrapped(small), unwrapped(plain)
    batches = checked_batches(example_inputs, small)
    if runtimes is None:
        runtimes = [name for name in RUNTIMES if installed(name)]
        if not runtimes:
            require("onnxruntime", "onnx")
    wrong = [name for name in runtimes if name not in RUNTIMES]
    if wrong:
        raise unknown_name("runtime", wrong[0], RUNTIMES)
    watches = [Stopwatch(name, threads, runs, clock) for name in runtimes]
    most = len(tensors_of(batches[0])[0])
    if not 1 <= whole("batch", batch) <= most:
        raise InvalidOption(f"batch must be from 1 to {most}, the examples of the first batch; got {batch}")
    timed = map_tensors(batches[0], lambda tensor: tensor[:batch])
    figures = tuple(_in_runtime(watch, (small, plain), batches, timed) for watch in watches)
    found = carried_or_kept(small)
    return Elsewhere(processor(), threads, batch, found.plan.bytes, found.plan.original_bytes, figures)


def _in_runtime(
    watch: Stopwatch, networks: tuple[nn.Module, nn.Module], batches: list[Inputs], timed: Inputs
) -> InRuntime:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("small.onnx", "plain.onnx")]
        found = [
            export(network, path, batches, runtime=watch.runtime) for network, path in zip(networks, paths, strict=True)
        ]
        runners = [watch.runner(path.read_bytes(), timed) for path in paths]
        small_time, plain_time = watch.least_of_turns(runners)
    return InRuntime(
        watch.runtime, watch.version, found[0].nbytes, found[1].nbytes, small_time, plain_time, found[0].agreement
    )

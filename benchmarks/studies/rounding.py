"""How codes are rounded: layer output error and network loss of every way, at equal bytes.

    python -m benchmarks.studies.rounding [--bits 2 3 4] [--examples 500]

Five ways to store all weights of a network with one float16 scale per output: the nearest codes (``quantize``), codes
with the error made up by later columns (GPTQ), these after code-by-code descent (``compensate``), these after the
annealer was asked which way to round (``compensate(rounding='qubo')``), and, for as many seconds in every layer as
that took, the descent restarted repeatedly after moving a few codes at random (``kicked``). Moments come from
calibration images; errors are also measured with the moments of as many validation images, which no way has seen, and
so are loss and accuracy. Records go to ``results/rounding.jsonl``; the table is ``results/rounding.md``.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import Batches, Network, accuracy_and_loss, load
from benchmarks.records import Record, markdown, newest, table
from benchmarks.study import Options, Study, grid
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.statistics import Calibration
from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.menu.compensation.compensate import CLIPPING_SHARES, DAMPING, FINALISTS, Compensate, codebook
from qubo_compress.menu.compensation.moments import descended, output_error, propagated, refitted
from qubo_compress.menu.operator import values_of
from qubo_compress.menu.quantize import Quantize, QuantizedTensors, half_scale, highest_level
from qubo_compress.network.discovery import discover
from qubo_compress.network.groups import Group
from qubo_compress.network.losses.classification import make_loss, rows_of

STUDY = Study(
    __doc__, "rounding", field="part", network="cifar10-resnet20", bits=[2, 3, 4], examples=500, threads=1
)  # fmt: skip
Way = Callable[[Group, Tensor, Moments], Tensor]


def propagated_only(bits: int) -> Way:
    """The best of the same finalists of clipping, without descent; scales refitted once."""

    def way(group: Group, part: Tensor, moments: Moments) -> Tensor:
        values, found = values_of(part).double(), torch.zeros(values_of(part).shape, dtype=torch.float64)
        for block, a, b in moments.spans(len(values)):
            rows, damped = values[a:b], moments.damped(block, DAMPING)
            upper, book = moments.inverse_factor(block, DAMPING), codebook(bits, signs_only=False)
            largest = rows.abs().amax(1, keepdim=True).clamp(min=1e-300) / highest_level(bits)
            shares = torch.tensor(CLIPPING_SHARES, dtype=torch.float64)
            grids = [half_scale(share * largest).double() for share in shares]
            errors = torch.stack([output_error(rows, book.nearest(rows / s) * s, damped) for s in grids])
            least = torch.full((len(rows),), torch.inf, dtype=torch.float64)
            for pick in errors.argsort(dim=0, stable=True)[:FINALISTS]:
                scale = half_scale(shares[pick][:, None] * largest).double()
                codes = propagated(rows, scale, None, upper, book)
                scale = half_scale(refitted(rows, codes, damped, scale)).double()
                error = output_error(rows, codes * scale, damped)
                better = error < least
                least[better], found[a:b][better] = error[better], (codes * scale)[better]
        return found.to(part.dtype).reshape(part.shape)

    return way


def stored_with(operator: Any) -> Way:
    """What an operator stores."""

    def way(group: Group, part: Tensor, moments: Moments) -> Tensor:
        if isinstance(operator, Quantize):
            return operator.encode(group, [part]).tensors()[0]
        values: Tensor = operator.encode_with(group, [part], {InputMoments(): (moments,)}).tensors()[0]
        return values

    return way


KICKS = (1, 2, 4, 8)
"""Codes of every row that are moved before a descent, in turn."""


def kicked(bits: int, seconds: Mapping[str, float]) -> Way:
    """Iterated local search: kick the best codes known, descend, keep what is better, row by row, until time is up."""

    def way(group: Group, part: Tensor, moments: Moments) -> Tensor:
        start, generator = time.perf_counter(), torch.Generator().manual_seed(0)
        packed = Compensate(bits).encode_with(group, [part], {InputMoments(): (moments,)})
        assert isinstance(packed, QuantizedTensors)
        values, scale = values_of(part).double(), packed.parts[0].scale.double()
        best, book = packed.parts[0].codes.double(), codebook(bits, signs_only=False)
        spans = [(moments.damped(block, DAMPING), a, b) for block, a, b in moments.spans(len(values))]
        least = torch.cat([output_error(values[a:b], best[a:b] * scale[a:b], m) for m, a, b in spans])
        for kick in itertools.cycle(KICKS):
            if time.perf_counter() - start > seconds[group.name]:
                break
            where = torch.rand(best.shape, generator=generator).argsort(1)[:, :kick]
            moves = 2.0 * torch.randint(2, where.shape, generator=generator) - 1.0
            tried = best.scatter_add(1, where, moves.double()).clamp(book.low, book.high)
            for damped, a, b in spans:
                tried[a:b] = descended(values[a:b], tried[a:b], scale[a:b], None, damped, book)
            error = torch.cat([output_error(values[a:b], tried[a:b] * scale[a:b], m) for m, a, b in spans])
            better = error < least
            best[better], least[better] = tried[better], error[better]
        return (best * scale).to(part.dtype).reshape(part.shape)

    return way


def ways(bits: int, seconds: Mapping[str, float]) -> dict[str, Way]:
    """Name -> how a layer is stored, given what qubo rounding took in every layer when its turn has come."""
    return {
        "nearest": stored_with(Quantize(bits)),
        "propagated": propagated_only(bits),
        "descent": stored_with(Compensate(bits)),
        "qubo": stored_with(Compensate(bits, rounding="qubo")),
        "kicked": kicked(bits, seconds),
    }


def relative_error(part: Tensor, stored: Tensor, moments: Moments) -> float:
    """Squared output error over squared output."""
    values, other = values_of(part).double(), values_of(stored).double()
    spans = moments.spans(len(values))
    error = sum(float(output_error(values[a:b], other[a:b], moments.blocks[k]).sum()) for k, a, b in spans)
    return error / sum(float(output_error(values[a:b], 0 * values[a:b], moments.blocks[k]).sum()) for k, a, b in spans)


def calibration(network: Network, batches: Batches, count: int) -> Calibration:
    """The first images of some batches."""
    examples = read_examples(batches, count)
    return Calibration(network.model, examples, make_loss("cross-entropy"), lambda x: rows_of(network.model(x)), 0)


@lru_cache(maxsize=1)
def prepared(options: Options) -> tuple[Network, list[Group], dict[str, tuple[Moments, Moments]]]:
    """The network, its weights, and their inputs' moments on calibration and on validation images."""
    network = load(options.network, calibration_examples=options.examples)
    groups = [g for g in discover(network.model).groups if g.kind == "weight"]
    seen, unseen = (calibration(network, b, options.examples) for b in (network.calibration, network.validation))
    return network, groups, {g.name: tuple(InputMoments().collect(c, g)[0] for c in (seen, unseen)) for g in groups}


@STUDY.step(lambda o: grid(network=[o.network], examples=[o.examples]), again=True)
def original(options: Options, **_: Any) -> Record:
    """Figures of the network itself."""
    network = prepared(options)[0]
    accuracy, loss = accuracy_and_loss(network.model, network.validation)
    return {"accuracy": 100 * accuracy, "loss": loss}


@STUDY.step(lambda o: grid(network=[o.network], examples=[o.examples], bits=o.bits), again=True)
def way(options: Options, bits: int, **_: Any) -> Iterator[Record]:
    """Store the network every way: errors, loss and seconds."""
    network, groups, evidence = prepared(options)
    parts = {g.name: dict(network.model.named_parameters())[g.name].detach() for g in groups}
    taken: dict[str, float] = {}
    for name, store in ways(bits, taken).items():
        small = copy.deepcopy(network.model)
        places, layers = dict(small.named_parameters()), []
        for group in groups:
            part, (near, far) = parts[group.name], evidence[group.name]
            start = time.perf_counter()
            stored = store(group, part, near)
            seconds = time.perf_counter() - start
            layers.append({
                "layer": group.name, "seconds": seconds, "rows": len(part),
                "error": relative_error(part, stored, near), "unseen": relative_error(part, stored, far),
            })  # fmt: skip
            places[group.name].data.copy_(stored)
            if name == "qubo":
                taken[group.name] = seconds
        accuracy, loss = accuracy_and_loss(small, network.validation)
        yield {"way": name, "layers": layers, "accuracy": 100 * accuracy, "loss": loss}


@STUDY.table
def tables(options: Options) -> str:
    """The last record of every way, and how far qubo rounding is from the descent, layer by layer."""
    text = "".join(
        f"{r['network']}: original loss {r['loss']:.4f}, accuracy {r['accuracy']:.2f} % on the validation images; "
        f"moments of {r['examples']} calibration images.\n\n"
        for r in newest(STUDY.records("original"), "network")
    )
    found = newest(STUDY.records("way"), "network", "bits", "way")
    columns = {
        "network": "{network}", "bits": "{bits}", "way": "{way}", "error": lambda r: f"{mean_of(r):.5f}",
        "unseen error": lambda r: f"{mean_of(r, 'unseen'):.5f}", "loss": "{loss:.4f}", "top-1 %": "{accuracy:.2f}",
        "s per layer": lambda r: f"{mean_of(r, 'seconds'):.2f}",
        "slowest layer": lambda r: f"{max(layer['seconds'] for layer in r['layers']):.2f}",
    }  # fmt: skip
    found = sorted(found, key=lambda r: (r["network"], r["bits"], -mean_of(r)))
    text += table(found, columns) + "\nOutput error taken off the descent's, over layers, per cent:\n\n"
    descents = {(r["network"], r["bits"]): r for r in found if r["way"] == "descent"}
    gains = [
        [r["network"], str(r["bits"]), r["way"], *_gains(r, descents[r["network"], r["bits"]])]
        for r in found if r["way"] in ("qubo", "kicked") and (r["network"], r["bits"]) in descents
    ]  # fmt: skip
    header = ["network", "bits", "way", "most", "median", "least", "most, unseen", "median, unseen", "least, unseen"]
    return text + markdown(header, gains)


def _gains(record: Record, descent: Record) -> Iterator[str]:
    """The most, the median and the least taken off the errors of the descent, on images seen and unseen."""
    before = {layer["layer"]: layer for layer in descent["layers"]}
    for key in ("error", "unseen"):
        shares = sorted(layer[key] / before[layer["layer"]][key] for layer in record["layers"])
        yield from (f"{100 * (1 - shares[place]):.1f}" for place in (0, len(shares) // 2, -1))


def mean_of(record: Record, key: str = "error") -> float:
    """Mean of a figure over layers."""
    return float(sum(layer[key] for layer in record["layers"]) / len(record["layers"]))


if __name__ == "__main__":
    STUDY.main()

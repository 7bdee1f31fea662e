"""How codes are rounded: layer output error and network loss of every way, at equal bytes.

    python -m benchmarks.studies.rounding [--bits 2 3 4] [--examples 500]

Five ways to store all weights of a network with one float16 scale per output: the nearest codes (``quantize``), codes
with the error made up by later columns (GPTQ), these after code-by-code descent (``compensate``), these after the
annealer was asked which way to round (``compensate(rounding='qubo')``), and, for as many seconds in every layer as
that took, the descent again and again from codes of which a few were moved at random (``kicked``). Moments come from
calibration images; errors are also measured with the moments of as many validation images, which no way has seen, and
so are loss and accuracy. Records go to ``results/rounding.jsonl``; the table is ``results/rounding.md``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import Batches, Network, accuracy_and_loss, load
from benchmarks.records import RESULTS, append, environment, markdown, read
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

PATH = RESULTS / "rounding.jsonl"
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


def run(options: argparse.Namespace) -> None:
    """Store the network every way and record errors, losses and seconds."""
    network = load(options.network, calibration_examples=options.examples)
    groups = [g for g in discover(network.model).groups if g.kind == "weight"]
    seen, unseen = (calibration(network, b, options.examples) for b in (network.calibration, network.validation))
    parts = {g.name: dict(network.model.named_parameters())[g.name].detach() for g in groups}
    evidence = {g.name: tuple(InputMoments().collect(c, g)[0] for c in (seen, unseen)) for g in groups}
    base = accuracy_and_loss(network.model, network.validation)
    common = {"network": options.network, "examples": options.examples, **environment()}
    append(PATH, {"part": "original", "accuracy": 100 * base[0], "loss": base[1], **common})
    for bits in options.bits:
        taken: dict[str, float] = {}
        for name, way in ways(bits, taken).items():
            small = copy.deepcopy(network.model)
            places, layers = dict(small.named_parameters()), []
            for group in groups:
                part, (near, far) = parts[group.name], evidence[group.name]
                start = time.perf_counter()
                stored = way(group, part, near)
                layers.append(
                    {
                        "layer": group.name, "seconds": time.perf_counter() - start, "rows": len(part),
                        "error": relative_error(part, stored, near), "unseen": relative_error(part, stored, far),
                    }
                )  # fmt: skip
                places[group.name].data.copy_(stored)
                if name == "qubo":
                    taken[group.name] = layers[-1]["seconds"]
            accuracy, loss = accuracy_and_loss(small, network.validation)
            record = {"part": "way", "bits": bits, "way": name, "layers": layers, "accuracy": 100 * accuracy,
                      "loss": loss, **common}  # fmt: skip
            append(PATH, record)
            print(
                f"{bits} bits {name:10} {summary(record)} loss {loss:.4f} accuracy {100 * accuracy:.2f} %", flush=True
            )


def summary(record: dict[str, Any]) -> str:
    """Mean errors over layers and seconds."""
    mean = {key: sum(layer[key] for layer in record["layers"]) / len(record["layers"]) for key in ("error", "unseen")}
    seconds = [layer["seconds"] for layer in record["layers"]]
    return f"error {mean['error']:.5f} unseen {mean['unseen']:.5f} {sum(seconds) / len(seconds):.2f} s per layer"


def table_text() -> str:
    """The last record of every way, and how far qubo rounding is from the descent, layer by layer."""
    found = {(r["network"], r["bits"], r["way"]): r for r in read(PATH) if r["part"] == "way"}
    original = {r["network"]: r for r in read(PATH) if r["part"] == "original"}
    rows, gains = [], []
    for (network, bits, way), record in sorted(found.items(), key=lambda item: (item[0][:2], -mean_of(item[1]))):
        layers = record["layers"]
        rows.append([
            network, str(bits), way, f"{mean_of(record):.5f}", f"{mean_of(record, 'unseen'):.5f}",
            f"{record['loss']:.4f}", f"{record['accuracy']:.2f}",
            f"{mean_of(record, 'seconds'):.2f}", f"{max(layer['seconds'] for layer in layers):.2f}",
        ])  # fmt: skip
        if way not in ("qubo", "kicked") or (network, bits, "descent") not in found:
            continue
        before = {layer["layer"]: layer for layer in found[network, bits, "descent"]["layers"]}
        shares = {
            key: sorted(layer[key] / before[layer["layer"]][key] for layer in layers) for key in ("error", "unseen")
        }
        middle = len(layers) // 2
        gains.append([
            network, str(bits), way, *(f"{100 * (1 - shares['error'][i]):.1f}" for i in (0, middle, -1)),
            *(f"{100 * (1 - shares['unseen'][i]):.1f}" for i in (0, middle, -1)),
        ])  # fmt: skip
    text = "".join(
        f"{name}: original loss {r['loss']:.4f}, accuracy {r['accuracy']:.2f} % on the validation images; moments of "
        f"{r['examples']} calibration images.\n\n"
        for name, r in original.items()
    )
    header = ["network", "bits", "way", "error", "unseen error", "loss", "top-1 %", "s per layer", "slowest layer"]
    text += markdown(header, rows)
    text += "\nOutput error taken off the descent's, over layers, per cent:\n\n"
    header = ["network", "bits", "way", "most", "median", "least", "most, unseen", "median, unseen", "least, unseen"]
    return text + markdown(header, gains)


def mean_of(record: dict[str, Any], key: str = "error") -> float:
    """Mean of a figure over layers."""
    return float(sum(layer[key] for layer in record["layers"]) / len(record["layers"]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10-resnet20")
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.bits:
        run(options)
    text = table_text()
    (RESULTS / "rounding.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""Low-rank choices on ``cifar10-resnet20``: what they cost, what they lose, and what running in factors saves.

    python -m benchmarks.studies.low_rank --layers  # single layers of each stage replaced; about a minute
    python -m benchmarks.studies.low_rank --times   # milliseconds, factors against the whole weight, wide layers
    python -m benchmarks.studies.low_rank --ranks   # ranks of all layers without data: `relaxation` against `exact`
    python -m benchmarks.studies.low_rank --table   # the tables, from the records

Records are appended to ``benchmarks/results/low_rank.jsonl``; the tables are of the last run of each kind.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, load
from benchmarks.records import RESULTS, append, environment, markdown, read
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.calibration.statistics import Calibration
from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.menu.low_rank.factored import FactoredLayer
from qubo_compress.menu.low_rank.svd import Svd
from qubo_compress.menu.operator import parse
from qubo_compress.network.discovery import discover
from qubo_compress.network.groups import Group
from qubo_compress.network.losses.classification import make_loss, rows_of
from qubo_compress.network.replay import trace_calls
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.costs import factored_multiplications, layer_calls

PATH = RESULTS / "low_rank.jsonl"
TABLES = RESULTS / "low_rank.md"
LAYERS = tuple(f"layer{stage}.{block}.conv2.weight" for stage in (1, 2, 3) for block in (0, 2))
CHOICES = (
    "svd(share=0.25)", "svd(share=0.4)", "svd(share=0.55)", "tucker(share=0.4)", "tucker(share=0.55)",
    "tucker(share=0.7)", "cp(share=1.0)", "cp(share=1.6)", "tensor_train(share=0.5)", "tensor_train(share=0.7)",
)  # fmt: skip
SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)


def measure_layers(network: Network, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """For every layer and choice: shares of bytes and multiplications, errors, and loss with only it replaced."""
    batches = network.calibration[: max(1, options.examples // 250)]
    examples = read_examples(batches, options.examples)
    run = lambda inputs: rows_of(network.model(inputs))  # noqa: E731
    calibration = Calibration(network.model, examples, make_loss("cross-entropy"), run, seed=0)
    held_out = network.validation[: max(1, options.examples // 250)]
    base = accuracy_and_loss(network.model, held_out)[1]
    groups = {group.name: group for group in discover(network.model).groups}
    for name in options.names:
        group = groups[name]
        moments = InputMoments().collect(calibration, group)
        for choice in CHOICES:
            for whitened in (False, True):
                operator = replace(cast(Any, parse(choice)), whitened=whitened)
                record = _one_choice(network, group, operator, moments[0], examples)
                if record is not None:
                    loss = record.pop("loss")(held_out) - base
                    yield {"kind": "layer", "layer": name, "choice": choice, "whitened": whitened, **record,
                           "loss": loss, "base": base, "examples": options.examples}  # fmt: skip


def _one_choice(
    network: Network, group: Group, operator: Any, moments: Moments, examples: Examples
) -> dict[str, Any] | None:
    weight = NetworkTensors(network.model)[group.name]
    part = weight.detach().clone()
    if operator.refusal(group, [part]) is not None:
        return None
    started = time.perf_counter()
    packed = operator.encode_with(group, [part], {InputMoments(): (moments,)})
    seconds = time.perf_counter() - started
    calls = layer_calls(network.model, group, trace_calls(network.model, examples.slices[0].inputs[:2]))
    dense = part.numel() * calls[0][0].positions
    stored = packed.tensors()[0]
    apart, flat = (stored - part).double().flatten(1), part.double().flatten(1)

    def loss(batches: Any) -> float:
        with torch.no_grad():
            weight.copy_(stored)
            found = accuracy_and_loss(network.model, batches)[1]
            weight.copy_(part)
        return found

    return {
        "bytes": packed.nbytes / group.nbytes,
        "macs": factored_multiplications(packed, calls) / dense,
        "weight_error": float(apart.norm() / flat.norm()),
        "output_error": _size(apart, moments) / _size(flat, moments),
        "seconds": seconds,
        "loss": loss,
    }


def _size(rows: Tensor, moments: Moments) -> float:
    """Root of the mean squared change of the outputs."""
    return float((rows @ moments.blocks[0] * rows).sum().clamp(min=0).sqrt())


def wide_layers() -> list[tuple[str, nn.Module, Tensor, Sequence[str]]]:
    """A convolution and a linear layer of the size that large networks have."""
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(512, 512, 3, padding=1), nn.Linear(2048, 2048)
    choices = (
        "svd(rank=128)", "tucker(ranks=(128,128))", "tensor_train(ranks=(128,128,128))", "cp(rank=256,iterations=1)",
    )  # fmt: skip
    return [
        ("convolution 512 x 512 x 3 x 3, 14 x 14, batch 4", convolution, torch.randn(4, 512, 14, 14), choices),
        ("linear 2048 x 2048, batch 64", linear, torch.randn(64, 2048), ("svd(rank=256)",)),
    ]


def measure_times(repeats: int) -> Iterator[dict[str, Any]]:
    """Median milliseconds of whole and factored layers of random weights, run alternately."""
    for label, layer, inputs, choices in wide_layers():
        group = next(group for group in discover(layer).groups if group.kind == "weight")
        part = cast(Tensor, layer.weight).detach()
        for choice in choices:
            packed = parse(choice).encode(group, [part])
            quick = FactoredLayer(layer, packed.stages(0))
            times: dict[str, list[float]] = {"whole": [], "factored": []}
            with torch.no_grad():
                calls = layer_calls(layer, group, trace_calls(layer, inputs))
                for _ in range(repeats + 1):
                    for name, module in (("whole", layer), ("factored", quick)):
                        started = time.perf_counter()
                        module(inputs)
                        times[name].append(1e3 * (time.perf_counter() - started))
            middle = {name: statistics.median(values[1:]) for name, values in times.items()}
            macs = factored_multiplications(packed, calls) / (part.numel() * calls[0][0].positions)
            yield {"kind": "times", "layer": label, "choice": choice, "macs": macs, **middle, "repeats": repeats,
                   "threads": torch.get_num_threads()}  # fmt: skip


def solve_ranks(network: Network, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Ranks of all layers from the weights alone, by the continuous search and exactly."""
    menu = qc.Menu([Svd(share=share) for share in SHARES])
    table = qc.measure(network.model, network.calibration[:1], menu=menu, metric="magnitude", progress=False)
    whole = int(table.costs["macs"][table.offsets[:-1]].sum())
    for share in options.macs:
        problem = table.problem(qc.Budget(ratio=1.0, macs=int(share * whole)))
        for solver in ("relaxation", "exact", "greedy", "uniform"):
            try:
                found = qc.solve(problem, solver, time_limit=options.time_limit)
            except qc.errors.QuboCompressError as cause:
                yield {"kind": "ranks", "macs": share, "solver": solver, "refused": str(cause)}
                continue
            plan = table.plan(found)
            accuracy = accuracy_and_loss(plan.apply(network.model), network.validation[:2])[0]
            yield {
                "kind": "ranks", "macs": share, "solver": solver, "energy": found.energy, "bound": found.bound,
                "seconds": found.timing["total"], "accuracy": accuracy,
                "factored": sum(name != "keep" for name in plan.choices.values()),
            }  # fmt: skip


def tables(path: Path = PATH) -> str:
    """Markdown of the last records of each kind."""
    records = list(read(path))
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        key = tuple(record.get(name) for name in ("kind", "layer", "choice", "whitened", "macs_budget", "solver"))
        latest[(*key, record["macs"] if record["kind"] == "ranks" else None)] = record
    found = list(latest.values())
    return "\n".join([_layer_table(found), _times_table(found), _ranks_table(found)])


def _layer_table(records: list[dict[str, Any]]) -> str:
    rows = []
    for stage in ("layer1", "layer2", "layer3"):
        for choice in CHOICES:
            pair = []
            for whitened in (False, True):
                own = [
                    r for r in records
                    if r["kind"] == "layer" and r["layer"].startswith(stage) and r["choice"] == choice
                    and r["whitened"] is whitened
                ]  # fmt: skip
                pair.append(own)
            if not all(pair):
                continue
            plain, fitted = pair
            rows.append([
                stage, choice, _mean(plain, "bytes"), _mean(plain, "macs"),
                *(f"{_mean(plain, name)} / {_mean(fitted, name)}" for name in ("weight_error", "output_error", "loss")),
            ])  # fmt: skip
    header = ["stage", "choice", "bytes", "macs", "weight error", "output error", "loss change"]
    return "Shares of the float32 layer; errors and loss data-free / whitened.\n\n" + markdown(header, rows)


def _mean(records: list[dict[str, Any]], name: str) -> str:
    return f"{statistics.mean(record[name] for record in records):.3f}"


def _times_table(records: list[dict[str, Any]]) -> str:
    rows = [
        [r["layer"], r["choice"], f"{r['macs']:.3f}", f"{r['whole']:.1f}", f"{r['factored']:.1f}",
         f"{r['factored'] / r['whole']:.2f}"]
        for r in records if r["kind"] == "times"
    ]  # fmt: skip
    return markdown(["layer", "choice", "macs", "ms whole", "ms factored", "ratio"], rows)


def _ranks_table(records: list[dict[str, Any]]) -> str:
    rows = [
        [f"{r['macs']:.2f}", r["solver"], f"{r['energy']:.5f}", f"{r['seconds']:.2f}", str(r["factored"]),
         f"{100 * r['accuracy']:.1f}"]
        for r in records if r["kind"] == "ranks" and "energy" in r
    ]  # fmt: skip
    return markdown(["macs left", "solver", "energy", "seconds", "layers factored", "accuracy"], rows)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("layers", "times", "ranks", "table"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--names", nargs="*", default=list(LAYERS), help="weights for --layers")
    parser.add_argument("--examples", type=int, default=250, help="calibration and held-out images for --layers")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--macs", type=float, nargs="*", default=[0.8, 0.65, 0.5], help="budgets for --ranks")
    parser.add_argument("--time-limit", type=float, default=5.0)
    options = parser.parse_args()
    made: list[Iterator[dict[str, Any]]] = []
    if options.times:
        made.append(measure_times(options.repeats))
    if options.layers or options.ranks:
        network = load("cifar10-resnet20", calibration_examples=options.examples)
        made += [measure_layers(network, options)] if options.layers else []
        made += [solve_ranks(network, options)] if options.ranks else []
    for records in made:
        for record in records:
            append(PATH, {**record, "environment": environment()})
            print({name: round(v, 4) if isinstance(v, float) else v for name, v in record.items()}, flush=True)
    if options.table:
        TABLES.write_text(tables())
        print(TABLES.read_text())


if __name__ == "__main__":
    main()

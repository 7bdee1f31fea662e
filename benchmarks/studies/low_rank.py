"""Low-rank choices on ``cifar10-resnet20``: what they cost, what they lose, and what running in factors saves.

    python -m benchmarks.studies.low_rank layer  # single layers of each stage replaced; about a minute
    python -m benchmarks.studies.low_rank times   # milliseconds, factors against the whole weight, wide layers
    python -m benchmarks.studies.low_rank ranks   # ranks of all layers without data: `relaxation` against `exact`
    python -m benchmarks.studies.low_rank table   # the tables, from the records

Records are appended to ``benchmarks/results/low_rank.jsonl``; the tables are of the last run of each kind.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks import Batches, Network, accuracy_and_loss, load
from benchmarks.records import Record, markdown, matching, mean_of, newest, table
from benchmarks.study import Option, Options, Study, grid
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

LAYERS = tuple(f"layer{stage}.{block}.conv2.weight" for stage in (1, 2, 3) for block in (0, 2))
CHOICES = (
    "svd(share=0.25)", "svd(share=0.4)", "svd(share=0.55)", "tucker(share=0.4)", "tucker(share=0.55)",
    "tucker(share=0.7)", "cp(share=1.0)", "cp(share=1.6)", "tensor_train(share=0.5)", "tensor_train(share=0.7)",
)  # fmt: skip
SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)

STUDY = Study(
    __doc__, "low_rank", field="kind", names=Option(list(LAYERS), "weights of step layer"),
    examples=Option(250, "calibration and held-out images of step layer"), repeats=9,
    macs=Option([0.8, 0.65, 0.5], "budgets of step ranks"), time_limit=5.0,
)  # fmt: skip


@lru_cache(maxsize=1)
def network_of(examples: int) -> Network:
    """The network with that many calibration images."""
    return load("cifar10-resnet20", calibration_examples=examples)


@lru_cache(maxsize=1)
def evidence(name: str, count: int) -> tuple[Group, Moments, Examples]:
    """A layer, its inputs' moments, and the images that they are of."""
    network = network_of(count)
    examples = read_examples(network.calibration[: max(1, count // 250)], count)
    run = lambda inputs: rows_of(network.model(inputs))  # noqa: E731
    calibration = Calibration(network.model, examples, make_loss("cross-entropy"), run, seed=0)
    group = next(group for group in discover(network.model).groups if group.name == name)
    return group, InputMoments().collect(calibration, group)[0], examples


@lru_cache(maxsize=1)
def base_of(count: int) -> float:
    """Loss of the network itself on the held-out images."""
    return accuracy_and_loss(network_of(count).model, held_out(count))[1]


def held_out(count: int) -> Batches:
    """Batches of validation images."""
    return network_of(count).validation[: max(1, count // 250)]


@STUDY.step(lambda o: grid(layer=o.names, choice=CHOICES, whitened=[False, True]), again=True)
def layer(options: Options, layer: str, choice: str, whitened: bool) -> Record | None:
    """Shares of bytes and multiplications, errors, and the loss with this layer alone replaced."""
    network, (group, moments, examples) = network_of(options.examples), evidence(layer, options.examples)
    record = _one_choice(network, group, replace(cast(Any, parse(choice)), whitened=whitened), moments, examples)
    if record is None:
        return None
    base = base_of(options.examples)
    loss = record.pop("loss")(held_out(options.examples)) - base
    return record | {"loss": loss, "base": base, "examples": options.examples}


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
    calls = layer_calls(NetworkTensors(network.model), group, trace_calls(network.model, examples.slices[0].inputs[:2]))
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


@STUDY.step(lambda o: grid(repeats=[o.repeats]), again=True)
def times(options: Options, repeats: int) -> Iterator[Record]:
    """Median milliseconds of whole and factored layers of random weights, run alternately."""
    for label, module, inputs, choices in wide_layers():
        group = next(group for group in discover(module).groups if group.kind == "weight")
        part = cast(Tensor, module.weight).detach()
        for choice in choices:
            packed = parse(choice).encode(group, [part])
            quick = FactoredLayer(module, packed.stages(0))
            times: dict[str, list[float]] = {"whole": [], "factored": []}
            with torch.no_grad():
                calls = layer_calls(NetworkTensors(module), group, trace_calls(module, inputs))
                for _ in range(repeats + 1):
                    for name, form_of in (("whole", module), ("factored", quick)):
                        started = time.perf_counter()
                        form_of(inputs)
                        times[name].append(1e3 * (time.perf_counter() - started))
            middle = {name: statistics.median(values[1:]) for name, values in times.items()}
            macs = factored_multiplications(packed, calls) / (part.numel() * calls[0][0].positions)
            yield {"layer": label, "choice": choice, "macs": macs, **middle,
                   "threads": torch.get_num_threads()}  # fmt: skip


@lru_cache(maxsize=1)
def ranks_table(examples: int) -> qc.SensitivityTable:
    """Every rank of every layer, priced by the weights alone."""
    network, menu = network_of(examples), qc.Menu([Svd(share=share) for share in SHARES])
    return qc.measure(network.model, network.calibration[:1], menu=menu, metric="magnitude", progress=False)


SOLVERS = ("relaxation", "exact", "greedy", "uniform")


@STUDY.step(lambda o: grid(macs=o.macs, solver=SOLVERS), again=True)
def ranks(options: Options, macs: float, solver: str) -> Record:
    """Ranks of all layers from the weights alone, by the continuous search and exactly."""
    network, found = network_of(options.examples), ranks_table(options.examples)
    whole = int(found.costs["macs"][found.offsets[:-1]].sum())
    problem = found.problem(qc.Budget(ratio=1.0, macs=int(macs * whole)))
    try:
        solution = qc.solve(problem, solver, time_limit=options.time_limit)
    except qc.errors.QuboCompressError as cause:
        return {"refused": str(cause)}
    plan = found.plan(solution)
    return {
        "energy": solution.energy, "bound": solution.bound, "seconds": solution.timing["total"],
        "accuracy": accuracy_and_loss(plan.apply(network.model), network.validation[:2])[0],
        "factored": sum(name != "keep" for name in plan.choices.values()),
    }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """The last records of each kind."""
    timed = newest(STUDY.records("times"), "layer", "choice")
    columns = {
        "layer": "{layer}", "choice": "{choice}", "macs": "{macs:.3f}", "ms whole": "{whole:.1f}",
        "ms factored": "{factored:.1f}", "ratio": lambda r: f"{r['factored'] / r['whole']:.2f}",
    }  # fmt: skip
    ranked = [r for r in newest(STUDY.records("ranks"), "solver", "macs") if "energy" in r]
    ranks_of = {
        "macs left": "{macs:.2f}", "solver": "{solver}", "energy": "{energy:.5f}", "seconds": "{seconds:.2f}",
        "layers factored": "{factored}", "accuracy": lambda r: f"{100 * r['accuracy']:.1f}",
    }  # fmt: skip
    return "\n".join([_layer_table(), table(timed, columns), table(ranked, ranks_of)])


def _layer_table() -> str:
    records, rows = newest(STUDY.records("layer"), "layer", "choice", "whitened"), []
    for stage in ("layer1", "layer2", "layer3"):
        for choice in CHOICES:
            own = [r for r in matching(records, choice=choice) if r["layer"].startswith(stage)]
            pair = [matching(own, whitened=whitened) for whitened in (False, True)]
            if all(pair):
                plain, fitted = map(mean_of, pair)
                rows.append([
                    stage, choice, *(f"{plain[name]:.3f}" for name in ("bytes", "macs")),
                    *(f"{plain[n]:.3f} / {fitted[n]:.3f}" for n in ("weight_error", "output_error", "loss")),
                ])  # fmt: skip
    header = ["stage", "choice", "bytes", "macs", "weight error", "output error", "loss change"]
    return "Shares of the float32 layer; errors and loss data-free / whitened.\n\n" + markdown(header, rows)


if __name__ == "__main__":
    STUDY.main()

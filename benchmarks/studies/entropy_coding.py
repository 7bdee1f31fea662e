"""What entropy coding is worth: bytes against plain fields and against the entropy, speed, and what it costs recovery.

    python -m benchmarks.studies.entropy_coding --sizes  # every layer under one choice after the other; seconds
    python -m benchmarks.studies.entropy_coding --rates  # codes that weigh bits against error, at equal divergence
    python -m benchmarks.studies.entropy_coding --steps  # projections during training, and recovery in the coded bytes
    python -m benchmarks.studies.entropy_coding --table  # the tables, from the records

The entropy is that of each stream of codes and each mask by itself, sum of -log2 of how often its numbers occur, for
which no model could be stored; scales count in full. The coder may come below it, since its contexts know more. Biases
and normalisations are left out of all sizes. Records are appended to ``benchmarks/results/entropy_coding.jsonl``.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import RESULTS, append, environment, markdown, read
from qubo_compress.menu.coding.coded import Coded, CodedGroup
from qubo_compress.menu.coding.parts import recorded
from qubo_compress.menu.operator import choice_name, parse
from qubo_compress.menu.prune import Prune
from qubo_compress.menu.quantize import Quantize
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group
from qubo_compress.plan import compression_of

PATH = RESULTS / "entropy_coding.jsonl"

BITS = (2, 3, 4, 6, 8)
SPARSITY = (0.0, 0.5, 0.75)
RATE_BITS = (3, 4, 5, 6)
RATES = (0.0, 0.25, 0.5, 1.0, 2.0)
DRIFTS = (0.02, 0.1, 0.3)
"""Standard deviations of the weights by which training may have moved them."""


def weights_of(model: nn.Module) -> list[tuple[Group, list[Tensor]]]:
    """Weight groups and their values."""
    state = model.state_dict()
    groups = [group for group in qc.menu.discover(model).groups if group.kind == "weight"]
    return [(group, [state[member.name] for member in group.members]) for group in groups]


def entropy_bytes(packed: Any) -> float:
    """Bytes of every stream at its own entropy; raw bytes in full."""
    total = 0.0
    for part in recorded(packed, {}):
        if isinstance(part, bytes):
            total += len(part)
            continue
        counts = np.unique(part.values, return_counts=True)[1]
        total -= float((counts * np.log2(counts / part.values.size)).sum()) / 8
    return total


def size_record(groups: Sequence[tuple[Group, list[Tensor]]], name: str) -> dict[str, Any]:
    """Bytes and seconds of the whole network under one choice."""
    inner, coded = parse(name), Coded(name)
    layers, seconds = [], {"encode": 0.0, "decode": 0.0}
    for group, parts in groups:
        plain = inner.encode(group, parts)
        started = time.perf_counter()
        packed = coded.encode(group, parts)
        data = packed.to_bytes()
        seconds["encode"] += time.perf_counter() - started
        started = time.perf_counter()
        again, _ = coded.decode(group, memoryview(data))
        seconds["decode"] += time.perf_counter() - started
        assert all(torch.equal(a, b) for a, b in zip(again.tensors(), plain.tensors(), strict=True))
        layers.append(
            {"name": group.name, "weights": group.numel, "plain": plain.nbytes, "coded": packed.nbytes,
             "entropy": round(entropy_bytes(plain), 1)}
        )  # fmt: skip
    return {"choice": name, "layers": layers, **{f"{k}_seconds": round(v, 3) for k, v in seconds.items()}}


def sizes_step(network: Network, options: argparse.Namespace) -> None:
    """Bytes of every choice."""
    groups = weights_of(network.model)
    names = [choice_name(Quantize(bits, share)) for bits in BITS for share in SPARSITY]
    names += [choice_name(Prune(share)) for share in SPARSITY[1:]]
    for name in names:
        record = {"step": "size", "network": network.name, **size_record(groups, name), **environment()}
        append(PATH, record)
        total = {key: sum(layer[key] for layer in record["layers"]) for key in ("plain", "coded", "entropy")}
        print(name, total, record["encode_seconds"], record["decode_seconds"], flush=True)


def stored_network(model: nn.Module, operator: Any) -> tuple[nn.Module, list[Stored]]:
    """A network whose weights are stored by one choice, and the stored groups."""
    small = copy.deepcopy(model).eval()
    packed = [operator.encode(group, parts) for group, parts in weights_of(model)]
    values = {
        member.name: value
        for (group, _), stored in zip(weights_of(model), packed, strict=True)
        for member, value in zip(group.members, stored.tensors(), strict=True)
    }
    small.load_state_dict({**small.state_dict(), **values})
    return small, packed


@torch.no_grad()
def divergence(small: nn.Module, model: nn.Module, images: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the outputs from the original's."""
    goal, found = model(images).log_softmax(-1), small(images).log_softmax(-1)
    return float((goal.exp() * (goal - found)).sum(-1).mean())


def rates_step(network: Network, options: argparse.Namespace) -> None:
    """Bytes, squared error and divergence of codes under a price of bits."""
    images = torch.cat([x for x, _ in network.validation])[: options.images]
    original = torch.cat([part.reshape(-1) for _, parts in weights_of(network.model) for part in parts])
    for bits in RATE_BITS:
        for rate in RATES:
            operator = Coded(choice_name(Quantize(bits)), rate)
            small, packed = stored_network(network.model, operator)
            values = torch.cat([value.reshape(-1) for stored in packed for value in stored.tensors()])
            record = {
                "step": "rate", "network": network.name, "bits": bits, "rate": rate, "images": len(images),
                "bytes": sum(p.nbytes for p in packed), "divergence": divergence(small, network.model, images),
                "error": float((values - original).square().sum() / original.square().sum()), **environment(),
            }  # fmt: skip
            append(PATH, record)
            print({k: record[k] for k in ("bits", "rate", "bytes", "error", "divergence")}, flush=True)


def steps_step(network: Network, options: argparse.Namespace) -> None:
    """Time and error of one projection of the whole network after training moved it, and recovery itself."""
    for name in options.choices:
        packed = [Coded(name).encode(group, parts) for group, parts in weights_of(network.model)]
        for drift in DRIFTS:
            record = {"step": "project", "network": network.name, "choice": name, "drift": drift}
            record |= _projected(packed, drift, options.seed)
            append(PATH, {**record, **environment()})
            print(record, flush=True)
        for operator in (parse(name), Coded(name)):
            record = {"step": "recover", "network": network.name, "choice": choice_name(operator)}
            record |= _recovered(network, operator, options)
            append(PATH, {**record, **environment()})
            print(record, flush=True)


def _projected(packed: Sequence[CodedGroup], drift: float, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    moved = [
        [v + drift * v.std() * torch.randn(v.shape, generator=generator) for v in stored.tensors()] for stored in packed
    ]
    started = time.perf_counter()
    found = [stored.project(values, refit=True) for stored, values in zip(packed, moved, strict=True)]
    coded = time.perf_counter() - started
    started = time.perf_counter()
    nearest = [stored.inner.project(values, refit=True) for stored, values in zip(packed, moved, strict=True)]
    plain = time.perf_counter() - started
    assert all(len(f.to_bytes()) == p.nbytes for f, p in zip(found, packed, strict=True))
    values = [value for group in moved for value in group]
    errors = [
        sum(float((a - b).square().sum()) for a, b in zip((v for f in forms for v in f.tensors()), values, strict=True))
        for forms in (found, nearest)
    ]
    return {
        "milliseconds": 1000 * coded, "plain_milliseconds": 1000 * plain, "error_ratio": errors[0] / errors[1],
        "limited_groups": sum(_differ(f, n) for f, n in zip(found, nearest, strict=True)), "groups": len(found),
    }  # fmt: skip


def _differ(first: Stored, second: Stored) -> bool:
    return not all(torch.equal(a, b) for a, b in zip(first.tensors(), second.tensors(), strict=True))


def _moved_share(before: nn.Module, after: nn.Module) -> float:
    """Share of the weights that fine-tuning gave another stored value, scales aside: by the codes."""
    pairs = zip(_codes(before), _codes(after), strict=True)
    changed = [(a != b).reshape(-1) for a, b in pairs]
    return float(torch.cat(changed).float().mean())


def _codes(model: nn.Module) -> list[Tensor]:
    stored = compression_of(model).stored.values()
    plain = [item.inner if isinstance(item, CodedGroup) else item for item in stored]
    return [grid.codes for item in plain for grid in item.grids()]


class Watch:
    """Counts the projections that the capacity changed, while it is installed."""

    def __init__(self) -> None:
        self.asked, self.limited = 0, 0

    def __enter__(self) -> Watch:
        self._fitting = CodedGroup._fitting

        def counted(group: CodedGroup, near: Any, *rest: Any) -> Any:
            found = self._fitting(group, near, *rest)
            self.asked += 1
            self.limited += found is not near
            return found

        CodedGroup._fitting = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        CodedGroup._fitting = self._fitting  # type: ignore[method-assign]


def _recovered(network: Network, operator: Any, options: argparse.Namespace) -> dict[str, Any]:
    table = qc.measure(
        network.model, network.calibration, menu=qc.Menu([operator]), metric="magnitude", progress=False,
    )  # fmt: skip
    plan = table.plan({name: names[-1] for name, names in zip(table.group_names, table.choices, strict=True)})
    small = plan.apply(network.model)
    before = accuracy_and_loss(small, network.validation)
    started = time.perf_counter()
    with Watch() as watch:
        better = qc.recover(
            small, network.train, network.model, epochs=options.epochs, max_examples=options.examples,
            learning_rate=options.learning_rate, progress=False,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    after = accuracy_and_loss(better, network.validation)
    return {
        "epochs": options.epochs, "examples": options.examples, "learning_rate": options.learning_rate,
        "bytes": plan.bytes, "seconds": seconds, "moved_codes": _moved_share(small, better),
        "projections": watch.asked, "limited": watch.limited,
        "accuracy_before": 100 * before[0], "loss_before": before[1], "accuracy": 100 * after[0], "loss": after[1],
    }  # fmt: skip


def _last(step: str, *keys: str) -> list[dict[str, Any]]:
    """The last record of each setting."""
    found = {tuple(r[k] for k in keys): r for r in read(PATH) if r["step"] == step}
    return list(found.values())


def tables() -> str:
    """Markdown of all records."""
    rows = []
    for record in _last("size", "network", "choice"):
        layers = record["layers"]
        ends = (min(layers, key=lambda x: x["weights"]), max(layers, key=lambda x: x["weights"]))
        total = {key: sum(layer[key] for layer in layers) for key in ("plain", "coded", "entropy")}
        rows.append([
            record["choice"], *(f"{total[k]:.0f}" for k in total), f"{100 * (1 - total['coded'] / total['plain']):.1f}",
            *(f"{e['plain']} / {e['coded']} / {e['entropy']:.0f}" for e in ends),
            f"{record['encode_seconds']:.2f} / {record['decode_seconds']:.2f}",
        ])  # fmt: skip
    header = [
        "choice",
        "plain B",
        "coded B",
        "entropy B",
        "saved %",
        "smallest layer",
        "largest layer",
        "encode / decode s",
    ]
    said = ["## Bytes of all weights (layers: plain / coded / entropy)", markdown(header, rows)]
    rows = [
        [str(r["bits"]), f"{r['rate']:g}", str(r["bytes"]), f"{r['error']:.2e}", f"{r['divergence']:.2e}",
         _equal(r, "error"), _equal(r, "divergence")]
        for r in _last("rate", "network", "bits", "rate")
    ]  # fmt: skip
    header = ["bits", "rate", "bytes", "relative squared error", "divergence"]
    header += ["bytes saved at equal error %", "at equal divergence %"]
    said += ["## Codes that weigh bits against error", markdown(header, rows)]
    rows = [
        [r["choice"], f"{r['drift']:g}", f"{r['milliseconds']:.0f}", f"{r['plain_milliseconds']:.0f}",
         f"{r['limited_groups']} of {r['groups']}", f"{r['error_ratio']:.3f}"]
        for r in _last("project", "network", "choice", "drift")
    ]  # fmt: skip
    header = ["choice", "drift", "ms", "plain ms", "groups that did not fit", "squared error against nearest codes"]
    said += ["## One projection of the whole network", markdown(header, rows)]
    rows = [
        [r["choice"], str(r["bytes"]), str(r["epochs"]), str(r["examples"]), f"{r['learning_rate']:g}",
         f"{r['seconds']:.0f}", f"{100 * r['moved_codes']:.1f}", f"{r['limited']} of {r['projections']}",
         f"{r['accuracy_before']:.2f} / {r['loss_before']:.4f}", f"{r['accuracy']:.2f} / {r['loss']:.4f}"]
        for r in _last("recover", "network", "choice", "epochs", "examples", "learning_rate")
    ]  # fmt: skip
    header = ["choice", "file B", "epochs", "examples", "learning rate", "s", "codes that moved %"]
    header += ["projections that the capacity changed", "validation top-1 % / loss before", "after"]
    return "\n\n".join([*said, "## Recovery", markdown(header, rows)]) + "\n"


def _equal(record: dict[str, Any], key: str) -> str:
    """Bytes saved against what codes without a rate need for the same, interpolated between numbers of bits."""
    curve = sorted((np.log(r[key]), r["bytes"]) for r in _last("rate", "network", "bits", "rate") if r["rate"] == 0)
    at = np.log(record[key])
    if record["rate"] == 0 or not curve[0][0] <= at <= curve[-1][0]:
        return ""
    plain = float(np.interp(at, [x for x, _ in curve], [y for _, y in curve]))
    return f"{100 * (1 - record['bytes'] / plain):.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for step in ("sizes", "rates", "steps", "table"):
        parser.add_argument(f"--{step}", action="store_true")
    parser.add_argument("--network", default="cifar10-resnet20")
    parser.add_argument("--images", type=int, default=1000, help="validation images of the divergence")
    parser.add_argument("--choices", nargs="+", default=["quantize(bits=3)", "quantize(bits=3,sparsity=0.5)"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="of recovery; at 1e-3 hardly a code moves")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.sizes or options.rates or options.steps:
        network = channels_last(load(options.network))
        for wanted, step in ((options.sizes, sizes_step), (options.rates, rates_step), (options.steps, steps_step)):
            if wanted:
                step(network, options)
    if options.table:
        Path(PATH.with_suffix(".md")).write_text(tables())
        print(tables())


if __name__ == "__main__":
    main()

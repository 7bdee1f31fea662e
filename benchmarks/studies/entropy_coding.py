"""What entropy coding is worth: bytes against plain fields and against the entropy, speed, and what it costs recovery.

    python -m benchmarks.studies.entropy_coding size     # every layer under one choice after the other; seconds
    python -m benchmarks.studies.entropy_coding rate     # codes that weigh bits against error, at equal divergence
    python -m benchmarks.studies.entropy_coding project  # projections of weights that training moved
    python -m benchmarks.studies.entropy_coding recover  # recovery in the coded bytes
    python -m benchmarks.studies.entropy_coding table    # the tables, from the records

The entropy is that of each stream of codes and each mask by itself, sum of -log2 of how often its numbers occur, for
which no model could be stored; scales count in full. The coder may come below it, since its contexts know more. Biases
and normalisations are left out of all sizes. Records are appended to ``benchmarks/results/entropy_coding.jsonl``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import Record, newest, table
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.menu.coding.coded import Coded, CodedGroup
from qubo_compress.menu.coding.parts import recorded
from qubo_compress.menu.operator import choice_name, parse
from qubo_compress.menu.prune import Prune
from qubo_compress.menu.quantize import Quantize
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group
from qubo_compress.plan import compression_of

STUDY = Study(
    __doc__, "entropy_coding", field="step", network="cifar10-resnet20",
    images=Option(1000, "validation images of the divergence"),
    choices=["quantize(bits=3)", "quantize(bits=3,sparsity=0.5)"], epochs=2, examples=2000,
    learning_rate=Option(5e-3, "of recovery; at 1e-3 hardly a code moves"), seed=0,
)  # fmt: skip

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


@lru_cache(maxsize=1)
def network_of(name: str) -> Network:
    """The network that everything is measured on."""
    return channels_last(load(name))


def sizes(options: Options) -> list[Record]:
    """Every choice of a few bits and sparsities."""
    names = [choice_name(Quantize(bits, share)) for bits in BITS for share in SPARSITY]
    names += [choice_name(Prune(share)) for share in SPARSITY[1:]]
    return list(grid(network=[options.network], choice=names))


@STUDY.step(sizes, again=True)
def size(options: Options, network: str, choice: str) -> Record:
    """Bytes and seconds of the whole network under one choice."""
    inner, coded = parse(choice), Coded(choice)
    layers, seconds = [], {"encode": 0.0, "decode": 0.0}
    for group, parts in weights_of(network_of(network).model):
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
    return {"layers": layers, **{f"{k}_seconds": round(v, 3) for k, v in seconds.items()}}


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


@STUDY.step(lambda o: grid(network=[o.network], images=[o.images], bits=RATE_BITS, rate=RATES), again=True)
def rate(options: Options, network: str, images: int, bits: int, rate: float) -> Record:
    """Bytes, squared error and divergence of codes under a price of bits."""
    model = network_of(network).model
    shown = torch.cat([x for x, _ in network_of(network).validation])[:images]
    original = torch.cat([part.reshape(-1) for _, parts in weights_of(model) for part in parts])
    small, packed = stored_network(model, Coded(choice_name(Quantize(bits)), rate))
    values = torch.cat([value.reshape(-1) for stored in packed for value in stored.tensors()])
    return {
        "bytes": sum(p.nbytes for p in packed), "divergence": divergence(small, model, shown),
        "error": float((values - original).square().sum() / original.square().sum()),
    }  # fmt: skip


@STUDY.step(lambda o: grid(network=[o.network], choice=o.choices, drift=DRIFTS), again=True)
def project(options: Options, network: str, choice: str, drift: float) -> Record:
    """Time and error of one projection of the whole network after training moved it."""
    packed = [Coded(choice).encode(group, parts) for group, parts in weights_of(network_of(network).model)]
    return _projected(packed, drift, options.seed)


def recoveries(options: Options) -> list[Record]:
    """Every choice, plain and coded."""
    names = [choice_name(operator) for name in options.choices for operator in (parse(name), Coded(name))]
    settings = {"epochs": [options.epochs], "examples": [options.examples], "learning_rate": [options.learning_rate]}
    return list(grid(network=[options.network], choice=names, **settings))


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


@STUDY.step(recoveries, again=True)
def recover(options: Options, network: str, choice: str, epochs: int, examples: int, learning_rate: float) -> Record:
    """Recovery in the bytes of the choice."""
    given = network_of(network)
    found = qc.measure(
        given.model, given.calibration, menu=qc.Menu([parse(choice)]), metric="magnitude", progress=False
    )  # fmt: skip
    plan = found.plan({name: names[-1] for name, names in zip(found.group_names, found.choices, strict=True)})
    small = plan.apply(given.model)
    before = accuracy_and_loss(small, given.validation)
    started = time.perf_counter()
    with Watch() as watch:
        better = qc.recover(
            small, given.train, given.model, epochs=epochs, max_examples=examples, learning_rate=learning_rate,
            progress=False,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    after = accuracy_and_loss(better, given.validation)
    return {
        "bytes": plan.bytes, "seconds": seconds, "moved_codes": _moved_share(small, better),
        "projections": watch.asked, "limited": watch.limited,
        "accuracy_before": 100 * before[0], "loss_before": before[1], "accuracy": 100 * after[0], "loss": after[1],
    }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """The last records of each setting."""
    columns = {
        "choice": "{choice}", "plain B": lambda r: f"{_total(r, 'plain'):.0f}",
        "coded B": lambda r: f"{_total(r, 'coded'):.0f}", "entropy B": lambda r: f"{_total(r, 'entropy'):.0f}",
        "saved %": lambda r: f"{100 * (1 - _total(r, 'coded') / _total(r, 'plain')):.1f}",
        "smallest layer": lambda r: _layer(min(r["layers"], key=lambda x: x["weights"])),
        "largest layer": lambda r: _layer(max(r["layers"], key=lambda x: x["weights"])),
        "encode / decode s": "{encode_seconds:.2f} / {decode_seconds:.2f}",
    }  # fmt: skip
    said = ["## Bytes of all weights (layers: plain / coded / entropy)"]
    said.append(table(newest(STUDY.records("size"), "network", "choice"), columns))
    rates = newest(STUDY.records("rate"), "network", "bits", "rate")
    columns = {
        "bits": "{bits}", "rate": "{rate:g}", "bytes": "{bytes}", "relative squared error": "{error:.2e}",
        "divergence": "{divergence:.2e}", "bytes saved at equal error %": lambda r: _saved(r, "error", rates),
        "at equal divergence %": lambda r: _saved(r, "divergence", rates),
    }  # fmt: skip
    said += ["## Codes that weigh bits against error", table(rates, columns)]
    columns = {
        "choice": "{choice}", "drift": "{drift:g}", "ms": "{milliseconds:.0f}", "plain ms": "{plain_milliseconds:.0f}",
        "groups that did not fit": "{limited_groups} of {groups}",
        "squared error against nearest codes": "{error_ratio:.3f}",
    }  # fmt: skip
    said.append("## One projection of the whole network")
    said.append(table(newest(STUDY.records("project"), "network", "choice", "drift"), columns))
    columns = {
        "choice": "{choice}", "file B": "{bytes}", "epochs": "{epochs}", "examples": "{examples}",
        "learning rate": "{learning_rate:g}", "s": "{seconds:.0f}",
        "codes that moved %": lambda r: f"{100 * r['moved_codes']:.1f}",
        "projections that the capacity changed": "{limited} of {projections}",
        "validation top-1 % / loss before": "{accuracy_before:.2f} / {loss_before:.4f}",
        "after": "{accuracy:.2f} / {loss:.4f}",
    }  # fmt: skip
    recovered = newest(STUDY.records("recover"), "network", "choice", "epochs", "examples", "learning_rate")
    return "\n\n".join([*said, "## Recovery", table(recovered, columns)]) + "\n"


def _total(record: Record, key: str) -> float:
    return float(sum(layer[key] for layer in record["layers"]))


def _layer(layer: Record) -> str:
    return f"{layer['plain']} / {layer['coded']} / {layer['entropy']:.0f}"


def _saved(record: Record, key: str, rates: list[Record]) -> str:
    """Bytes saved against what codes without a rate need for the same, interpolated between numbers of bits."""
    curve = sorted((np.log(r[key]), r["bytes"]) for r in rates if r["rate"] == 0)
    at = np.log(record[key])
    if record["rate"] == 0 or not curve[0][0] <= at <= curve[-1][0]:
        return ""
    plain = float(np.interp(at, [x for x, _ in curve], [y for _, y in curve]))
    return f"{100 * (1 - record['bytes'] / plain):.1f}"


if __name__ == "__main__":
    STUDY.main()

"""Bits of layers and channels that leave: one problem for both, or one after the other?

    python -m benchmarks.studies.bits_and_channels --networks cifar10-resnet20 --points 12:0.6 8:0.8
    python -m benchmarks.studies.bits_and_channels table

A point is a ratio of bytes and a share of the multiplications. ``one problem`` is
``compress(groups="channel", menu=...)``. ``channels, then bits`` first meets the multiplications by channels alone, as
``compress(groups="channel")`` does, then the bytes by the bits of the layers that are left. ``bits alone`` is
``compress(groups="layer")`` with the same menu and all multiplications. All use the same calibration examples, metric,
solver and seconds for each solve, and repair without training. Accuracy is on test examples, which chose nothing.
Records are appended to ``benchmarks/results/bits_and_channels.jsonl``.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import nn

import qubo_compress as qc
from benchmarks.networks import Batches, first, load
from benchmarks.networks.scores import score
from benchmarks.records import Record, newest, table
from benchmarks.studies.channels import multiplications
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound
from qubo_compress.plan import compression_of

METHODS = ("one problem", "channels, then bits", "bits alone")

STUDY = Study(
    __doc__, "bits_and_channels", field="step", networks=["cifar10-resnet20"], examples=[512], seeds=[0],
    points=Option(["12:0.6", "8:0.8"], "ratio of bytes and share of multiplications, with a colon between them"),
    methods=Option(list(METHODS), choices=METHODS), test=Option(2_000, "test examples"), time_limit=5.0,
)  # fmt: skip


def menu() -> qc.Menu:
    """Bits without zeros, so that a multiplication saved is one that no machine does."""
    return qc.Menu(sparsity=(0.0,))


def in_one(model: nn.Module, data: Batches, budget: qc.Budget, options: Options, seed: int) -> nn.Module:
    """Bits and channels from one problem."""
    return qc.compress(
        model, data, budget, groups="channel", menu=menu(), time_limit=options.time_limit, seed=seed, progress=False
    ).model


def in_turn(model: nn.Module, data: Batches, budget: qc.Budget, options: Options, seed: int) -> nn.Module:
    """Channels first, then bits."""
    work = replace(budget, ratio=1.0)
    small = qc.compress(
        model, data, work, groups="channel", time_limit=options.time_limit, seed=seed, progress=False
    ).model
    size = qc.measure(model, data, menu=qc.Menu([]), metric="magnitude", progress=False).layout.original_bytes
    rest = replace(budget, ratio=None, bytes=int(size / float(budget.ratio or 1)), macs=None)
    return qc.compress(small, data, rest, menu=menu(), time_limit=options.time_limit, seed=seed, progress=False).model


def bits_alone(model: nn.Module, data: Batches, budget: qc.Budget, options: Options, seed: int) -> nn.Module:
    """The bits of layers with all channels, whatever they multiply."""
    return qc.compress(
        model, data, replace(budget, macs=None), menu=menu(), time_limit=options.time_limit, seed=seed, progress=False
    ).model


MAKERS = dict(zip(METHODS, (in_one, in_turn, bits_alone), strict=True))


@STUDY.step(lambda o: grid(network=o.networks, examples=o.examples, point=o.points, seed=o.seeds, method=o.methods))
def compressed(options: Options, network: str, examples: int, point: str, seed: int, method: str) -> Record:
    """One method at one point."""
    torch.set_num_threads(1)
    loaded = load(network, calibration_examples=examples, seed=seed)
    data, test = loaded.calibration, first(loaded.test, options.test)
    ratio, share = (float(part) for part in point.split(":"))
    macs = multiplications(loaded.model, data[0][0])
    budget = qc.Budget(ratio=ratio, macs=int(share * macs))
    started = time.process_time()
    try:
        found = MAKERS[method](loaded.model, data, budget, options, seed)
    except (InfeasibleBudget, NoFeasibleFound) as reason:
        return {"refused": f"{reason}"[:200], "cpu_seconds": time.process_time() - started}
    took = time.process_time() - started
    means, before = score(found, test).means(), score(loaded.model, test).means()
    return {
        **means, "before": before["accuracy"], "macs_share": multiplications(found, data[0][0]) / macs,
        "bytes": compression_of(found).plan.bytes, "cpu_seconds": took, "test": options.test,
    }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """Accuracy of every method at every point."""
    key = ("network", "examples", "point", "seed", "method")
    found = sorted(newest(STUDY.records("compressed"), *key), key=lambda r: [r[name] for name in key])
    rows = [record for record in found if "refused" not in record]
    for record in rows:
        took = record["cpu_seconds"]
        record["seconds"] = "" if took is None else f"{took:.0f}"
    columns = {
        "network": "{network}", "examples": "{examples:,}", "ratio : multiplications": "{point}", "seed": "{seed}",
        "method": "{method}", "top-1 before": "{before:.2f}", "top-1": "{accuracy:.2f}", "loss": "{loss:.4f}",
        "bytes": "{bytes:,}", "multiplications": "{macs_share:.1%}", "CPU s": "{seconds}", "test": "{test:,}",
    }  # fmt: skip
    refused = "\n".join(f"- {r['network']}, {r['point']}, {r['method']}: no plan fits" for r in found if "refused" in r)
    return f"{table(rows, columns)}\n{refused}\n"


if __name__ == "__main__":
    STUDY.main()

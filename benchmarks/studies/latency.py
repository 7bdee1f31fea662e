"""Latency tables: predicted against measured milliseconds of plans that the tables were not fitted to.

    python -m benchmarks.studies.latency [--networks cifar10-resnet20] [--batches 1 32] [table]

A table is made as ``qc.latency_table`` makes it, by CPU time. Then five plans under limits between the fastest and the
slowest network that the table predicts, with random losses so that layers differ, are solved for and timed. Then the
table is corrected by each plan's own time, and the same limit solved for again, until a plan is within the limit and
predicted to 15 %, three times at most. ``over``: measured milliseconds beyond the limit, which is what a budget
promises; negative is within.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import qubo_compress as qc
from benchmarks.networks import load
from benchmarks.records import Record, table
from benchmarks.study import Options, Study, grid
from qubo_compress.errors import InfeasibleBudget

NETWORKS = ("cifar10-resnet20", "fashion-mnist-vit", "text-gpt", "imagenet-efficientnet-lite0")
MENU = ["quantize(bits=4)", "quantize(bits=8)", "quantize(bits=8,activations=8)"]
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the way from the fastest to the slowest network."""

CORRECTIONS, CLOSE = 3, 0.15
"""Most corrections of a table, and how well a plan must be predicted."""

STUDY = Study(
    __doc__,
    "latency",
    networks=list(NETWORKS),
    runtimes=["openvino", "onnxruntime"],
    batches=[1, 32],
    examples=64,
    runs=25,
)


@STUDY.step(lambda o: grid(network=o.networks, runtime=o.runtimes, batch=o.batches))
def plans(options: Options, network: str, runtime: str, batch: int) -> Iterator[Record]:
    """One record for every plan."""
    loaded, menu = load(network, calibration_examples=options.examples), qc.Menu(MENU)
    inputs = torch.cat([part[0] for part in loaded.calibration])[:batch]
    started = time.process_time()
    times = qc.latency_table(loaded.model, inputs, menu, runtime, runs=options.runs, clock=time.process_time)
    took = time.process_time() - started
    measured = qc.measure(
        loaded.model, loaded.calibration, menu=menu, metric="products", interactions=False, progress=False
    )
    slowest, fastest = (
        times.predicted({group: pick(offered, key=offered.__getitem__) for group, offered in times.layers.items()})
        for pick in (max, min)
    )
    for number, share in enumerate(SHARES):
        limit = (1.0 + times.margin) * (fastest + share * (slowest - fastest))
        used, passes = times, list[tuple[float, float]]()
        while len(passes) <= CORRECTIONS and (not passes or not _settled(*passes[-1], limit)):
            try:
                plan, small = _plan(measured, used, limit, number, loaded.model)
            except InfeasibleBudget:  # the corrected table says that nothing is so fast
                break
            found = qc.measured_latency(small, inputs, runtime, runs=options.runs, clock=time.process_time)
            passes.append((used.predicted(plan.choices), found))
            used = used.corrected(plan.choices, found)
        yield {
            "share": share, "limit": limit, "predicted": passes[0][0], "measured": passes[0][1],
            "predicted_last": passes[-1][0], "measured_last": passes[-1][1], "corrections": len(passes) - 1,
            "margin": times.margin, "fit": times.error, "cpu_seconds": took,
        }  # fmt: skip


def _settled(predicted: float, measured: float, limit: float) -> bool:
    """Whether a plan is within its limit, and was predicted well."""
    return measured <= limit and abs(predicted / measured - 1.0) <= CLOSE


def _plan(measured: Any, times: qc.LatencyTable, limit: float, seed: int, model: Any) -> tuple[qc.Plan, Any]:
    """A plan within a limit, and its network; the losses are random."""
    drawn = np.random.default_rng(seed).uniform(0.0, 1.0, measured.linear.shape)
    losses = measured.with_linear(drawn)
    budget = qc.Budget(bytes=measured.layout.original_bytes, latency_ms=limit, latency=times)
    plan = losses.plan(qc.solve(losses.problem(budget), time_limit=2))
    return plan, plan.apply(model)


@STUDY.table
def tables(options: Options) -> str:
    """All records."""
    return table(
        STUDY.records(),
        {
            "network": "{network}", "runtime": "{runtime}", "batch": "{batch}", "limit, CPU ms": "{limit:.3f}",
            "predicted": "{predicted:.3f}", "measured": "{measured:.3f}",
            "predicted / measured": lambda r: f"{r['predicted'] / r['measured']:.2f}",
            "over": lambda r: f"{100 * (r['measured'] / r['limit'] - 1):+.0f} %",
            "corrections": lambda r: str(r.get("corrections", "")),
            "then predicted / measured": lambda r: (
                f"{r['predicted_last'] / r['measured_last']:.2f}" if "measured_last" in r else ""
            ),
            "then over": lambda r: (
                f"{100 * (r['measured_last'] / r['limit'] - 1):+.0f} %" if "measured_last" in r else ""
            ),
            "margin": lambda r: f"{100 * r['margin']:.0f} %", "CPU s of the table": "{cpu_seconds:.0f}",
        },
    )  # fmt: skip


if __name__ == "__main__":
    STUDY.main()

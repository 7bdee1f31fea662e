"""The same calls on the processor and on a GPU: are tables, plans and networks the same, and how much faster is it?

    python -m benchmarks.studies.accelerator --networks digits fashion-mnist-vit text-gpt --examples 64

For every network: ``compress`` with the default settings and with compensated and coded choices, every metric, and
five epochs of recovery, first on the CPU, then on the device. A record per call is appended to
``benchmarks/results/accelerator.jsonl``: the largest difference of linear terms and of pair energies of plans, as
shares of the largest there is, whether the plans are equal, losses and accuracy on test examples, and seconds.
"""

from __future__ import annotations

import copy
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import qubo_compress as qc
from benchmarks.networks import Batches, first, load
from benchmarks.networks.scores import score
from benchmarks.processes import warm_up
from benchmarks.records import Record, newest, table
from benchmarks.study import Options, Study, grid

BUDGET = qc.Budget(ratio=8)
METRICS = ("products", "gauss-newton", "jacobian", "fisher", "magnitude")
Given = tuple[nn.Module, Batches, Batches]  # a network, calibration and test batches
PLANS = 32  # random plans on which pair energies are compared

STUDY = Study(
    __doc__, "accelerator", networks=["digits", "fashion-mnist-vit", "text-gpt"], metrics=list(METRICS), examples=64,
    test=500, device="cuda",
)  # fmt: skip


def on(device: str, batches: Batches) -> Batches:
    """The batches on a device."""
    return [(inputs.to(device), targets.to(device)) for inputs, targets in batches]


def device_name(device: str) -> str:
    """What the device is called."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's answer and its seconds, once everything on the GPU has ended."""
    started = time.perf_counter()
    answer = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return answer, time.perf_counter() - started


def table_differences(first_table: qc.SensitivityTable, second: qc.SensitivityTable) -> dict[str, float]:
    """Largest difference of linear terms, and of energies of random plans, as shares of the largest there is."""
    generator = np.random.default_rng(0)
    problems = [table.problem(BUDGET) for table in (first_table, second)]
    linears = [problem.linear for problem in problems]
    plans = np.stack([generator.integers(0, problems[0].group_sizes) for _ in range(PLANS)])
    energies = [np.array([problem.energy(plan) for plan in plans]) for problem in problems]
    return {
        "linear_difference": float(np.abs(linears[0] - linears[1]).max() / np.abs(linears[0]).max()),
        "energy_difference": float(np.abs(energies[0] - energies[1]).max() / np.abs(energies[0]).max()),
    }


def compressed(model: nn.Module, batches: Batches, test: Batches, device: str, menu: qc.Menu | None) -> dict[str, Any]:
    """One ``compress`` call on one device, what its network does there, and whether its file gives the same."""
    network = copy.deepcopy(model).to(device)
    result, seconds = timed(lambda: qc.compress(network, batches, BUDGET, menu=menu, progress=False, time_limit=5.0))
    there = on(device, test)
    reference = score(network, there)
    found = score(result.model, there, reference.logits)
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "network.qubo")
        loaded = qc.load(Path(folder) / "network.qubo", copy.deepcopy(model).to(device))
    again = score(loaded, there, reference.logits)
    return {
        "table": result.table, "plan": result.plan.choices, "seconds": seconds, **found.means(),
        "original_loss": reference.means()["loss"],
        "file_difference": float((again.logits - found.logits).abs().max()),
        "devices": sorted({str(tensor.device.type) for tensor in result.model.state_dict().values()}),
    }  # fmt: skip


def measured(model: nn.Module, batches: Batches, device: str, metric: str) -> dict[str, Any]:
    """One measurement on one device."""
    network = copy.deepcopy(model).to(device)
    table, seconds = timed(lambda: qc.measure(network, on(device, batches), metric=metric, progress=False))
    plan = table.plan(qc.solve(table.problem(BUDGET), "auto", time_limit=5.0))
    return {"table": table, "plan": plan.choices, "seconds": seconds}


def recovered(model: nn.Module, batches: Batches, test: Batches, device: str) -> dict[str, Any]:
    """Five epochs of recovery of a uniformly compressed network, on one device."""
    network = copy.deepcopy(model).to(device)
    table = qc.measure(network, batches, metric="magnitude", progress=False)
    small = table.plan(qc.solve(table.problem(BUDGET), "uniform")).apply(network)
    there = on(device, test)
    before = score(small, there).means()["loss"]
    found, seconds = timed(lambda: qc.recover(small, batches, network, epochs=5, progress=False))
    return {"seconds": seconds, "before": before, **score(found, there).means()}


def calls(
    model: nn.Module, batches: Batches, test: Batches, metrics: Sequence[str]
) -> Iterator[tuple[str, Callable[[str], dict[str, Any]]]]:
    """Every call that is compared, by name; each takes the device."""
    best = qc.Menu.of("quantize", "prune", "compensate", coded=True)
    few = first(batches, 16)
    yield "compress, default menu", lambda device: compressed(model, batches, test, device, None)
    yield "compress, compensated and coded", lambda device: compressed(model, batches, test, device, best)
    for metric in metrics:
        yield f"measure, {metric}", lambda device, name=metric: measured(model, few, device, name)
    yield "recover, 5 epochs", lambda device: recovered(model, batches, test, device)


def compare(name: str, given: Given, device: str, metrics: Sequence[str] = METRICS) -> Iterator[Record]:
    """A record for every call; a call that fails gives one with the end of its traceback."""
    model, batches, test = given
    for call, run in calls(model, batches, test, metrics):
        record: Record = {"network": name, "call": call, "examples": sum(len(t) for _, t in batches)}
        try:
            processor, accelerator = run("cpu"), run(device)
        except Exception:
            yield record | {"failed": traceback.format_exc()[-2_000:]}
            continue
        found = [answer.pop("table", None) for answer in (processor, accelerator)]
        if found[0] is not None:
            record |= table_differences(*found)
            record["same_plan"] = processor.pop("plan") == accelerator.pop("plan")
        record |= {f"cpu_{key}": value for key, value in processor.items()}
        yield record | {f"device_{key}": value for key, value in accelerator.items()}


@STUDY.step(lambda o: grid(network=o.networks), again=True)
def every_call(options: Options, network: str) -> Iterator[Record]:
    """Everything on one network, on both."""
    torch.zeros(1, device=options.device)  # says at once where there is no such device
    warm_up()
    loaded = load(network, calibration_examples=options.examples)
    given = loaded.model, loaded.calibration, first(loaded.test, options.test)
    for record in compare(network, given, options.device, options.metrics):
        yield record | {"device": device_name(options.device)}


@STUDY.table
def tables(options: Options) -> str:
    """One row per network and call, the newest of each."""
    columns = {
        "network": "{network}", "call": "{call}", "linear": "{linear_difference:.1e}",
        "energies": "{energy_difference:.1e}",
        "same plan": lambda r: {None: "", True: "yes", False: "no"}[r.get("same_plan")],
        "loss, CPU": "{cpu_loss:.4f}", "loss, GPU": "{device_loss:.4f}", "CPU s": "{cpu_seconds:.1f}",
        "GPU s": lambda r: f"{r['device_seconds']:.1f}" if "failed" not in r else r["failed"].splitlines()[-1],
    }  # fmt: skip
    return table(newest(STUDY.records(), "network", "call"), columns)


if __name__ == "__main__":
    STUDY.main()

"""The whole ``compress`` call on one network, by menu: seconds, memory and what the network lost.

    python -m benchmarks.studies.whole --examples 200 --ratios 4 6 8 --menu default
    python -m benchmarks.studies.whole --examples 200 --ratios 4 6 8 --menu best

``default`` is ``qc.compress(model, calibration, Budget(ratio))`` with nothing else said; ``best`` offers compensated
choices too, and everything coded. ``uniform`` is scored beside them, on the table of the first and recovered alike.
Every call runs in a separate process. Ratios of one menu share the measurement through a cache, so only the first
ratio's seconds are those of a user; the others say that their table came from the cache. Records are appended to
``benchmarks/results/whole.jsonl``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import qubo_compress as qc
from benchmarks.networks import first, load
from benchmarks.networks.scores import score
from benchmarks.processes import in_new_process, peak_memory, reset_peak_memory, warm_up
from benchmarks.records import Record, environment, newest, table
from benchmarks.study import Option, Options, Study, grid

MENUS: Mapping[str, tuple[str, ...]] = {"default": (), "best": ("quantize", "prune", "compensate")}
"""Families of choices; the default menu is the library's own."""


def measure(network: str, examples: int, ratio: float, menu: str, seed: int, tables: Path) -> list[dict[str, Any]]:
    """One call, and ``uniform`` on its table; runs in a separate process."""
    loaded = load(network, calibration_examples=examples, seed=seed)
    model, calibration, test = loaded.model, loaded.calibration, first(loaded.test, 2_000)
    del loaded
    original = score(model, test)
    warm_up()
    reset_peak_memory()
    before, started, cpu = peak_memory(), time.perf_counter(), time.process_time()
    offered = qc.Menu.of(*MENUS[menu], coded=True) if MENUS[menu] else None
    result = qc.compress(
        model, calibration, qc.Budget(ratio=ratio), menu=offered, seed=seed, progress=False, cache=tables
    )
    seconds, cpu, peak = time.perf_counter() - started, time.process_time() - cpu, peak_memory()
    plan = result.table.plan(qc.solve(result.table.problem(qc.Budget(ratio=ratio)), "uniform", seed=seed))
    uniform = qc.recover(plan.apply(model), calibration, model, seed=seed, progress=False)
    common = {f"original_{name}": value for name, value in original.means().items() if name != "divergence"}
    common["scored"] = len(original.losses)
    timing = {
        "seconds": seconds, "cpu_seconds": cpu, "peak_memory": peak, "memory_before": before,
        "from_cache": result.table.provenance.resumed > 0, "metric": result.table.provenance.metric,
        "winner": result.taken.winner, "predicted": result.plan.predicted_loss, "bytes": result.plan.bytes,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    ours = common | {"method": "compress", **score(result.model, test, original.logits).means(), **timing}
    return [ours, common | {"method": "uniform", **score(uniform, test, original.logits).means(), "bytes": plan.bytes}]


STUDY = Study(
    __doc__, "whole", network="imagenet-efficientnet-lite0", examples=200, ratios=[4.0, 6.0, 8.0],
    menu=Option("default", choices=MENUS), seed=0, threads=2,
    work=Option(Path("out/whole"), "folder of the measurements"),
)  # fmt: skip


def cells(options: Options) -> list[Record]:
    """One call for every ratio."""
    said = {"network": [options.network], "examples": [options.examples], "menu": [options.menu]}
    return list(grid(**said, seed=[options.seed], ratio=options.ratios))


@STUDY.step(cells, again=True)
def call(options: Options, network: str, examples: int, menu: str, seed: int, ratio: float) -> list[Record]:
    """One ``compress`` call and ``uniform`` on its table, in a process of their own."""
    folder = f"{network}_{examples}_{menu}_{seed}_{environment()['commit']}"
    given = network, examples, ratio, menu, seed, options.work.absolute() / folder
    found: list[Record] = in_new_process(measure, *given, threads=options.threads)
    return found


@STUDY.table
def tables(options: Options) -> str:
    """One row per call, the newest of each."""
    key = ("network", "examples", "menu", "ratio", "method")
    found = sorted(newest(STUDY.records(), *key), key=lambda r: [r[name] for name in key])
    timed = lambda name: lambda r: f"{r[name]:,.0f}" if name in r and not r["from_cache"] else ""  # noqa: E731
    columns = {
        "network": "{network}", "examples": "{examples}", "menu": "{menu}", "ratio": "{ratio:g}x", "method": "{method}",
        "top-1 before": "{original_accuracy:.2f}", "change": lambda r: f"{r['accuracy'] - r['original_accuracy']:+.2f}",
        "loss before": "{original_loss:.4f}", "loss": "{loss:.4f}", "KL": "{divergence:.4f}",
        "s": timed("seconds"), "CPU s": timed("cpu_seconds"), "peak MiB": timed("peak_memory"),
    }  # fmt: skip
    return table(found, columns)


if __name__ == "__main__":
    STUDY.main()

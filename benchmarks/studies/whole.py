"""The whole ``compress`` call on one network, by menu: seconds, memory and what the network lost.

    python -m benchmarks.studies.whole --examples 200 --ratios 4 6 8 --menu default
    python -m benchmarks.studies.whole --examples 200 --ratios 4 6 8 --menu best

``default`` is ``qc.compress(model, calibration, Budget(ratio))`` with nothing else said; ``best`` offers compensated
choices too, and everything coded. ``uniform`` is scored beside them, on the table of the first and recovered alike.
Every call runs in a process of its own. Ratios of one menu share the measurement through a cache, so only the first
ratio's seconds are those of a user; the others say that their table came from the cache. Records are appended to
``benchmarks/results/whole.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import qubo_compress as qc
from benchmarks.networks import load
from benchmarks.records import RESULTS, append, environment, markdown, read
from benchmarks.studies.robustness import PROJECT, first, peak_memory, reset_peak_memory, score, warm_up

PATH = RESULTS / "whole.jsonl"

MENUS: Mapping[str, tuple[str, ...]] = {"default": (), "best": ("quantize", "prune", "compensate")}
"""Families of choices; the default menu is the library's own."""


def measure(network: str, examples: int, ratio: float, menu: str, seed: int, tables: Path) -> list[dict[str, Any]]:
    """One call, and ``uniform`` on its table; runs in a process of its own."""
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
    common = {"network": network, "examples": examples, "ratio": ratio, "menu": menu, "seed": seed}
    common |= {f"original_{name}": value for name, value in original.means().items() if name != "divergence"}
    common |= {"scored": len(original.losses), **environment()}
    timing = {
        "seconds": seconds, "cpu_seconds": cpu, "peak_memory": peak, "memory_before": before,
        "from_cache": result.table.provenance.resumed > 0, "metric": result.table.provenance.metric,
        "winner": result.taken.winner, "predicted": result.plan.predicted_loss, "bytes": result.plan.bytes,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    ours = common | {"method": "compress", **score(result.model, test, original.logits).means(), **timing}
    return [ours, common | {"method": "uniform", **score(uniform, test, original.logits).means(), "bytes": plan.bytes}]


def table(records: list[dict[str, Any]]) -> str:
    """One row per call, the newest of each."""
    newest = {(r["network"], r["examples"], r["menu"], r["ratio"], r["method"]): r for r in records}
    rows = []
    for key in sorted(newest):
        found = newest[key]
        row = [found["network"], str(found["examples"]), found["menu"], f"{found['ratio']:g}x", found["method"]]
        row += [f"{found['original_accuracy']:.2f}", f"{found['accuracy'] - found['original_accuracy']:+.2f}"]
        row += [f"{found['original_loss']:.4f}", f"{found['loss']:.4f}", f"{found['divergence']:.4f}"]
        timed = "seconds" in found and not found["from_cache"]
        row += [f"{found[name]:,.0f}" if timed else "" for name in ("seconds", "cpu_seconds", "peak_memory")]
        rows.append(row)
    header = ["network", "examples", "menu", "ratio", "method", "top-1 before", "change", "loss before", "loss", "KL"]
    return markdown([*header, "s", "CPU s", "peak MiB"], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="imagenet-efficientnet-lite0")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--ratios", type=float, nargs="+", default=[4, 6, 8])
    parser.add_argument("--menu", choices=tuple(MENUS), default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("out/whole"), help="folder of the measurements")
    parser.add_argument("--records", type=Path, default=PATH)
    parser.add_argument("--call", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = f"{options.network}_{options.examples}_{options.menu}_{options.seed}_{environment()['commit']}"
    if options.call:
        found = measure(
            options.network, options.examples, options.ratios[0], options.menu, options.seed,
            options.work.absolute() / name,
        )  # fmt: skip
        print(json.dumps(found))
        return
    for ratio in options.ratios:
        command = [sys.executable, "-m", "benchmarks.studies.whole", "--call", "--ratios", str(ratio)]
        for option in ("network", "examples", "menu", "seed", "threads", "work"):
            command += [f"--{option}", str(getattr(options, option))]
        threads = {variable: str(options.threads) for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
        done = subprocess.run(
            command, cwd=PROJECT, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True
        )
        for record in json.loads(done.stdout.splitlines()[-1]):
            append(options.records, record)
    found = table(read(options.records))
    options.records.with_suffix(".md").write_text(found)
    print(found)


if __name__ == "__main__":
    main()

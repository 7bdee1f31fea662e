"""What reading and writing take: CPU milliseconds of this tree, and of another.

    python -m benchmarks.studies.files [--against FOLDER]

With ``--against FOLDER``, a checkout of another version, processes of both trees take turns, so that a load on the
machine falls on both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import qubo_compress as qc
from benchmarks import networks

ROOT = Path(__file__).parents[2]
NETWORKS = ("digits", "cifar10-resnet20")


def milliseconds(work: Callable[[], object], repetitions: int) -> list[float]:
    """CPU time of each repetition; the first, which compiles and fills caches, is not counted."""
    work()
    found = []
    for _ in range(repetitions):
        begin = time.process_time()
        work()
        found.append(1e3 * (time.process_time() - begin))
    return found


def measured(repetitions: int) -> dict[str, list[float]]:
    """Operation -> CPU milliseconds, of the package that is found first."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        operations = {}
        for network in NETWORKS:
            operations |= operations_on(network, folder)
        dense, path = qc.ChoiceProblem.random("dense", groups=100, choices=20, seed=0), folder / "dense"
        operations["problem.save (2000 choices, pairs)"] = lambda: dense.save(path)
        operations["ChoiceProblem.load (2000 choices, pairs)"] = lambda: qc.ChoiceProblem.load(path)
        return {operation: milliseconds(work, repetitions) for operation, work in operations.items()}


def operations_on(network: str, folder: Path) -> dict[str, Callable[[], object]]:
    """Name -> what is timed, saving before loading."""
    loaded = networks.load(network, calibration_examples=32)
    net, batches, menu = loaded.model, loaded.calibration, qc.Menu(bits=(2, 8), sparsity=(0.0,))
    table = qc.measure(net, batches, menu, "magnitude", progress=False)
    plan = table.plan({group: names[-1] for group, names in zip(table.group_names, table.choices, strict=True)})
    small, problem = plan.apply(net), table.problem(qc.Budget(ratio=4.0))
    file, text, array = (folder / f"{network}.{suffix}" for suffix in ("safetensors", "json", "npz"))
    return {
        f"save ({network})": lambda: qc.save(small, file),
        f"load ({network})": lambda: qc.load(file, net),
        f"plan.save ({network})": lambda: plan.save(text),
        f"Plan.load ({network})": lambda: qc.Plan.load(text),
        f"problem.save ({network})": lambda: problem.save(array),
        f"ChoiceProblem.load ({network})": lambda: qc.ChoiceProblem.load(array),
        f"measure from a cache ({network})": lambda: qc.measure(
            net, batches, menu, progress=False, cache=folder / network
        ),
    }


def of_tree(tree: Path, repetitions: int) -> dict[str, list[float]]:
    """The same in a process that imports another tree."""
    done = subprocess.run(
        [sys.executable, __file__, "--repetitions", str(repetitions), "--json"], cwd=tree, check=True,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
    )  # fmt: skip
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--turns", type=int, default=3, help="processes of each tree")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.json:
        print(json.dumps(measured(given.repetitions)))
        return 0
    trees = [ROOT] if given.against is None else [given.against.resolve(), ROOT]
    times: list[dict[str, list[float]]] = [{} for _ in trees]
    for _ in range(given.turns):
        for tree, taken in zip(trees, times, strict=True):
            for operation, values in of_tree(tree, given.repetitions).items():
                taken.setdefault(operation, []).extend(values)
    print("CPU milliseconds, median" + (f": {given.against}, this tree, ratio" if given.against else ""))
    for operation in times[0]:
        medians = [statistics.median(taken[operation]) for taken in times]
        ratio = f"{medians[-1] / medians[0]:8.3f}" if len(medians) > 1 else ""
        print(f"{operation:42}" + "".join(f"{median:10.3f}" for median in medians) + ratio)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the solvers' answers are worth: test loss and accuracy of every distinct plan found on measured instances.

    python -m benchmarks.solvers.plan_scores [--seconds 10] [--images 2000]

Plans are applied without repair or fine-tuning. Scores go to ``benchmarks/results/plan_scores.jsonl``; what is there is
not scored again.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from benchmarks.networks import accuracy_and_loss
from benchmarks.records import RESULTS, append, read
from benchmarks.solvers.comparison import PATH as SOLVES
from benchmarks.solvers.instances import is_measured, network_of, problem_of, table_of

PATH = RESULTS / "plan_scores.jsonl"


def key_of(instance: str, assignment: list[int]) -> str:
    """Name of a plan: the instance and its choices."""
    return instance + ":" + ",".join(map(str, assignment))


def scores() -> dict[str, dict[str, Any]]:
    """All scores so far, by :func:`key_of`."""
    return {record["key"]: record for record in read(PATH)}


def wanted(seconds: float) -> dict[str, list[list[int]]]:
    """Instance -> distinct assignments found at a time limit that have no score yet."""
    known, found = scores(), defaultdict(dict)
    for record in read(SOLVES):
        if record["seconds"] == seconds and is_measured(record["instance"]) and "assignment" in record:
            key = key_of(record["instance"], record["assignment"])
            if key not in known:
                found[record["instance"]][key] = record["assignment"]
    return {instance: list(plans.values()) for instance, plans in found.items()}


def score(instance: str, assignments: list[list[int]], images: int) -> None:
    """Apply every plan of one instance and append its score."""
    network, table, problem = network_of(instance), table_of(*instance.split("/")[:2]), problem_of(instance)
    test = _first(network.test, images)
    before = accuracy_and_loss(network.model, test)
    for assignment in assignments:
        array = np.array(assignment)
        small = table.plan(problem.names_of(array)).apply(network.model)
        accuracy, loss = accuracy_and_loss(small, test)
        append(
            PATH,
            {
                "key": key_of(instance, assignment),
                "instance": instance,
                "energy": problem.energy(array),
                "accuracy": 100 * accuracy,
                "loss": loss,
                "original_accuracy": 100 * before[0],
                "original_loss": before[1],
                "images": sum(len(targets) for _, targets in test),
            },
        )
        print(instance, f"{problem.energy(array):.5f} loss {loss:.4f} accuracy {100 * accuracy:.2f} %", flush=True)


def _first(batches: Any, images: int) -> Any:
    taken, count = [], 0
    for inputs, targets in batches:
        if count >= images:
            break
        taken.append((inputs, targets))
        count += len(targets)
    return taken


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="the time limit whose answers are scored")
    parser.add_argument("--images", type=int, default=2000, help="test images, the first ones")
    options = parser.parse_args()
    torch.set_num_threads(2)
    for instance, assignments in wanted(options.seconds).items():
        score(instance, assignments, options.images)


if __name__ == "__main__":
    main()

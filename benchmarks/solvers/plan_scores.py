"""What the solvers' answers are worth: test loss and accuracy of every distinct plan found on measured instances.

    python -m benchmarks.solvers.plan_scores [--seconds 10] [--images 2000]

Plans are applied without repair or fine-tuning. Scores go to ``benchmarks/results/plan_scores.jsonl``; what is there is
not scored again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

import qubo_compress as qc
from benchmarks.networks import Batches, Network, accuracy_and_loss
from benchmarks.records import RESULTS, Record, append, read
from benchmarks.solvers.comparison import PATH as SOLVES
from benchmarks.solvers.instances import is_measured, network_of, problem_of, table_of
from benchmarks.study import Option, command_line

PATH = RESULTS / "plan_scores.jsonl"


def key_of(instance: str, assignment: list[int]) -> str:
    """Name of a plan: the instance and its choices."""
    return instance + ":" + ",".join(map(str, assignment))


def scores() -> dict[str, Record]:
    """All scores so far, by :func:`key_of`."""
    return {record["key"]: record for record in read(PATH)}


def wanted(seconds: float) -> Iterator[tuple[str, list[int]]]:
    """Instances and distinct assignments found at a time limit that have no score yet, one instance after another."""
    known, found = scores(), {}
    for record in read(SOLVES):
        if record["seconds"] == seconds and is_measured(record["instance"]) and "assignment" in record:
            key = key_of(record["instance"], record["assignment"])
            if key not in known:
                found[key] = record["instance"], record["assignment"]
    return iter(sorted(found.values(), key=lambda plan: plan[0]))


@lru_cache(maxsize=1)
def prepared(instance: str, images: int) -> tuple[Network, qc.SensitivityTable, Batches, tuple[float, float]]:
    """The network of an instance, its table, whole batches of test images, and its own accuracy and loss on them."""
    network = network_of(instance)
    counts = np.cumsum([len(targets) for _, targets in network.test])
    test = network.test[: int(np.searchsorted(counts, images)) + 1]
    return network, table_of(*instance.split("/")[:2]), test, accuracy_and_loss(network.model, test)


def score(instance: str, assignment: list[int], images: int) -> Record:
    """Apply a plan; its figures beside the network's own."""
    network, table, test, before = prepared(instance, images)
    problem, array = problem_of(instance), np.array(assignment)
    accuracy, loss = accuracy_and_loss(table.plan(problem.names_of(array)).apply(network.model), test)
    return {
        "key": key_of(instance, assignment), "instance": instance, "energy": problem.energy(array),
        "accuracy": 100 * accuracy, "loss": loss, "original_accuracy": 100 * before[0], "original_loss": before[1],
        "images": sum(len(targets) for _, targets in test),
    }  # fmt: skip


def main() -> None:
    """Run from the command line."""
    options = command_line(
        __doc__, seconds=Option(10.0, "the time limit whose answers are scored"),
        images=Option(2000, "test images, the first ones"), threads=2,
    )  # fmt: skip
    for instance, assignment in wanted(options.seconds):
        record = score(instance, assignment, options.images)
        append(PATH, record)
        print(
            f"{instance} {record['energy']:.5f} loss {record['loss']:.4f} accuracy {record['accuracy']:.2f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()

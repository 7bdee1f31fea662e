"""The one table of choice problems on which solvers are compared: measured, published and generated ones.

Measured problems are named ``network/groups/ratio``, published ones ``hawq/network/budgets`` and generated ones
``kind/groups x choices/seed``. Generated seeds from 100 up are for judging; solvers are tuned on lower ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import qubo_compress as qc
from benchmarks.networks import Network, NetworkUnavailable, channels_last, load
from benchmarks.solvers.hawq import NETWORKS as PUBLISHED
from benchmarks.solvers.hawq import hawq_problem
from qubo_compress import ChoiceProblem
from qubo_compress.problem.generators import random_problem

CHOICES = 16
FIRST_SEED = 100
TABLES = Path("out/tables")
PROBLEMS = Path("out/instances")

LARGEST_QUBO = 1600
"""Most choices for which samplers of binary models are run where all groups are coupled (100 groups of 16)."""


@dataclass(frozen=True)
class Measurement:
    """How a measured table is made.

    Attributes:
        examples: calibration images.
        metric: of the sensitivity; the backward one where there are thousands of filters.
        ratios: budgets of the instances.
    """

    examples: int
    metric: str
    ratios: tuple[int, ...]


MEASURED: dict[tuple[str, str], Measurement] = {
    ("digits", "layer"): Measurement(512, "gauss-newton", (8, 10, 12)),
    ("digits", "filter"): Measurement(512, "gauss-newton", (10,)),
    ("fashion-mnist", "layer"): Measurement(1024, "gauss-newton", (8, 10, 12)),
    ("cifar10-resnet20", "layer"): Measurement(2048, "gauss-newton", (8, 10, 12)),
    ("cifar10-resnet20", "filter"): Measurement(256, "jacobian", (10,)),
    ("fashion-mnist-resnet56", "layer"): Measurement(512, "gauss-newton", (10,)),
}

GENERATED: dict[str, tuple[int, ...]] = {
    "separable": (20, 100, 500, 2000),
    "sparse": (20, 100, 500, 2000),
    "dense": (20, 100, 500),
    "low-rank": (20, 100, 500, 2000),
    "planted": (20, 100, 500),
}
"""Dense tables of 2000 groups are left out: their pair energies alone would take four gigabytes."""


def names() -> Iterator[str]:
    """Names of all instances, one seed of each generated kind and size."""
    for (network, groups), measurement in MEASURED.items():
        for ratio in measurement.ratios:
            yield f"{network}/{groups}/{ratio}x"
    for network in PUBLISHED:
        yield f"hawq/{network}/bytes"
    yield "hawq/resnet18/bytes+operations"
    for kind, sizes in GENERATED.items():
        for groups in sizes:
            yield generated_name(kind, groups, FIRST_SEED)


def generated_name(kind: str, groups: int, seed: int) -> str:
    """Name of a generated instance."""
    return f"{kind}/{groups}x{CHOICES}/{seed}"


def is_measured(name: str) -> bool:
    """Whether the instance comes from a network of ours, whose plans can be scored."""
    return tuple(name.split("/")[:2]) in MEASURED


def problem_of(name: str) -> ChoiceProblem:
    """The problem of that name; measured ones are kept in ``out/``.

    Raises:
        NetworkUnavailable: when the network or its images are not on this machine.
    """
    first, second, third = name.split("/")
    if first == "hawq":
        return hawq_problem(second, operations=third.endswith("operations"))
    if first in GENERATED:
        return random_problem(first, int(second.partition("x")[0]), CHOICES, int(third))
    path = PROBLEMS / (name.replace("/", "_") + ".npz")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        table_of(first, second).problem(qc.Budget(ratio=float(third.rstrip("x")))).save(path)
    return ChoiceProblem.load(path)


def network_of(name: str, seed: int = 0) -> Network:
    """The network of a measured instance, with its calibration images of that seed."""
    network, groups = name.split("/")[:2]
    examples = MEASURED[network, groups].examples
    return channels_last(load(network, calibration_examples=examples, seed=seed))


def table_of(network: str, groups: str) -> qc.SensitivityTable:
    """Measure a table, or read it back."""
    measurement = MEASURED[network, groups]
    loaded = network_of(f"{network}/{groups}")
    return qc.measure(
        loaded.model,
        loaded.calibration,
        metric=measurement.metric,
        groups=groups,
        cache=TABLES / f"{network}_{groups}_{measurement.examples}_0",
        progress=False,
    )


def main() -> None:
    """Make every measured problem that this machine can make, so that solvers need not wait for them."""
    torch.set_num_threads(2)
    for name in filter(is_measured, names()):
        try:
            problem = problem_of(name)
        except NetworkUnavailable as reason:
            print(f"{name}: skipped, {reason}", flush=True)
            continue
        print(f"{name}: {problem.num_groups} groups, {problem.num_choices} choices, {problem.structure}", flush=True)


if __name__ == "__main__":
    main()

"""Should the linear terms be drawn towards the KL divergence? Test loss of the best plan for several shares.

    python -m benchmarks.studies.shrinkage [--seeds 0 1 2] [--ratios 6 8 10 12]

Uses the tables that ``benchmarks.studies.ratios`` measured. For each share the problem is solved by ``auto`` and the
plan scored on the test images, without recovery.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import Record, means, table
from benchmarks.study import Options, Study, grid

STUDY = Study(
    __doc__, "shrinkage", report="shrinkage_{network}", network="cifar10-resnet20", seeds=[0, 1, 2],
    ratios=[6.0, 8.0, 10.0, 12.0], shares=[0.0, 0.5, 1.0], examples=2000, time_limit=5.0,
    threads=torch.get_num_threads(), cache=Path("out/tables"),
)  # fmt: skip


@lru_cache(maxsize=1)
def network_of(options: Options, seed: int) -> Network:
    """The network with the calibration images of a seed."""
    return channels_last(load(options.network, calibration_examples=options.examples, seed=seed))


@STUDY.step(lambda o: grid(network=[o.network], ratio=o.ratios, seed=o.seeds, share=o.shares))
def score(options: Options, network: str, ratio: float, seed: int, share: float) -> Record:
    """Test figures of the best plan of a share."""
    drawn, cache = network_of(options, seed), options.cache / f"{network}_{options.examples}_{seed}"
    measured = qc.measure(drawn.model, drawn.calibration, cache=cache, progress=False, shrinkage=share)
    solution = qc.solve(measured.problem(qc.Budget(ratio=ratio)), time_limit=options.time_limit)
    accuracy, loss = accuracy_and_loss(measured.plan(solution).apply(drawn.model), drawn.test)
    return {"energy": solution.energy, "bound": solution.bound, "loss": loss, "accuracy": 100 * accuracy}


@STUDY.table
def tables(options: Options) -> str:
    """Means over seeds."""
    found = means(STUDY.records(network=options.network), "ratio", "share")
    columns = {"ratio": "{ratio:g}x", "share of KL": "{share:g}", "seeds": "{count}"}
    return table(found, columns | {"test loss": "{loss:.3f}", "top-1 %": "{accuracy:.2f}"})


if __name__ == "__main__":
    STUDY.main()

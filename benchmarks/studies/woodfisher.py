"""One-shot pruning of ResNet-20: second-order saliency and joint updates against what is cheaper.

    python -m benchmarks.studies.woodfisher         # runs what is missing, then prints the table
    python -m benchmarks.studies.woodfisher table   # the table, from the records

The convolutions of the three stages are pruned, as in the paper (Singh & Alistarh, NeurIPS 2020); accuracy is on all
test images, without any repair of the normalisations.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import Record, markdown, matching, mean_of
from benchmarks.study import Options, Study
from qubo_compress.pruning.pruning import Pruning, gradients_of, prune, pruned_layers

STUDY = Study(
    __doc__, "woodfisher", report="woodfisher_cifar10-resnet20", seeds=[0], sparsities=[0.5, 0.6, 0.7, 0.8, 0.9],
    examples=2000, threads=1,
)  # fmt: skip
LAYERS = r"^layer[123]\..*conv\d\.weight$"

SHARED = Pruning()
"""Says which gradients are gathered: once for all contestants."""

CONTESTANTS: dict[str, Pruning] = {
    "magnitude, per layer": Pruning("magnitude", "layer"),
    "magnitude, global": Pruning("magnitude", "global"),
    "diagonal Fisher, global": Pruning("diagonal-fisher", "global"),
    "WoodTaylor, joint, global": Pruning("woodtaylor", "global"),
    "WoodTaylor, joint, damping 0.1": Pruning("woodtaylor", "global", damping=0.1),
    "WoodFisher, no update, global": Pruning("woodfisher", "global", update="none"),
    "WoodFisher, independent, global": Pruning("woodfisher", "global", update="independent"),
    "WoodFisher, independent, damping 1e-5": Pruning("woodfisher", "global", update="independent", damping=1e-5),
    "WoodFisher, joint, per layer": Pruning("woodfisher", "layer"),
    "WoodFisher, joint, global": Pruning("woodfisher", "global"),
    "WoodFisher, joint, damping 1e-5": Pruning("woodfisher", "global", damping=1e-5),
}


@lru_cache(maxsize=1)
def prepared(options: Options, seed: int) -> tuple[Network, dict[str, Any], Any, float]:
    """The network, what is pruned of it on which images, the gradients, and its accuracy."""
    network = channels_last(load("cifar10-resnet20", calibration_examples=options.examples, seed=seed))
    wanted = {"layers": LAYERS, "seed": seed, "max_examples": options.examples}
    gradients = gradients_of(network.model, network.calibration, SHARED, **wanted)
    return network, wanted, gradients, 100 * accuracy_and_loss(network.model, network.test)[0]


def cells(options: Options) -> Iterator[Record]:
    """Every contestant at every sparsity."""
    for seed in options.seeds:
        for sparsity in options.sparsities:
            for name, how in CONTESTANTS.items():
                yield {"method": name, "sparsity": sparsity, "seed": seed, "gradients": how.gradients}


@STUDY.step(cells)
def score(options: Options, method: str, sparsity: float, seed: int, gradients: int) -> Record:
    """Test figures of the pruned network."""
    network, wanted, gathered, before = prepared(options, seed)
    started = time.perf_counter()
    small = prune(network.model, network.calibration, sparsity, CONTESTANTS[method], gradients=gathered, **wanted)
    seconds = time.perf_counter() - started
    accuracy, loss = accuracy_and_loss(small, network.test)
    layer = pruned_layers(small)[0]
    return {
        "accuracy": 100 * accuracy, "loss": loss, "original_accuracy": before, "seconds": seconds,
        "damping": layer.damping, "held_out_error": layer.held_out_error, "held_out_loss": layer.held_out_loss,
    }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """Accuracy per method and sparsity, means over seeds."""
    records = STUDY.records()
    sparsities = sorted({r["sparsity"] for r in records})
    original = mean_of(records)["original_accuracy"]
    rows = [["not pruned", *(f"{original:.2f}" for _ in sparsities)]]
    for name in CONTESTANTS:
        found = [matching(records, method=name, sparsity=sparsity) for sparsity in sparsities]
        rows.append([name, *(f"{mean_of(part)['accuracy']:.2f}" if part else "" for part in found)])
    return markdown(["test accuracy at sparsity", *(f"{share:.0%}" for share in sparsities)], rows)


if __name__ == "__main__":
    STUDY.main()

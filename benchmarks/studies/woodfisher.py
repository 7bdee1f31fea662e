"""One-shot pruning of ResNet-20: second-order saliency and joint updates against what is cheaper.

    python -m benchmarks.studies.woodfisher             # runs what is missing, then prints the table
    python -m benchmarks.studies.woodfisher --table     # the table, from the records

The convolutions of the three stages are pruned, as in the paper (Singh & Alistarh, NeurIPS 2020); accuracy is on all
test images, without any repair of the normalisations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks.networks import accuracy_and_loss, channels_last, load
from benchmarks.records import RESULTS, append, environment, markdown, read
from qubo_compress.pruning.pruning import Pruning, gradients_of, prune, pruned_layers

PATH = RESULTS / "woodfisher.jsonl"
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


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    done = {(r["method"], r["sparsity"], r["seed"], r["gradients"]) for r in read(PATH)}
    for seed in options.seeds:
        network = channels_last(load("cifar10-resnet20", calibration_examples=options.examples, seed=seed))
        before = accuracy_and_loss(network.model, network.test)
        wanted = {"layers": LAYERS, "seed": seed, "max_examples": options.examples}
        gradients = gradients_of(network.model, network.calibration, SHARED, **wanted)
        for sparsity in options.sparsities:
            for name, how in CONTESTANTS.items():
                if (name, sparsity, seed, how.gradients) in done:
                    continue
                started = time.perf_counter()
                small = prune(network.model, network.calibration, sparsity, how, gradients=gradients, **wanted)
                seconds = time.perf_counter() - started
                accuracy, loss = accuracy_and_loss(small, network.test)
                record: dict[str, Any] = {
                    "method": name, "sparsity": sparsity, "seed": seed, "gradients": how.gradients,
                    "accuracy": 100 * accuracy, "loss": loss, "original_accuracy": 100 * before[0],
                    "seconds": seconds, "damping": pruned_layers(small)[0].damping,
                    "held_out_error": pruned_layers(small)[0].held_out_error,
                    "held_out_loss": pruned_layers(small)[0].held_out_loss, **environment(),
                }  # fmt: skip
                append(PATH, record)
                print(
                    f"{name:40} {sparsity:.0%} accuracy {100 * accuracy:.2f} loss {loss:.3f} {seconds:.0f} s",
                    flush=True,
                )


def table_text() -> str:
    """Accuracy per method and sparsity, means over seeds."""
    records = list(read(PATH))
    sparsities = sorted({r["sparsity"] for r in records})
    original = statistics.mean(r["original_accuracy"] for r in records)
    rows = [["not pruned", *(f"{original:.2f}" for _ in sparsities)]]
    for name in CONTESTANTS:
        cells = [name]
        for sparsity in sparsities:
            found = [r["accuracy"] for r in records if (r["method"], r["sparsity"]) == (name, sparsity)]
            cells.append(f"{statistics.mean(found):.2f}" if found else "")
        rows.append(cells)
    return markdown(["test accuracy at sparsity", *(f"{share:.0%}" for share in sparsities)], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        run(options)
    text = table_text()
    (RESULTS / "woodfisher_cifar10-resnet20.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

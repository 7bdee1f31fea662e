"""Should the linear terms be drawn towards the KL divergence? Test loss of the best plan for several shares.

    python -m benchmarks.studies.shrinkage [--seeds 0 1 2] [--ratios 6 8 10 12]

Uses the tables that ``benchmarks.studies.ratios`` measured. For each share the problem is solved by ``auto`` and the
plan scored on the test images, without recovery.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

import qubo_compress as qc
from benchmarks.networks import accuracy_and_loss, channels_last, load
from benchmarks.records import RESULTS, append, environment, markdown, read

PATH = RESULTS / "shrinkage.jsonl"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10-resnet20")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[6.0, 8.0, 10.0, 12.0])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--time-limit", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, default=Path("out/tables"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = {(r["network"], r["seed"], r["ratio"], r["share"]) for r in read(PATH)}
    for ratio in options.ratios:
        for seed in options.seeds:
            network = load(options.network, calibration_examples=options.examples, seed=seed)
            cache = options.cache / f"{options.network}_{options.examples}_{seed}"
            for share in options.shares:
                if (options.network, seed, ratio, share) in done:
                    continue
                table = qc.measure(
                    network.model, channels_last(network).calibration, cache=cache, progress=False, shrinkage=share
                )
                solution = qc.solve(table.problem(qc.Budget(ratio=ratio)), time_limit=options.time_limit)
                small = table.plan(solution).apply(network.model)
                accuracy, loss = accuracy_and_loss(small, channels_last(network).test)
                record = {
                    "network": options.network,
                    "seed": seed,
                    "ratio": ratio,
                    "share": share,
                    "energy": solution.energy,
                }
                record |= {"bound": solution.bound, "loss": loss, "accuracy": 100 * accuracy, **environment()}
                append(PATH, record)
                print(ratio, seed, share, round(loss, 4), round(100 * accuracy, 2), solution.status, flush=True)
    rows = []
    for ratio in options.ratios:
        for share in options.shares:
            found = [r for r in read(PATH) if (r["network"], r["ratio"], r["share"]) == (options.network, ratio, share)]
            if found:
                loss = statistics.mean(r["loss"] for r in found)
                accuracy = statistics.mean(r["accuracy"] for r in found)
                rows.append([f"{ratio:g}x", f"{share:g}", str(len(found)), f"{loss:.3f}", f"{accuracy:.2f}"])
    text = markdown(["ratio", "share of KL", "seeds", "test loss", "top-1 %"], rows)
    (RESULTS / f"shrinkage_{options.network}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""Plans to download, and what each does to its network on test examples.

    python -m benchmarks.studies.model_zoo
    python -m benchmarks.studies.model_zoo --networks digits --ratios 10

``qc.compress(model, calibration, Budget(ratio))`` with default arguments, beside ``uniform`` on the table of the same
call, repaired in the same way. Each plan is written to ``docs/zoo/NETWORK_RATIOx.json``, read again and applied: the
figures are those of the file. Records are appended to ``benchmarks/results/model_zoo.jsonl``.
"""

from __future__ import annotations

import math
import time

import torch

import qubo_compress as qc
from benchmarks.networks import first, load
from benchmarks.networks.scores import TestScore, score
from benchmarks.processes import warm_up
from benchmarks.records import RESULTS, Record, newest, table
from benchmarks.study import Options, Study, grid

FOLDER = RESULTS.parents[1] / "docs" / "zoo"
TITLES = {
    "digits": "residual network, scikit-learn's digits",
    "cifar10-resnet20": "ResNet-20, CIFAR-10",
    "fashion-mnist-resnet56": "ResNet-56, Fashion-MNIST",
    "fashion-mnist-vit": "vision transformer, Fashion-MNIST",
    "text-gpt": "GPT over bytes of Python source",
}

STUDY = Study(
    __doc__, "model_zoo", networks=list(TITLES), ratios=[8.0, 12.0], examples=512, windows=64, test=5_000,
    test_windows=300, threads=1,
)  # fmt: skip


def standard_error(before: TestScore, after: TestScore) -> float:
    """Of the change of the accuracy, in points: the same examples are answered before and after."""
    change = after.correct - before.correct
    return 100 * change.std().item() / math.sqrt(len(change))


@STUDY.step(lambda o: list(grid(network=o.networks, ratio=o.ratios)))
def plan(options: Options, network: str, ratio: float) -> Record:
    """One call, its plan as a file, and what the file does."""
    of_text = network == "text-gpt"
    loaded = load(network, calibration_examples=options.windows if of_text else options.examples, seed=0)
    model, calibration = loaded.model, loaded.calibration
    test = first(loaded.test, options.test_windows if of_text else options.test)
    warm_up()
    started = time.process_time()
    result = qc.compress(model, calibration, qc.Budget(ratio=ratio), progress=False)
    seconds = time.process_time() - started
    uniform = result.table.plan(qc.solve(result.table.problem(qc.Budget(ratio=ratio)), "uniform"))
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{network}_{ratio:g}x.json"
    result.plan.save(path)
    read = qc.Plan.load(path)
    applied = read.apply(model)
    original = score(model, test)
    figures: Record = {
        "parameters": sum(p.numel() for p in model.parameters()), "calibration": sum(len(x) for x, _ in calibration),
        "test": len(original.losses), "original_bytes": read.original_bytes, "bytes": read.bytes,
        "original_accuracy": original.means()["accuracy"], "winner": result.taken.winner, "cpu_seconds": seconds,
        "file": path.name, "file_bytes": path.stat().st_size, "torch_threads": torch.get_num_threads(),
    }  # fmt: skip
    for name, found in (("ours", read), ("uniform", uniform)):
        small = applied if found is read else found.apply(model)
        repaired = qc.recover(small, calibration, model, progress=False)
        before, after = score(small, test, original.logits), score(repaired, test, original.logits)
        figures[f"{name}_bytes"] = found.bytes
        figures[f"{name}_applied"] = before.means()["accuracy"]
        figures[f"{name}_accuracy"] = after.means()["accuracy"]
        figures[f"{name}_loss"] = after.means()["loss"]
        figures[f"{name}_divergence"] = after.means()["divergence"]
        figures[f"{name}_error"] = standard_error(original, after)
    return figures


@STUDY.table
def tables(options: Options) -> str:
    """One row per plan."""
    found = newest(STUDY.records(), "network", "ratio")
    found = sorted(found, key=lambda record: (record["parameters"], record["ratio"]))
    fall = lambda name: lambda r: f"{r['original_accuracy'] - r[f'{name}_accuracy']:.2f} ± {r[f'{name}_error']:.2f}"  # noqa: E731

    columns = {
        "network": lambda r: TITLES[r["network"]], "parameters": "{parameters:,}",
        "original bytes": "{original_bytes:,}", "ratio": "{ratio:g}x", "bytes": "{bytes:,}",
        "top-1 before, %": "{original_accuracy:.2f}", "top-1 after, %": "{ours_accuracy:.2f}",
        "drop, points": fall("ours"), "drop of `uniform`": fall("uniform"), "test examples": "{test:,}",
        "CPU s": "{cpu_seconds:.0f}", "plan": "[{file}](../zoo/{file})",
    }  # fmt: skip
    return table(found, columns)


if __name__ == "__main__":
    STUDY.main()

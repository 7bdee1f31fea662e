"""What each family of choices is worth: test accuracy at equal stored bytes, with and without entropy coding.

    python -m benchmarks.studies.choices --measure          # one table of every choice; minutes
    python -m benchmarks.studies.choices --solve            # plans of every menu at every ratio, without fine-tuning
    python -m benchmarks.studies.choices --tune             # the best menus of each ratio, three epochs of recovery
    python -m benchmarks.studies.choices --table            # the tables, from the records

One table is measured with every choice of every family, plain and coded; a menu is that table narrowed to some
families. A solve is repeated on the menu that its plan uses, whose file header is shorter. The menu that is called
best is the one of the lowest loss on validation images; test images are looked at for the figures alone. Records
are appended to ``benchmarks/results/choices.jsonl``; what is there already is not run again. Those of version 0.3,
measured by ``gauss-newton``, lie in ``choices_0.3.jsonl``.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import RESULTS, append, environment, markdown, read
from qubo_compress.menu import choices_of, family_names, family_of
from qubo_compress.menu.coding.coded import coded_name
from qubo_compress.menu.operator import parse

PATH = RESULTS / "choices.jsonl"
QUICK_BATCHES = 8
"""Batches of test images on which a plan is scored before its recovery."""

MENUS: dict[str, tuple[str, ...]] = {
    "quantize": ("quantize",),
    "prune+quantize": ("quantize", "prune"),
    "+compensation": ("quantize", "prune", "compensate"),
    "+low rank": ("quantize", "prune", "compensate", "low-rank"),
    "+frequency": ("quantize", "prune", "compensate", "low-rank", "frequency"),
    "all": ("quantize", "prune", "compensate", "low-rank", "frequency", "woodfisher"),
}


def inner(name: str) -> str:
    """Name of the choice that is coded, or the name itself."""
    return str(getattr(parse(name), "of", name))


def names_of(menu: str, with_coding: bool) -> list[str]:
    """Choice names of a menu; the coded form of a weight's choice is offered beside the plain one."""
    names = [name for family in MENUS[menu] if family in family_names() for name in choices_of(family)]
    plain = [name for name in names if inner(name) == name]
    if not with_coding:
        return [*plain, *choices_of("vectors")]
    return [*names, *(coded_name(name) for name in plain), *choices_of("vectors")]


def measured(network: Network, options: argparse.Namespace) -> qc.SensitivityTable:
    """The table of every choice, from the cache where it is complete."""
    menu = qc.Menu([parse(name) for name in names_of("all", with_coding=True)])
    cache = options.cache / f"choices_{options.network}_{options.examples}_{options.seed}"
    return qc.measure(
        network.model, network.calibration, menu=menu, loss=options.loss, cache=cache, seed=options.seed,
        max_examples=options.examples, progress=options.progress,
    )  # fmt: skip


def plan_of(table: qc.SensitivityTable, ratio: float, options: argparse.Namespace) -> tuple[qc.Plan, qc.Solution]:
    """A plan, solved again on ever fewer choices, of which the file's header is shorter, while that makes it better."""
    budget = qc.Budget(ratio=ratio)
    solution = qc.solve(table.problem(budget), options.solver, time_limit=options.time_limit)
    plan = table.plan(solution)
    for depth in (16, 1):
        pool = solution.pool[:depth] or (solution,)
        narrow = table.narrowed(sorted({name for found in pool for name in found.choices.values()}))
        again = qc.solve(narrow.problem(budget), options.solver, time_limit=options.time_limit)
        if again.energy <= solution.energy:
            plan, solution = narrow.plan(again), again
    return plan, solution


def shares(table: qc.SensitivityTable, plan: qc.Plan) -> dict[str, int]:
    """Family -> how many weight tensors picked it."""
    weights = [group.name for group in table.layout.groups if group.kind == "weight"]
    return dict(Counter(_family(plan.choices[name]) for name in weights))


def _family(choice: str) -> str:
    """The family that offers a choice, coded or not."""
    found = family_of(choice)
    return found if found in family_names() else family_of(inner(choice))


def scored(model: Any, network: Network) -> dict[str, float]:
    """Figures of a network on the validation and the test images."""
    validation = accuracy_and_loss(model, network.validation)
    test = accuracy_and_loss(model, network.test)
    return {"validation_loss": validation[1], "test_loss": test[1], "accuracy": 100 * test[0]}


def measure_step(network: Network, options: argparse.Namespace) -> None:
    """Measure the whole table, and say what it took."""
    started, cpu = time.perf_counter(), time.process_time()
    table = measured(network, options)
    record = {
        "step": "measure", "network": network.name, "examples": options.examples, "seed": options.seed,
        "threads": torch.get_num_threads(), "metric": table.provenance.metric, "choices": int(table.linear.size),
        "weight_choices": len(table.choices[0]), "groups": len(table.choices),
        "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu,
        "resumed": table.provenance.resumed,
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, **environment(),
    }  # fmt: skip
    append(PATH, record)
    print({k: record[k] for k in ("choices", "seconds", "peak_gigabytes", "resumed")}, flush=True)


def solve_step(network: Network, options: argparse.Namespace) -> None:
    """Plans of every menu at every ratio, applied and recovered without fine-tuning."""
    table = measured(network, options)
    done = {_key(r) for r in read(PATH) if r["step"] == "solve"}
    before = scored(network.model, network)
    for ratio in options.ratios:
        for menu in options.menus:
            for with_coding in (False, True):
                key = (network.name, options.seed, options.loss, float(ratio), menu, with_coding)
                if key in done:
                    continue
                narrow = table.narrowed(names_of(menu, with_coding))
                plan, solution = plan_of(narrow, ratio, options)
                small = plan.apply(network.model)
                repaired = qc.recover(small, network.calibration, network.model, progress=False)
                applied = accuracy_and_loss(small, network.test[:QUICK_BATCHES])
                figures = {f"recovered_{name}": value for name, value in scored(repaired, network).items()}
                figures |= {"applied_accuracy": 100 * applied[0], "applied_loss": applied[1]}
                record = {
                    "step": "solve", **dict(zip(_KEYS, key, strict=True)), "bytes": plan.bytes,
                    "limit": int(plan.original_bytes / ratio), "predicted": plan.predicted_loss,
                    "bound": solution.bound, "status": solution.status, "shares": shares(narrow, plan),
                    "choices": dict(plan.choices), "original_accuracy": before["accuracy"],
                    "original_loss": before["test_loss"], **figures, "examples": options.examples, **environment(),
                }  # fmt: skip
                append(PATH, record)
                print(
                    f"{ratio:g}x {menu:15} coded={with_coding!s:5} {plan.bytes} B predicted {plan.predicted_loss:.4f} "
                    f"accuracy {figures['applied_accuracy']:.2f} recovered {figures['recovered_accuracy']:.2f} "
                    f"{record['shares']}", flush=True,
                )  # fmt: skip


_KEYS = ("network", "seed", "loss", "ratio", "menu", "coded")


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in _KEYS)


def best_of(records: list[dict[str, Any]], ratio: float) -> dict[str, Any]:
    """The record with the lowest recovered validation loss at a ratio."""
    return min((r for r in records if r["ratio"] == ratio), key=lambda r: r["recovered_validation_loss"])


def tune_step(network: Network, options: argparse.Namespace) -> None:
    """Three epochs of recovery on the training images, for the best menu of each ratio."""
    table = measured(network, options)
    records = [r for r in read(PATH) if r["step"] == "solve" and r["network"] == network.name]
    records = [r for r in records if r["seed"] == options.seed and r["loss"] == options.loss]
    done = {(_key(r), r["epochs"], r["learning_rate"]) for r in read(PATH) if r["step"] == "tune"}
    for ratio in options.ratios:
        best = best_of(records, ratio)
        if (_key(best), options.epochs, options.learning_rate) in done:
            continue
        narrow = table.narrowed(sorted(set(best["choices"].values())))
        small = narrow.plan(best["choices"]).apply(network.model)
        started = time.perf_counter()
        tuned = qc.recover(
            small, network.train, network.model, epochs=options.epochs, max_examples=len(network.train) * 250,
            learning_rate=options.learning_rate, progress=options.progress,
        )  # fmt: skip
        record = {
            "step": "tune", **{name: best[name] for name in _KEYS}, "bytes": best["bytes"], "epochs": options.epochs,
            "learning_rate": options.learning_rate, "seconds": time.perf_counter() - started,
            "original_accuracy": best["original_accuracy"], **scored(tuned, network), **environment(),
        }  # fmt: skip
        append(PATH, record)
        print(f"{ratio:g}x {best['menu']} coded={best['coded']} tuned accuracy {record['accuracy']:.2f}", flush=True)


def table_text(network: str) -> str:
    """All records of a network as markdown, means over seeds."""
    records = [r for r in read(PATH) if r["network"] == network]
    solved = [r for r in records if r["step"] == "solve"]
    header = [
        "ratio", "menu", "coded", "predicted loss", "applied top-1 % (2,000 images)", "recovered top-1 %", "drop",
        "picked",
    ]  # fmt: skip
    rows = []
    for ratio in sorted({r["ratio"] for r in solved}):
        for menu in MENUS:
            for with_coding in (False, True):
                found = [r for r in solved if (r["ratio"], r["menu"], r["coded"]) == (ratio, menu, with_coding)]
                if found:
                    rows.append(_row(found))
    text = markdown(header, rows)
    tuned = [r for r in records if r["step"] == "tune"]
    if tuned:
        header = ["ratio", "menu", "coded", "epochs", "learning rate", "top-1 %", "drop"]
        cells = [
            [f"{r['ratio']:g}x", r["menu"], _yes(r["coded"]), str(r["epochs"]), f"{r['learning_rate']:g}",
             f"{r['accuracy']:.2f}", f"{r['original_accuracy'] - r['accuracy']:+.2f}"]
            for r in sorted(tuned, key=lambda r: (r["ratio"], r["time"]))
        ]  # fmt: skip
        text += "\n" + markdown(header, cells)
    return text


def _row(found: list[dict[str, Any]]) -> list[str]:
    def mean(name: str) -> float:
        return statistics.mean(r[name] for r in found)

    total: Counter[str] = Counter()
    for record in found:
        total.update(record["shares"])
    picked = ", ".join(f"{family} {count / len(found):g}" for family, count in total.most_common())
    first = found[0]
    drop = statistics.mean(r["original_accuracy"] - r["recovered_accuracy"] for r in found)
    return [
        f"{first['ratio']:g}x", first["menu"], _yes(first["coded"]), f"{mean('predicted'):.4f}",
        f"{mean('applied_accuracy'):.2f}", f"{mean('recovered_accuracy'):.2f}", f"{drop:+.2f}", picked,
    ]  # fmt: skip


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10-resnet20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loss", default="kl", choices=("kl", "cross-entropy"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[8.0, 10.0, 12.0, 16.0])
    parser.add_argument("--menus", nargs="+", default=list(MENUS), choices=list(MENUS))
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--solver", default="auto")
    parser.add_argument("--time-limit", type=float, default=10.0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, default=Path("out/tables"))
    parser.add_argument("--progress", action="store_true")
    for step in ("measure", "solve", "tune", "table"):
        parser.add_argument(f"--{step}", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = {"measure": measure_step, "solve": solve_step, "tune": tune_step}
    chosen = [step for name, step in steps.items() if getattr(options, name)]
    if chosen:
        network = channels_last(load(options.network, calibration_examples=options.examples, seed=options.seed))
        for step in chosen:
            step(network, options)
    text = table_text(options.network)
    (RESULTS / f"choices_{options.network}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

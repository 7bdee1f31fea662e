"""What each family of choices is worth: test accuracy at equal stored bytes, with and without entropy coding.

    python -m benchmarks.studies.choices measure            # one table of every choice; minutes
    python -m benchmarks.studies.choices solve              # plans of every menu at every ratio, without fine-tuning
    python -m benchmarks.studies.choices tune               # the best menus of each ratio, three epochs of recovery
    python -m benchmarks.studies.choices table              # the tables, from the records

One table is measured with every choice of every family, plain and coded; a menu is that table narrowed to some
families. A solve is repeated on the menu that its plan uses, whose file header is shorter. The menu that is called
best is the one of the lowest loss on validation images; test images serve only for the figures. Records
are appended to ``benchmarks/results/choices.jsonl``; what is there already is not run again. Those of version 0.3,
measured by ``gauss-newton``, lie in ``choices_0.3.jsonl``.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import Record, markdown, matching, table
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.menu import choices_of, family_names, family_of
from qubo_compress.menu.coding.coded import coded_name
from qubo_compress.menu.operator import parse

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


STUDY = Study(
    __doc__, "choices", report="choices_{network}", field="step", network="cifar10-resnet20", seed=0,
    loss=Option("kl", choices=("kl", "cross-entropy")), ratios=[8.0, 10.0, 12.0, 16.0],
    menus=Option(list(MENUS), choices=MENUS), examples=2000, solver="auto", time_limit=10.0, epochs=3,
    learning_rate=1e-3, threads=torch.get_num_threads(), cache=Path("out/tables"), progress=False,
)  # fmt: skip


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


def measured(
    network: Network, examples: int, seed: int, loss: str, cache: Path = Path("out/tables"), **more: Any
) -> Any:
    """The table of every choice, from the cache where it is complete."""
    return qc.measure(
        network.model, network.calibration, menu=qc.Menu([parse(name) for name in names_of("all", with_coding=True)]),
        loss=loss, cache=cache / f"choices_{network.name}_{examples}_{seed}", seed=seed, max_examples=examples, **more,
    )  # fmt: skip


@lru_cache(maxsize=1)
def prepared(options: Options) -> tuple[Network, qc.SensitivityTable]:
    """The network and its table."""
    network = channels_last(load(options.network, calibration_examples=options.examples, seed=options.seed))
    settings = options.examples, options.seed, options.loss, options.cache
    return network, measured(network, *settings, progress=options.progress)


def plan_of(table: qc.SensitivityTable, ratio: float, options: Options) -> tuple[qc.Plan, qc.Solution]:
    """A plan, solved again on ever fewer choices, which shorten the file's header, while that makes it better."""
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


@STUDY.step(lambda o: grid(network=[o.network], examples=[o.examples], seed=[o.seed]), again=True)
def measure(options: Options, **_: Any) -> Record:
    """Measure the whole table, and say what it took."""
    started, cpu = time.perf_counter(), time.process_time()
    found = prepared(options)[1]
    return {
        "threads": torch.get_num_threads(), "metric": found.provenance.metric, "choices": int(found.linear.size),
        "weight_choices": len(found.choices[0]), "groups": len(found.choices),
        "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu,
        "resumed": found.provenance.resumed,
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }  # fmt: skip


@lru_cache(maxsize=1)
def before(options: Options) -> dict[str, float]:
    """Figures of the network itself."""
    network = prepared(options)[0]
    return scored(network.model, network)


def plans(options: Options) -> Iterator[Record]:
    """Every menu at every ratio, without coding and with it."""
    return grid(
        network=[options.network], seed=[options.seed], loss=[options.loss], ratio=options.ratios, menu=options.menus,
        coded=[False, True],
    )  # fmt: skip


@STUDY.step(plans)
def solve(options: Options, ratio: float, menu: str, coded: bool, **_: Any) -> Record:
    """Plans of every menu at every ratio, applied and recovered without fine-tuning."""
    network, found = prepared(options)
    narrow = found.narrowed(names_of(menu, coded))
    plan, solution = plan_of(narrow, ratio, options)
    small = plan.apply(network.model)
    repaired = qc.recover(small, network.calibration, network.model, progress=False)
    applied = accuracy_and_loss(small, network.test[:QUICK_BATCHES])
    return {
        "bytes": plan.bytes, "limit": int(plan.original_bytes / ratio), "predicted": plan.predicted_loss,
        "bound": solution.bound, "status": solution.status, "shares": shares(narrow, plan),
        "choices": dict(plan.choices), "original_accuracy": before(options)["accuracy"],
        "original_loss": before(options)["test_loss"],
        **{f"recovered_{name}": value for name, value in scored(repaired, network).items()},
        "applied_accuracy": 100 * applied[0], "applied_loss": applied[1], "examples": options.examples,
    }  # fmt: skip


def best_plan(ratio: float, **fields: Any) -> Record:
    """The record of `solve` with the lowest recovered validation loss at a ratio."""
    return min(STUDY.records("solve", ratio=ratio, **fields), key=lambda r: r["recovered_validation_loss"])


def best_plans(options: Options) -> Iterator[Record]:
    """The best menu of each ratio, and how it is tuned."""
    for ratio in options.ratios:
        best = best_plan(ratio, network=options.network, seed=options.seed, loss=options.loss)
        key = {name: best[name] for name in ("network", "seed", "loss", "ratio", "menu", "coded")}
        yield key | {"epochs": options.epochs, "learning_rate": options.learning_rate}


@STUDY.step(best_plans)
def tune(options: Options, epochs: int, learning_rate: float, **key: Any) -> Record:
    """Some epochs of recovery on the training images."""
    (network, found), best = prepared(options), best_plan(**key)
    small = found.narrowed(sorted(set(best["choices"].values()))).plan(best["choices"]).apply(network.model)
    started = time.perf_counter()
    tuned = qc.recover(
        small, network.train, network.model, epochs=epochs, max_examples=len(network.train) * 250,
        learning_rate=learning_rate, progress=options.progress,
    )  # fmt: skip
    return {
        "bytes": best["bytes"], "seconds": time.perf_counter() - started,
        "original_accuracy": best["original_accuracy"], **scored(tuned, network),
    }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """All records of a network, means over seeds."""
    solved = STUDY.records("solve", network=options.network)
    ratios = sorted({r["ratio"] for r in solved})
    cells = grid(ratio=ratios, menu=MENUS, coded=[False, True])
    rows = [_row(found) for found in (matching(solved, **cell) for cell in cells) if found]
    header = ["ratio", "menu", "coded", "predicted loss", "applied top-1 % (2,000 images)", "recovered top-1 %"]
    text = markdown([*header, "drop", "picked"], rows)
    tuned = sorted(STUDY.records("tune", network=options.network), key=lambda r: (r["ratio"], r["time"]))
    columns = {
        "ratio": "{ratio:g}x", "menu": "{menu}", "coded": lambda r: _yes(r["coded"]), "epochs": "{epochs}",
        "learning rate": "{learning_rate:g}", "top-1 %": "{accuracy:.2f}",
        "drop": lambda r: f"{r['original_accuracy'] - r['accuracy']:+.2f}",
    }  # fmt: skip
    return text + ("\n" + table(tuned, columns) if tuned else "")


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


if __name__ == "__main__":
    STUDY.main()

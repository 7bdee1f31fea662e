"""The long tail: what compression forgets, and what helps against it.

    python -m benchmarks.studies.long_tail recovery --ratios 8 12  # objectives of recovery at equal plan and epochs
    python -m benchmarks.studies.long_tail recovery --menu best   # from the best plans of benchmarks.studies.choices
    python -m benchmarks.studies.long_tail tail                   # tail-weighted choice, exemplars, churn, flips
    python -m benchmarks.studies.long_tail flips                  # plans under a budget of flips
    python -m benchmarks.studies.long_tail memorization           # subset trainings of digits, and mismatches
    python -m benchmarks.studies.long_tail table                  # the tables, from the records

Records are appended to ``benchmarks/results/long_tail.jsonl``; what is there already is not run again. Test images are
used only for the figures.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks import BATCH_SIZE, Batches, Network, channels_last, load
from benchmarks.networks.architectures import digits_of_width
from benchmarks.networks.datasets import digits
from benchmarks.networks.loading import channels_last_batches
from benchmarks.networks.train import DIGITS_RECIPE, Recipe, train
from benchmarks.records import Record, markdown, matching, means, table
from benchmarks.studies import choices
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.audits import memorization as memorization_scores
from qubo_compress.audits import population, spearman
from qubo_compress.audits.churn import churn_of
from qubo_compress.audits.exemplars import exemplars_of
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound
from qubo_compress.recovery import LabelPreserving, RecoveryObjective

OBJECTIVES: dict[str, str | RecoveryObjective] = {
    "plain": "plain",
    "distillation": "distillation",
    "label-preserving": "label-preserving",
    "logits, answers": LabelPreserving(labels=0.0, outputs=1.0, answers=0.5),
    "divergence": LabelPreserving(labels=0.0, outputs=1.0, answers=0.0, distance="kl"),
    "logits, emphasis": LabelPreserving(labels=0.0, outputs=1.0, answers=0.0, emphasis=4.0),
    "all three, adaptive": LabelPreserving(labels=0.5, outputs=1.0, answers=0.5, adaptive=True),
}


STUDY = Study(
    __doc__, "long_tail", field="step", network="cifar10-resnet20",
    menu=Option("plain", "whose plans recovery starts from", ("plain", "best")), ratios=[12.0],
    objectives=Option(list(OBJECTIVES)[:3], choices=OBJECTIVES), epochs=3, seeds=[0, 1, 2, 3],
    examples=Option(1000, "calibration examples of each table"),
    test=Option(10_000, "test images that tail and flips look at"), bits=[2, 3, 4, 6, 8], sparsity=[0.0, 0.5],
    emphasis=Option(["1,1,0.5"], "margin,weak,rare; several may be given"),
    networks=Option(60, "subset trainings"), width=Option(4, "of the digits network that is trained on subsets"),
    training_epochs=Option(12, "of each subset training"), cache=Path("out/long_tail"), threads=1,
)  # fmt: skip


def plan_at(network: Network, ratio: float, seed: int, options: Options, weights: Any = None) -> qc.Plan:
    """The best plan of one table."""
    table = table_of(network, seed, options, weights)
    return table.plan(qc.solve(table.problem(qc.Budget(ratio=ratio)), time_limit=5.0))


def best_plan(network: Network, ratio: float) -> qc.Plan:
    """The plan of the lowest validation loss that ``benchmarks.studies.choices measure solve`` found."""
    best = choices.best_plan(ratio, network=network.name, seed=0)
    drawn = channels_last(load(network.name, calibration_examples=best["examples"], seed=0))
    found = choices.measured(drawn, best["examples"], 0, best["loss"], Path("out/tables"), progress=False)
    return found.narrowed(sorted(set(best["choices"].values()))).plan(best["choices"])


def table_of(network: Network, seed: int, options: Options, weights: Any = None) -> qc.SensitivityTable:
    """A table of one calibration draw, from the cache where it is complete."""
    menu = qc.Menu(bits=tuple(options.bits), sparsity=tuple(options.sparsity))
    name = f"{network.name}_{options.examples}_{seed}_{len(menu.names)}_{'plain' if weights is None else weights}"
    return qc.measure(
        network.model, network.calibration, menu=menu, max_examples=options.examples, seed=seed,
        cache=options.cache / name.replace(" ", ""), progress=False, example_weights=weights,
    )  # fmt: skip


def figures(model: nn.Module, small: nn.Module, batches: Batches) -> dict[str, Any]:
    """What the audit says, shortened."""
    report = qc.audit(model, small, batches)
    worst = report.worst_class
    assert worst is not None and report.accuracy_after is not None and report.kinds.harmful is not None
    return {
        "accuracy": 100 * report.accuracy_after, "mismatches": report.mismatches, "harmful": report.harmful,
        "repaired": report.repaired, "both_wrong": report.kinds.both_wrong, "loss": report.loss_after,
        "divergence": report.divergence, "worst_class": worst.label, "worst_recall": 100 * worst.after,
        "recalls": [100 * item.after for item in report.classes],
        "margins": [item.share for item in report.margins],
        "changed_classes": [item.label for item in report.classes if item.changed],
    }  # fmt: skip


@lru_cache(maxsize=1)
def network_of(name: str) -> Network:
    """The network with its usual calibration images."""
    return channels_last(load(name))


@lru_cache(maxsize=1)
def start_of(options: Options, menu: str, ratio: float) -> tuple[qc.Plan, nn.Module]:
    """The plan at a ratio, and its network with repaired statistics."""
    network = network_of(options.network)
    plan = plan_at(network, ratio, 0, options) if menu == "plain" else best_plan(network, ratio)
    return plan, qc.recover(plan.apply(network.model), network.calibration, network.model, progress=False)


def recoveries(options: Options) -> Iterator[Record]:
    """No fine-tuning and every objective, from every plan."""
    for ratio in options.ratios:
        for name in ("none", *options.objectives):
            yield {"network": options.network, "menu": options.menu, "ratio": ratio, "objective": name,
                   "epochs": 0 if name == "none" else options.epochs}  # fmt: skip


@STUDY.step(recoveries)
def recovery(options: Options, network: str, menu: str, ratio: float, objective: str, epochs: int) -> Record:
    """Every objective from the same plan: same bytes, same images, same epochs, same order."""
    given = network_of(network)
    plan, tuned = start_of(options, menu, ratio)
    began = time.perf_counter()
    if epochs:
        # All images of the training side; nothing here is chosen by the validation images.
        images = [*channels_last_batches(given.train), *given.validation]
        tuned = qc.recover(
            tuned, images, given.model, epochs=epochs, objective=OBJECTIVES[objective], max_examples=1 << 40,
            progress=False,
        )  # fmt: skip
    return {
        "bytes": plan.bytes, "settings": str(OBJECTIVES.get(objective)), **figures(given.model, tuned, given.test),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


EVEN = "None"
"""Settings of a choice in which all examples weigh the same."""


def emphases(options: Options) -> dict[str, qc.TailWeights | None]:
    """What is recorded as the settings -> the settings."""
    given = [qc.TailWeights(*map(float, text.split(","))) for text in options.emphasis]
    return {str(weights): weights for weights in (None, *given)}


@lru_cache(maxsize=1)
def tested(options: Options) -> tuple[Batches, Tensor, Tensor]:
    """Test images that tail and population look at, with the network's own answers (1, M) and the labels (M,)."""
    network = network_of(options.network)
    test = network.test[: max(1, options.test // BATCH_SIZE)]
    originals, labels = population([network.model], test)
    assert labels is not None
    return test, originals, labels


@lru_cache(maxsize=1)
def tail_plan(options: Options, ratio: float, seed: int, settings: str) -> tuple[Network, qc.SensitivityTable, qc.Plan]:
    """The network with the calibration images of a seed, its table and plan."""
    drawn = channels_last(load(options.network, seed=seed, calibration_examples=options.examples))
    asked = emphases(options)[settings]
    found = table_of(drawn, seed, options, asked)
    return drawn, found, found.plan(qc.solve(found.problem(qc.Budget(ratio=ratio)), time_limit=5.0))


@cache
def answers(options: Options, ratio: float, seed: int, settings: str) -> Tensor:
    """(M,) answers of a plan, repaired, on the test images."""
    drawn, _, plan = tail_plan(options, ratio, seed, settings)
    asked = emphases(options)[settings]
    given = drawn.calibration if asked is None else _with_weights(drawn.model, drawn.calibration, asked)
    repaired = qc.recover(plan.apply(drawn.model), given, drawn.model, progress=False)
    return population([repaired], tested(options)[0])[0][0]


def tails(options: Options) -> Iterator[Record]:
    """Every seed with and without emphasis."""
    return grid(
        network=[options.network], ratio=options.ratios, seed=options.seeds, calibration=[options.examples],
        test=[len(tested(options)[2])], settings=emphases(options),
    )  # fmt: skip


@STUDY.step(tails)
def tail(options: Options, ratio: float, seed: int, settings: str, **_: Any) -> Record:
    """Plans of several calibration seeds, weighted and not: worst class, and additivity of flips."""
    _, originals, labels = tested(options)
    drawn, found, plan = tail_plan(options, ratio, seed, settings)
    predicted, even = answers(options, ratio, seed, settings), settings == EVEN
    flips = additivity(found, plan, drawn.model, plan.apply(drawn.model), drawn.calibration) if even else None
    return {
        "weights": "even" if even else "tail", "bytes": plan.bytes, **counted(originals[0], predicted, labels),
        "flips": flips,
    }  # fmt: skip


def counted(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy, mismatches and recalls from predictions."""
    right, right_after, differ = before == labels, after == labels, before != after
    classes = labels.unique()
    recalls = [100 * float(right_after[labels == c].double().mean()) for c in classes]
    return {
        "original_accuracy": 100 * float(right.double().mean()),
        "accuracy": 100 * float(right_after.double().mean()), "mismatches": int(differ.sum()),
        "harmful": int((differ & right).sum()), "repaired": int((differ & right_after).sum()),
        "worst_class": int(classes[int(np.argmin(recalls))]), "worst_recall": min(recalls), "recalls": recalls,
    }  # fmt: skip


def _with_weights(model: nn.Module, batches: Batches, settings: qc.TailWeights) -> list[tuple[Any, ...]]:
    weights = qc.tail_weights(model, batches, settings)
    sizes = [len(y) for _, y in batches]
    return [(x, y, w) for (x, y), w in zip(batches, torch.split(weights, sizes), strict=True)]


@STUDY.step(lambda o: grid(network=[o.network], ratio=o.ratios), again=True, name="population")
def population_of_plans(options: Options, ratio: float, **_: str) -> Record | None:
    """Exemplars and churn of the even plans of several seeds."""
    if len(options.seeds) < 2:
        return None
    _, originals, labels = tested(options)
    compressed = torch.stack([answers(options, ratio, seed, EVEN) for seed in options.seeds])
    exemplars = exemplars_of(originals, compressed, labels)
    return {
        "test": len(labels), **exemplars.to_dict(), "churn": churn_of(compressed, labels).to_dict(),
        "mean_mismatch": float(exemplars.mismatch_counts.double().mean()) / len(compressed),
        "always": int((exemplars.mismatch_counts == exemplars.compressed).sum()),
        "ever": int((exemplars.mismatch_counts > 0).sum()),
    }  # fmt: skip


def additivity(
    table: qc.SensitivityTable, plan: qc.Plan, model: nn.Module, small: nn.Module, calibration: Batches,
    test: Batches | None = None,
) -> dict[str, float]:  # fmt: skip
    """Harmful flips of the plan: the sum over its choices, and what it really flips, as shares of the examples."""
    costs, fixed = table.costs["harmful_flips"], table.fixed_costs.get("harmful_flips", 0)
    chosen = table.offsets[:-1] + table.assignment(plan.choices)
    found = {
        "sum": (fixed + int(costs[chosen].sum())) / 1e6,
        "root_of_squares": float(np.sqrt(((costs[chosen] / 1e6) ** 2).sum())),
    }
    for name, batches in (("measured", calibration), ("test", test)):
        if batches is not None:
            predicted, labels = population([model, small], batches)
            found[name] = float(((predicted[0] == labels) & (predicted[1] != labels)).double().mean())
    return found


FLIP_SHARES = (1.0, 0.9, 0.8)
"""Budgets of harmful flips, as shares of the flips that the plan of the bytes alone adds up to."""


@STUDY.step(lambda o: grid(network=[o.network], ratio=o.ratios, seed=o.seeds), again=True)
def flips(options: Options, ratio: float, seed: int, **_: str) -> Iterator[Record]:
    """Plans under ever tighter budgets of harmful flips: added up, real on the calibration images, real on the test."""
    network = channels_last(load(options.network, seed=seed, calibration_examples=options.examples))
    found, test = table_of(network, seed, options), network.test[: max(1, options.test // BATCH_SIZE)]
    free: dict[str, float] | None = None
    for share in FLIP_SHARES:
        limit = None if free is None else share * free["sum"]
        try:
            solution = qc.solve(found.problem(qc.Budget(ratio=ratio, harmful_flips=limit)), time_limit=5.0)
        except (InfeasibleBudget, NoFeasibleFound) as cause:
            print(f"{ratio:g}x seed {seed} share {share}: {type(cause).__name__}", flush=True)
            continue
        plan = found.plan(solution)
        added = additivity(found, plan, network.model, plan.apply(network.model), network.calibration, test)
        free = free or added
        yield {"share": share, "predicted": plan.predicted_loss, **added}


@lru_cache(maxsize=1)
def memorized(options: Options) -> tuple[Any, Any, nn.Module, float]:
    """The digits, their memorization scores, a network trained on all of them, and the seconds of the scores."""
    data = digits().train
    recipe = Recipe(**{**vars(DIGITS_RECIPE), "epochs": options.training_epochs})

    def trained(chosen: Any, seed: int) -> nn.Module:
        return train(lambda: digits_of_width(options.width), data.select(torch.from_numpy(chosen)), recipe, seed)

    began = time.perf_counter()
    found = memorization_scores(trained, data.inputs, data.targets, networks=options.networks, progress=False)
    seconds = time.perf_counter() - began
    return data, found, trained(np.arange(len(data)), 0), seconds


@STUDY.step(lambda o: grid(network=[f"digits, width {o.width}"], ratio=o.ratios, networks=[o.networks]), again=True)
def memorization(options: Options, ratio: float, **_: Any) -> Record:
    """Memorization scores of the digits, and how often compressed networks change their answer to each of them."""
    data, found, whole, seconds = memorized(options)
    batches, counts = data.batches(250), torch.zeros(len(data))
    for seed in options.seeds:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: options.examples]
        measured = qc.measure(whole, data.select(order).batches(250), progress=False, seed=seed)
        plan = measured.plan(qc.solve(measured.problem(qc.Budget(ratio=ratio)), time_limit=2.0, seed=seed))
        predicted, _ = population([whole, plan.apply(whole)], batches)
        counts += (predicted[0] != predicted[1]).float()
    link = spearman(found.scores, counts.numpy())
    loss = nn.functional.cross_entropy(torch.cat([whole(x) for x, _ in batches]), data.targets, reduction="none")
    by_loss = spearman(loss.detach().numpy(), counts.numpy())
    mismatched, high = counts.numpy() > 0, found.scores >= 0.25
    return {
        "examples": len(data), "seeds": len(options.seeds), "seconds": seconds,
        "spearman": link.value, "interval": list(link.interval), "p_value": link.p_value,
        "spearman_of_loss": by_loss.value, "mismatched": int(mismatched.sum()), "above_0.25": int(high.sum()),
        "mismatched_if_above": float(mismatched[high].mean()) if high.any() else None,
        "mismatched_if_below": float(mismatched[~high].mean()), "mean_score": float(np.nanmean(found.scores)),
        "mean_error": float(np.nanmean(found.errors)),
    }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """The tables of all steps that have records."""
    parts = (_recovery_table, _tail_table, _flips_table, _population_table, _memorization_table)
    return "\n".join(part for part in (make() for make in parts) if part)


def _recovery_table() -> str:
    records = STUDY.records("recovery")

    def fewer(r: Record) -> str:
        plain = matching(
            records, objective="plain", **{name: r[name] for name in ("network", "menu", "ratio", "epochs")}
        )
        return f"{plain[0]['mismatches'] / r['mismatches']:.2f}" if plain else ""

    columns = {
        "ratio": "{ratio:g}", "menu": "{menu}", "bytes": "{bytes:,}", "objective": "{objective}", "epochs": "{epochs}",
        "accuracy": "{accuracy:.2f}", "mismatches": "{mismatches:,}", "harmful": "{harmful:,}",
        "repaired": "{repaired:,}", "times fewer than plain": fewer, "worst class": "{worst_recall:.1f}",
    }  # fmt: skip
    records.sort(key=lambda r: (r["network"], r["menu"], r["ratio"], r["epochs"]))
    return table(records, columns) if records else ""


def _tail_table() -> str:
    chosen, rows = STUDY.records("tail"), []
    for key in sorted({tuple(r[name] for name in _TAIL) for r in chosen}):
        ratio, count, test, settings = key
        same = matching(chosen, **dict(zip(_TAIL, key, strict=True)))
        row = [f"{ratio:g}", f"{count:,}", f"{test:,}", _short(settings), str(len(same))]
        for figure in ("accuracy", "worst_recall", "mismatches", "harmful"):
            values = [float(r[figure]) for r in same]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            row.append(f"{statistics.fmean(values):.2f}{spread}")
        found = [r["flips"] for r in same if r["flips"]]
        for figure in ("sum", "root_of_squares", "measured"):
            row.append(f"{100 * statistics.fmean(f[figure] for f in found):.2f} %" if found else "")
        rows.append(row)
    head = ["ratio", "calibration", "test", "margin, weak, rare", "seeds", "accuracy", "worst class", "mismatches"]
    more = ["harmful", "flips of the plan without repair: sum", "root of squares", "measured"]
    return markdown([*head, *more], rows) if rows else ""


_TAIL = ("ratio", "calibration", "test", "settings")


def _short(settings: str) -> str:
    """What stands between the brackets of ``TailWeights(...)``: its numbers but the largest weight."""
    return ", ".join(re.findall(r"=([0-9.]+)", settings)[:3]) or "even"


def _per_cent(name: str, digits: int = 2) -> Callable[[Record], str]:
    return lambda r: f"{100 * (r[name] or 0):.{digits}f} %"


def _flips_table() -> str:
    found = sorted(means(STUDY.records("flips"), "ratio", "share"), key=lambda r: (r["ratio"], -r["share"]))
    columns = {
        "ratio": "{ratio:g}", "flips allowed, share of the free plan's": "{share:g}", "plans found": "{count}",
        "predicted loss": "{predicted:.4f}", "flips added up": _per_cent("sum"),
        "real, calibration": _per_cent("measured"), "real, test": _per_cent("test"),
    }  # fmt: skip
    return table(found, columns) if found else ""


def _population_table() -> str:
    moved = lambda r: [c for c in r["classes"] if c["corrected_p_value"] < 0.05]  # noqa: E731
    columns = {
        "ratio": "{ratio:g}", "plans": "{compressed}", "mismatch with the original": _per_cent("mean_mismatch"),
        "mismatch between seeds": lambda r: f"{100 * r['churn']['mean']:.2f} %",
        "exemplars": lambda r: f"{len(r['exemplars']):,}", "changed by all": "{always:,}",
        "changed by any": "{ever:,}", "accuracy on exemplars before": _per_cent("accuracy_before_on_exemplars", 1),
        "after": _per_cent("accuracy_after_on_exemplars", 1),
        "classes moved beside the mean (points)": lambda r: ", ".join(
            f"{c['label']} ({100 * c['shift']:+.1f})" for c in moved(r)
        ),
    }  # fmt: skip
    found = STUDY.records("population")
    return table(found, columns) if found else ""


def _memorization_table() -> str:
    columns = {
        "network": "{network}", "ratio": "{ratio:g}", "subset trainings": "{networks}", "plans": "{seeds}",
        "Spearman (95 %)": "{spearman:.3f} ({interval[0]:.3f} to {interval[1]:.3f})",
        "of the loss": "{spearman_of_loss:.3f}", "mismatched": "{mismatched:,} of {examples:,}",
        "memorized (≥ 0.25)": lambda r: f"{r['above_0.25']:,}",
        "of these mismatched": lambda r: (
            "" if r["mismatched_if_above"] is None else f"{100 * r['mismatched_if_above']:.1f} %"
        ),
        "of the others": _per_cent("mismatched_if_below", 1),
    }  # fmt: skip
    found = STUDY.records("memorization")
    return table(found, columns) if found else ""


if __name__ == "__main__":
    STUDY.main()

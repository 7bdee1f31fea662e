"""The long tail: what compression forgets, and what helps against it.

    python -m benchmarks.studies.long_tail recovery --ratios 8 12  # objectives of recovery at equal plan and epochs
    python -m benchmarks.studies.long_tail recovery --menu best   # from the best plans of benchmarks.studies.choices
    python -m benchmarks.studies.long_tail tail                   # tail-weighted choice, exemplars, churn, flips
    python -m benchmarks.studies.long_tail flips                  # plans under a budget of flips
    python -m benchmarks.studies.long_tail memorization           # subset trainings of digits, and mismatches
    python -m benchmarks.studies.long_tail table                  # the tables, from the records

Records are appended to ``benchmarks/results/long_tail.jsonl``; what is there already is not run again. Test images are
looked at for the figures alone.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Iterable
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
from benchmarks.records import RESULTS, append, environment, markdown, read
from benchmarks.studies import choices
from qubo_compress.audits import memorization, population, spearman
from qubo_compress.audits.churn import churn_of
from qubo_compress.audits.exemplars import exemplars_of
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound
from qubo_compress.recovery import LabelPreserving, RecoveryObjective

PATH = RESULTS / "long_tail.jsonl"

OBJECTIVES: dict[str, str | RecoveryObjective] = {
    "plain": "plain",
    "distillation": "distillation",
    "label-preserving": "label-preserving",
    "logits, answers": LabelPreserving(labels=0.0, outputs=1.0, answers=0.5),
    "divergence": LabelPreserving(labels=0.0, outputs=1.0, answers=0.0, distance="kl"),
    "logits, emphasis": LabelPreserving(labels=0.0, outputs=1.0, answers=0.0, emphasis=4.0),
    "all three, adaptive": LabelPreserving(labels=0.5, outputs=1.0, answers=0.5, adaptive=True),
}


def main(arguments: list[str] | None = None) -> None:
    """Run one step, or print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.long_tail", description=__doc__)
    parser.add_argument("step", choices=("recovery", "tail", "flips", "memorization", "table"))
    parser.add_argument("--network", default="cifar10-resnet20")
    parser.add_argument("--menu", default="plain", choices=("plain", "best"), help="whose plans recovery starts from")
    parser.add_argument("--ratios", type=float, nargs="+", default=[12.0])
    parser.add_argument("--objectives", nargs="+", choices=tuple(OBJECTIVES), default=list(OBJECTIVES)[:3])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--examples", type=int, default=1000, help="calibration examples of each table")
    parser.add_argument("--test", type=int, default=10_000, help="test images that tail and flips look at")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 6, 8])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument(
        "--emphasis", type=float, nargs=3, action="append", help="margin, weak, rare; may be given several times"
    )
    parser.add_argument("--networks", type=int, default=60, help="subset trainings")
    parser.add_argument("--width", type=int, default=4, help="of the digits network that is trained on subsets")
    parser.add_argument("--training-epochs", type=int, default=12, help="of each subset training")
    parser.add_argument("--cache", type=Path, default=Path("out/long_tail"))
    options = parser.parse_args(arguments)
    steps = {
        "recovery": recovery_step, "tail": tail_step, "flips": flips_step, "memorization": memorization_step,
        "table": table_step,
    }  # fmt: skip
    steps[options.step](options)


def plan_at(network: Network, ratio: float, seed: int, options: argparse.Namespace, weights: Any = None) -> qc.Plan:
    """The best plan of one table."""
    table = table_of(network, seed, options, weights)
    return table.plan(qc.solve(table.problem(qc.Budget(ratio=ratio)), time_limit=5.0))


def best_plan(network: Network, ratio: float) -> qc.Plan:
    """The plan of the lowest validation loss that ``benchmarks.studies.choices --measure --solve`` found."""
    solved = [r for r in read(choices.PATH) if r["step"] == "solve" and r["network"] == network.name and r["seed"] == 0]
    best = choices.best_of(solved, ratio)
    settings = argparse.Namespace(
        cache=Path("out/tables"), network=network.name, examples=best["examples"], seed=0, loss=best["loss"],
        progress=False,
    )  # fmt: skip
    drawn = channels_last(load(network.name, calibration_examples=best["examples"], seed=0))
    chosen = best["choices"]
    return choices.measured(drawn, settings).narrowed(sorted(set(chosen.values()))).plan(chosen)


def table_of(network: Network, seed: int, options: argparse.Namespace, weights: Any = None) -> qc.SensitivityTable:
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


def recovery_step(options: argparse.Namespace) -> None:
    """Every objective from the same plan: same bytes, same images, same epochs, same order."""
    network = channels_last(load(options.network))
    # All images of the training side; nothing here is chosen by the validation images.
    images = [*channels_last_batches(network.train), *network.validation]
    done = {_key(record) for record in read(PATH) if record["step"] == "recovery"}
    for ratio in options.ratios:
        plan = plan_at(network, ratio, 0, options) if options.menu == "plain" else best_plan(network, ratio)
        start = qc.recover(plan.apply(network.model), network.calibration, network.model, progress=False)
        for name in ("none", *options.objectives):
            key = (network.name, options.menu, ratio, name, 0 if name == "none" else options.epochs)
            if key in done:
                continue
            began = time.perf_counter()
            tuned = start if name == "none" else qc.recover(
                start, images, network.model, epochs=options.epochs, objective=OBJECTIVES[name],
                max_examples=1 << 40, progress=False,
            )  # fmt: skip
            record = {
                "step": "recovery", **dict(zip(_KEYS, key, strict=True)), "bytes": plan.bytes,
                "settings": str(OBJECTIVES.get(name)), **figures(network.model, tuned, network.test),
                "seconds": time.perf_counter() - began, **environment(),
            }  # fmt: skip
            append(PATH, record)
            print(
                f"{ratio:g}x {name:20} accuracy {record['accuracy']:.2f} mismatches {record['mismatches']} "
                f"harmful {record['harmful']}, {record['seconds']:.0f} s", flush=True,
            )  # fmt: skip


_KEYS = ("network", "menu", "ratio", "objective", "epochs")


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in _KEYS)


def tail_step(options: argparse.Namespace) -> None:
    """Plans of several calibration seeds, weighted and not: worst class, exemplars, churn, additivity of flips."""
    emphasised = [qc.TailWeights(*given) for given in options.emphasis or [[1.0, 1.0, 0.5]]]
    network = channels_last(load(options.network))
    done = {_tail_key(record) for record in read(PATH) if record["step"] == "tail"}
    test = network.test[: max(1, options.test // BATCH_SIZE)]
    originals, labels = population([network.model], test)
    assert labels is not None
    for ratio in options.ratios:
        even: list[Tensor] = []
        for seed in options.seeds:
            drawn = channels_last(load(options.network, seed=seed, calibration_examples=options.examples))
            for asked in (None, *emphasised):
                key = (network.name, ratio, seed, options.examples, len(labels), str(asked))
                if key in done and asked is not None:
                    continue
                table = table_of(drawn, seed, options, asked)
                plan = table.plan(qc.solve(table.problem(qc.Budget(ratio=ratio)), time_limit=5.0))
                small = plan.apply(drawn.model)
                given = drawn.calibration if asked is None else _with_weights(drawn.model, drawn.calibration, asked)
                repaired = qc.recover(small, given, drawn.model, progress=False)
                predicted, _ = population([repaired], test)
                if asked is None:
                    even.append(predicted[0])
                if key in done:
                    continue
                flips = additivity(table, plan, drawn.model, small, drawn.calibration) if asked is None else None
                record = {
                    "step": "tail", "network": network.name, "ratio": ratio, "seed": seed,
                    "weights": "even" if asked is None else "tail",
                    "settings": str(asked), "bytes": plan.bytes, "test": len(labels), "calibration": options.examples,
                    **counted(originals[0], predicted[0], labels), "flips": flips, **environment(),
                }  # fmt: skip
                append(PATH, record)
                shown = ("seed", "weights", "accuracy", "worst_recall", "harmful", "flips")
                print({key: record[key] for key in shown}, flush=True)
        if len(even) > 1:
            population_record(network, ratio, originals, torch.stack(even), labels)


def _tail_key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("network", "ratio", "seed", "calibration", "test", "settings"))


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


def population_record(network: Network, ratio: float, originals: Tensor, compressed: Tensor, labels: Tensor) -> None:
    """Exemplars and churn of the plans of several seeds, from (K, M) predictions."""
    exemplars, apart = exemplars_of(originals, compressed, labels), churn_of(compressed, labels)
    record = {
        "step": "population", "network": network.name, "ratio": ratio, "test": len(labels), **exemplars.to_dict(),
        "churn": apart.to_dict(), "mean_mismatch": float(exemplars.mismatch_counts.double().mean()) / len(compressed),
        "always": int((exemplars.mismatch_counts == exemplars.compressed).sum()),
        "ever": int((exemplars.mismatch_counts > 0).sum()), **environment(),
    }  # fmt: skip
    append(PATH, record)
    shown = ("ratio", "share", "mean_mismatch", "always", "ever", "classes")
    print({name: record[name] for name in shown}, len(exemplars.rows), apart.mean, flush=True)


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


def flips_step(options: argparse.Namespace) -> None:
    """Plans under ever tighter budgets of harmful flips: added up, real on the calibration images, real on the test."""
    for ratio in options.ratios:
        for seed in options.seeds:
            network = channels_last(load(options.network, seed=seed, calibration_examples=options.examples))
            table, test = table_of(network, seed, options), network.test[: max(1, options.test // BATCH_SIZE)]
            free: dict[str, float] | None = None
            for share in FLIP_SHARES:
                limit = None if free is None else share * free["sum"]
                budget = qc.Budget(ratio=ratio, harmful_flips=limit)
                try:
                    solution = qc.solve(table.problem(budget), time_limit=5.0)
                except (InfeasibleBudget, NoFeasibleFound) as cause:
                    print(f"{ratio:g}x seed {seed} share {share}: {type(cause).__name__}", flush=True)
                    continue
                plan = table.plan(solution)
                found = additivity(table, plan, network.model, plan.apply(network.model), network.calibration, test)
                free = free or found
                record = {
                    "step": "flips", "network": network.name, "ratio": ratio, "seed": seed, "share": share,
                    "predicted": plan.predicted_loss, **found, **environment(),
                }  # fmt: skip
                append(PATH, record)
                print({name: record[name] for name in ("ratio", "seed", "share", "predicted", *found)}, flush=True)


def memorization_step(options: argparse.Namespace) -> None:
    """Memorization scores of the digits, and how often compressed networks change their answer to each of them."""
    data = digits().train
    recipe = Recipe(**{**vars(DIGITS_RECIPE), "epochs": options.training_epochs})

    def trained(chosen: Any, seed: int) -> nn.Module:
        return train(lambda: digits_of_width(options.width), data.select(torch.from_numpy(chosen)), recipe, seed)

    began = time.perf_counter()
    found = memorization(trained, data.inputs, data.targets, networks=options.networks, progress=False)
    seconds = time.perf_counter() - began
    whole = trained(np.arange(len(data)), 0)
    batches = data.batches(250)
    for ratio in options.ratios:
        counts = torch.zeros(len(data))
        for seed in options.seeds:
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: options.examples]
            table = qc.measure(whole, data.select(order).batches(250), progress=False, seed=seed)
            plan = table.plan(qc.solve(table.problem(qc.Budget(ratio=ratio)), time_limit=2.0, seed=seed))
            predicted, _ = population([whole, plan.apply(whole)], batches)
            counts += (predicted[0] != predicted[1]).float()
        link = spearman(found.scores, counts.numpy())
        loss = nn.functional.cross_entropy(torch.cat([whole(x) for x, _ in batches]), data.targets, reduction="none")
        by_loss = spearman(loss.detach().numpy(), counts.numpy())
        mismatched, high = counts.numpy() > 0, found.scores >= 0.25
        record = {
            "step": "memorization", "network": f"digits, width {options.width}", "ratio": ratio,
            "networks": options.networks, "examples": len(data), "seeds": len(options.seeds), "seconds": seconds,
            "spearman": link.value, "interval": list(link.interval), "p_value": link.p_value,
            "spearman_of_loss": by_loss.value, "mismatched": int(mismatched.sum()), "above_0.25": int(high.sum()),
            "mismatched_if_above": float(mismatched[high].mean()) if high.any() else None,
            "mismatched_if_below": float(mismatched[~high].mean()), "mean_score": float(np.nanmean(found.scores)),
            "mean_error": float(np.nanmean(found.errors)), **environment(),
        }  # fmt: skip
        append(PATH, record)
        print({k: record[k] for k in list(record)[2:18]}, flush=True)


def table_step(options: argparse.Namespace) -> None:
    """All tables, in markdown, to the terminal and to a file beside the records."""
    records = list(read(PATH))
    tables = (_recovery_table, _tail_table, _flips_table, _population_table, _memorization_table)
    parts = [table(records) for table in tables]
    text = "\n".join(part for part in parts if part)
    (RESULTS / "long_tail.md").write_text(text)
    print(text)


def _recovery_table(records: Iterable[dict[str, Any]]) -> str:
    chosen = [r for r in records if r["step"] == "recovery"]
    rows = []
    for r in sorted(chosen, key=lambda r: (r["network"], r["menu"], r["ratio"], r["epochs"])):
        same = [o for o in chosen if _key(o) == (r["network"], r["menu"], r["ratio"], "plain", r["epochs"])]
        share = f"{same[0]['mismatches'] / r['mismatches']:.2f}" if same else ""
        rows.append([
            f"{r['ratio']:g}", r["menu"], f"{r['bytes']:,}", r["objective"], str(r["epochs"]), f"{r['accuracy']:.2f}",
            f"{r['mismatches']:,}", f"{r['harmful']:,}", f"{r['repaired']:,}", share, f"{r['worst_recall']:.1f}",
        ])  # fmt: skip
    head = ["ratio", "menu", "bytes", "objective", "epochs", "accuracy", "mismatches", "harmful", "repaired"]
    return markdown([*head, "times fewer than plain", "worst class"], rows) if rows else ""


def _tail_table(records: Iterable[dict[str, Any]]) -> str:
    chosen = [r for r in records if r["step"] == "tail"]
    rows = []
    for ratio, count, test, settings in sorted({_tail_setting(r) for r in chosen}):
        same = [r for r in chosen if _tail_setting(r) == (ratio, count, test, settings)]
        row = [f"{ratio:g}", f"{count:,}", f"{test:,}", _short(settings), str(len(same))]
        for figure in ("accuracy", "worst_recall", "mismatches", "harmful"):
            values = [float(r[figure]) for r in same]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            row.append(f"{statistics.fmean(values):.2f}{spread}")
        flips = [r["flips"] for r in same if r["flips"]]
        for figure in ("sum", "root_of_squares", "measured"):
            row.append(f"{100 * statistics.fmean(f[figure] for f in flips):.2f} %" if flips else "")
        rows.append(row)
    head = ["ratio", "calibration", "test", "margin, weak, rare", "seeds", "accuracy", "worst class", "mismatches"]
    more = ["harmful", "flips of the plan without repair: sum", "root of squares", "measured"]
    return markdown([*head, *more], rows) if rows else ""


def _tail_setting(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("ratio", "calibration", "test", "settings"))


def _short(settings: str) -> str:
    """What stands between the brackets of ``TailWeights(...)``: its numbers but the largest weight."""
    return ", ".join(re.findall(r"=([0-9.]+)", settings)[:3]) or "even"


def _flips_table(records: Iterable[dict[str, Any]]) -> str:
    chosen = [r for r in records if r["step"] == "flips"]
    rows = []
    for ratio, share in sorted({(r["ratio"], r["share"]) for r in chosen}, key=lambda pair: (pair[0], -pair[1])):
        same = [r for r in chosen if (r["ratio"], r["share"]) == (ratio, share)]
        mean = {name: statistics.fmean(r[name] for r in same) for name in ("predicted", "sum", "measured", "test")}
        shown = [f"{100 * mean[name]:.2f} %" for name in ("sum", "measured", "test")]
        rows.append([f"{ratio:g}", f"{share:g}", str(len(same)), f"{mean['predicted']:.4f}", *shown])
    head = ["ratio", "flips allowed, share of the free plan's", "plans found", "predicted loss", "flips added up"]
    return markdown([*head, "real, calibration", "real, test"], rows) if rows else ""


def _population_table(records: Iterable[dict[str, Any]]) -> str:
    rows = [
        [
            f"{r['ratio']:g}", str(r["compressed"]), f"{100 * r['mean_mismatch']:.2f} %",
            f"{100 * r['churn']['mean']:.2f} %", f"{len(r['exemplars']):,}", f"{r['always']:,}", f"{r['ever']:,}",
            f"{100 * (r['accuracy_before_on_exemplars'] or 0):.1f} %",
            f"{100 * (r['accuracy_after_on_exemplars'] or 0):.1f} %",
            ", ".join(f"{c['label']} ({100 * c['shift']:+.1f})" for c in r["classes"] if c["corrected_p_value"] < 0.05),
        ]
        for r in records if r["step"] == "population"
    ]  # fmt: skip
    head = ["ratio", "plans", "mismatch with the original", "mismatch between seeds", "exemplars", "changed by all"]
    more = ["changed by any", "accuracy on exemplars before", "after", "classes moved beside the mean (points)"]
    return markdown([*head, *more], rows) if rows else ""


def _memorization_table(records: Iterable[dict[str, Any]]) -> str:
    rows = [
        [
            r["network"], f"{r['ratio']:g}", str(r["networks"]), str(r["seeds"]),
            f"{r['spearman']:.3f} ({r['interval'][0]:.3f} to {r['interval'][1]:.3f})", f"{r['spearman_of_loss']:.3f}",
            f"{r['mismatched']:,} of {r['examples']:,}", f"{r['above_0.25']:,}",
            "" if r["mismatched_if_above"] is None else f"{100 * r['mismatched_if_above']:.1f} %",
            f"{100 * r['mismatched_if_below']:.1f} %",
        ]
        for r in records if r["step"] == "memorization"
    ]  # fmt: skip
    head = ["network", "ratio", "subset trainings", "plans", "Spearman (95 %)", "of the loss", "mismatched"]
    return markdown([*head, "memorized (≥ 0.25)", "of these mismatched", "of the others"], rows) if rows else ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

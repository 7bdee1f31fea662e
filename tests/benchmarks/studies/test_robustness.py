"""The robustness benchmark: what it scores, what it compares, what it runs again and what it calls a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.networks import first
from benchmarks.records import read
from benchmarks.studies import robustness
from benchmarks.studies.robustness import Cell
from benchmarks.studies.robustness_tables import (
    METHODS,
    OPPONENTS,
    comparisons_of,
    error_list,
    newest,
    opponent_table,
    summary,
    within,
    write_tables,
)
from benchmarks.study import Options

CELL = Cell("digits", 16, 8.0, 0, 4)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(
        networks=["digits"], examples=[16, 64], ratios=[4.0, 8.0], seeds=[0, 1], test_examples=4, again=[], threads=1,
        work=tmp_path / "work", records=tmp_path / "robustness.jsonl",
    )  # fmt: skip


def figures(loss: float, **changed: Any) -> dict[str, Any]:
    """A record as a finished method leaves it."""
    shared = {"loss": loss, "accuracy": 90.0, "divergence": 0.1}
    times = ("original", "compressed", "recovered")
    return {
        **{f"{time}_{name}": value for time in times for name, value in shared.items()},
        "original_loss": 0.2, "predicted": 0.1, "from_cache": False, "seconds": 1.0, "cpu_seconds": 1.0,
        "peak_memory": 100.0, "winner": "additive", **changed,
        "candidates": [
            {"names": ["solver"], "predicted": 0.02, "divergence": 0.1},
            {"names": ["greedy", "additive"], "predicted": changed.get("predicted", 0.1), "divergence": 0.4},
        ],
    }  # fmt: skip


class Fake:
    """Stands in for the processes: losses as told, and a count of the calls."""

    def __init__(self, losses: dict[str, list[float]]) -> None:
        self.losses = losses
        self.calls: list[tuple[Cell, str]] = []
        self.broken: set[str] = set()

    def __call__(self, cell: Cell, method: str, tables: Path, options: Options) -> dict[str, Any]:
        self.calls.append((cell, method))
        head = {"kind": "cell", "method": method, **vars(cell)}
        if method in self.broken:
            return head | {"error": "out of luck"}
        path = robustness.losses_path(options.work, cell, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array(self.losses[method]))
        return head | figures(float(np.mean(self.losses[method])))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    # Default is worse than uniform by 0.3 with a standard error of about 0.04, and better than the others.
    losses = {
        "default": [1.0, 1.2, 1.1, 1.3],
        "uniform": [0.7, 0.8, 0.9, 1.0],
        "additive": [2.0] * 4,
        "greedy": [3.0] * 4,
    }
    stand_in = Fake(losses)
    monkeypatch.setattr(robustness, "in_own_process", stand_in)
    return stand_in


def test_ratios_of_one_measurement_follow_each_other(options: Options) -> None:
    cells = list(robustness.cells_of(options))
    assert len(cells) == len(set(cells)) == 8
    assert [cell.ratio for cell in cells] == [4.0, 8.0] * 4
    options.examples = options.ratios = options.test_examples = None
    grid = robustness.NETWORKS["digits"]
    assert len(list(robustness.cells_of(options))) == len(grid.examples) * len(grid.ratios) * 2


def test_what_is_there_is_not_run_again(options: Options, fake: Fake) -> None:
    robustness.run(options)
    assert len(fake.calls) == 8 * len(METHODS) == len(set(fake.calls))
    robustness.run(options)
    assert len(fake.calls) == 8 * len(METHODS)
    options.again = ["default"]
    robustness.run(options)
    assert {method for _, method in fake.calls[8 * len(METHODS) :]} == {"default"}
    assert len(fake.calls) == 8 * len(METHODS) + 8


def test_what_failed_is_run_again_and_listed_until_then(options: Options, fake: Fake) -> None:
    options.examples, options.ratios, options.seeds = [16], [8.0], [0]
    fake.broken = {"greedy"}
    robustness.run(options)
    assert "out of luck" in error_list(newest(options.records))
    fake.broken = set()
    fake.calls.clear()
    robustness.run(options)
    assert [method for _, method in fake.calls] == ["greedy"]
    records = newest(options.records)
    assert error_list(records) == "" and summary(comparisons_of(records)).startswith("1 cells")


def test_comparisons_are_paired_per_example(options: Options, fake: Fake) -> None:
    options.examples, options.ratios, options.seeds = [16], [8.0], [0]
    robustness.run(options)
    found = {r["method"]: r for r in read(options.records) if r["kind"] == "comparison"}
    assert set(found) == set(OPPONENTS)
    assert found["uniform"]["difference"] == pytest.approx(0.3)
    assert found["uniform"]["standard_error"] == pytest.approx(np.std([0.3, 0.4, 0.2, 0.3], ddof=1) / 2)


def test_only_what_is_worse_by_two_standard_errors_fails(options: Options, fake: Fake) -> None:
    options.examples, options.ratios, options.seeds = [16], [8.0], [0]
    robustness.run(options)
    (cell,) = comparisons_of(newest(options.records))
    assert cell.best == "uniform" and cell.fails and not cell.better
    assert "| digits | 16 | 8x | 0 | uniform | +0.3000 |" in write_tables(options.records)
    assert options.records.with_suffix(".png").stat().st_size > 10_000
    fake.losses["default"] = [0.0, 0.8, 1.7, 1.2]
    options.again = ["default"]
    robustness.run(options)
    (cell,) = comparisons_of(newest(options.records))
    assert cell.difference == pytest.approx(0.075) and not cell.fails


@pytest.mark.parametrize(
    ("predicted", "right", "impossible"),
    [(0.051, True, False), (0.049, False, False), (0.21, False, False), (-0.3, False, True)],
)
def test_predictions_are_judged_by_the_measured_divergence(predicted: float, right: bool, impossible: bool) -> None:
    key = ("digits", 16, 8.0, 0)
    records: dict[Any, Any] = {("cell", *key, method): figures(1.0, predicted=predicted) for method in METHODS}
    records |= {("comparison", *key, name): {"difference": 0.0, "standard_error": 1.0} for name in OPPONENTS}
    (cell,) = comparisons_of(records)
    assert within(cell.predicted, cell.measured) is right and cell.impossible is impossible
    assert opponent_table([cell]).count("| 1 | 0 | 0 | +0.0000 |") == len(OPPONENTS)
    # The other plan had five times what was predicted for it.
    assert cell.expected == pytest.approx(5 * predicted if predicted > 0 else predicted) and cell.held_out == 0.4


def test_scores_are_per_example_and_divergence_is_from_the_original() -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(3, 5), nn.Linear(3, 5)
    batches = [(torch.randn(4, 3), torch.randint(5, (4,))), (torch.randn(2, 3), torch.randint(5, (2,)))]
    reference = robustness.score(model, batches)
    found = robustness.score(other, batches, reference.logits)
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert not reference.divergences.any()
    assert torch.allclose(found.losses, functional.cross_entropy(other(inputs), targets, reduction="none").double())
    expected = functional.kl_div(other(inputs).log_softmax(1), model(inputs).softmax(1), reduction="batchmean")
    assert found.means()["divergence"] == pytest.approx(expected.item(), rel=1e-5)


def test_windows_of_text_are_one_example_each() -> None:
    torch.manual_seed(0)
    model = nn.Embedding(7, 7)
    tokens, targets = torch.randint(7, (3, 4)), torch.randint(7, (3, 4))
    found = robustness.score(model, [(tokens, targets)])
    expected = functional.cross_entropy(model(tokens).transpose(1, 2), targets, reduction="none").mean(1)
    assert torch.allclose(found.losses, expected.double())
    assert found.means()["accuracy"] == pytest.approx(100 * (model(tokens).argmax(2) == targets).double().mean().item())


def test_first_examples_are_taken_over_batches() -> None:
    batches = [(torch.arange(3.0), torch.arange(3)), (torch.arange(3.0, 6), torch.arange(3, 6))]
    assert [targets.tolist() for _, targets in first(batches, 4)] == [[0, 1, 2], [3]]
    assert [targets.tolist() for _, targets in first(batches, 3)] == [[0, 1, 2]]
    assert len(first(batches, 100)) == 2


def test_a_real_method_leaves_its_losses_and_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "warm_up", lambda: None)  # compiles every solver, and only seconds depend on it
    found = robustness.measure_cell(CELL, "uniform", tmp_path / "tables", tmp_path / "uniform.npy")
    losses = np.load(tmp_path / "uniform.npy")
    assert losses.shape == (4,) and found["recovered_loss"] == pytest.approx(losses.mean())
    assert found["bytes"] <= 258_000 / 8 and found["examples_measured"] == 16 and not found["from_cache"]
    assert found["peak_memory"] >= found["memory_before"] > 50
    of_default = {"candidates", "winner"}
    assert set(figures(0.0)) <= set(found) | {"original_divergence"} | of_default

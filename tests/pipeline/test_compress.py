"""The whole way, on the trained digits network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.calibration.evaluation import score
from qubo_compress.calibration.examples import read_examples
from qubo_compress.pipeline.evolved import search_examples
from qubo_compress.report.facts import about_calibration
from qubo_compress.testing import same_snapshot, snapshot

MENU = qc.Menu(bits=(2, 4, 8), sparsity=(0.0, 0.5))
OPTIONS: dict[str, Any] = {"menu": MENU, "solver": "annealer", "time_limit": 0.3, "progress": False}


@pytest.fixture(scope="module")
def result(digits: Any) -> qc.CompressionResult:
    options = {**OPTIONS, "menu": qc.Menu(bits=(2, 3, 4, 8), sparsity=(0.0, 0.5, 0.75))}
    return qc.compress(digits.model, digits.calibration, qc.Budget(ratio=20), rounds=1, **options)


def test_the_budget_is_kept_to_the_byte(result: qc.CompressionResult, digits: Any, tmp_path: Path) -> None:
    size = result.save(tmp_path / "net.safetensors")
    assert size == result.plan.bytes == (tmp_path / "net.safetensors").stat().st_size
    assert size * 20 <= result.plan.original_bytes
    loaded = qc.load(tmp_path / "net.safetensors", digits.model)
    inputs = digits.test[0][0]
    with torch.no_grad():
        assert torch.equal(loaded(inputs), result.model(inputs))


def test_the_compressed_network_still_knows_its_digits(result: qc.CompressionResult, digits: Any) -> None:
    assert score(digits.model, digits.test).accuracy > 0.97
    assert score(result.model, digits.test).accuracy > 0.85


def test_refinement_never_gives_a_worse_held_out_loss(result: qc.CompressionResult) -> None:
    first, *later = result.rounds
    assert first.accepted and len(later) == 1
    best = first.measure
    for found in later:
        assert found.accepted == (found.measure < best - 1e-9)
        best = min(best, found.measure)
    chosen = result.taken
    assert chosen.plan == result.plan and chosen.measure == best == result.applied_comparison.measure
    assert result.compressed.loss == pytest.approx(chosen.held_out, abs=1e-6)


def test_the_refined_table_is_exact_at_the_plan_it_was_measured_around(result: qc.CompressionResult) -> None:
    first, around = result.rounds
    where = around.table.assignment(first.plan.choices) + around.table.offsets[:-1]
    assert np.abs(around.table.linear[where]).max() == 0.0
    assert around.table.predict(first.plan.choices) == pytest.approx(around.table.constant, abs=1e-6)


def test_the_network_given_is_left_alone(digits: Any) -> None:
    before = snapshot(digits.model)
    small = qc.compress(digits.model, digits.calibration, qc.Budget(ratio=8), **{**OPTIONS, "metric": "fisher"}).model
    assert same_snapshot(before, snapshot(digits.model)) and small is not digits.model


def test_the_recovery_that_is_scored_has_not_seen_the_held_out_examples(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["qubo_compress.pipeline.compress"]
    seen: list[torch.Tensor] = []
    real = module.recover_model

    def spying(small: Any, examples: Any, **options: Any) -> Any:
        seen.append(torch.cat([part.inputs for part in examples.slices]))
        return real(small, examples, **options)

    monkeypatch.setattr(module, "recover_model", spying)
    options = {**OPTIONS, "metric": "magnitude"}
    result = qc.compress(digits.model, digits.calibration, qc.Budget(ratio=8), **options)
    given = torch.cat([inputs for inputs, _ in digits.calibration])
    judged = sum(candidate.repaired is not None for candidate in result.taken.candidates)
    assert judged >= 1 and all(torch.equal(inputs, given[:136]) for inputs in seen[:judged])
    # What is returned was made once more, with all of them; with validation batches of the caller's it is not.
    assert result.recovery_kept and len(seen) == judged + 1 and torch.equal(seen[-1], given)
    seen.clear()
    result = qc.compress(digits.model, digits.calibration, qc.Budget(ratio=8), digits.validation, **options)
    assert len(seen) == sum(candidate.repaired is not None for candidate in result.taken.candidates)
    assert all(torch.equal(inputs, given) for inputs in seen)


def test_a_budget_below_the_smallest_names_it(digits: Any) -> None:

    class Unmeasurable(qc.sensitivity.Metric):
        metric_name = "unmeasurable"

        def measure(self, subject: Any) -> Any:
            pytest.fail("it was measured for a budget out of reach")

    with pytest.raises(errors.InfeasibleBudget) as caught:
        qc.compress(digits.model, digits.calibration, qc.Budget(ratio=400), **{**OPTIONS, "metric": Unmeasurable()})
    smallest = caught.value.smallest
    assert smallest is not None and str(smallest) in str(caught.value)
    fitting = qc.Budget(bytes=smallest)
    found = qc.compress(digits.model, digits.calibration, fitting, **{**OPTIONS, "metric": "magnitude"}, recover=False)
    assert found.plan.bytes == smallest


def test_a_ratio_below_one_is_remarked_on(digits: Any) -> None:
    with pytest.warns(UserWarning, match="give ratio=10"), pytest.raises(errors.UnknownName):
        qc.compress(digits.model, digits.calibration, qc.Budget(ratio=0.1), metric="products", loss="no such loss")


def test_misspelt_names_are_noticed_before_anything_is_measured(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["qubo_compress.pipeline.compress"]
    monkeypatch.setattr(module, "measure_specimen", lambda *_, **__: pytest.fail("it was measured"))
    for wrong, said in (({"solver": "anealer"}, "did you mean 'annealer'"), ({"rounds": -1}, "rounds")):
        with pytest.raises(errors.QuboCompressError, match=said):
            qc.compress(digits.model, digits.calibration, qc.Budget(ratio=8), **{**OPTIONS, **wrong})


def test_wrong_validation_batches_are_called_that_before_anything_is_measured(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["qubo_compress.pipeline.compress"]
    monkeypatch.setattr(module, "measure_specimen", lambda *_, **__: pytest.fail("it was measured"))
    inputs, labels = digits.validation[0]
    wrong = {
        "validation batch 1: the inputs hold NaN": (inputs * torch.nan, labels),
        "validation batches: the model's forward raised": (inputs.repeat(1, 2, 1, 1), labels),
        "validation batches: targets must be class indices": (inputs, labels + 90),
    }
    for said, batch in wrong.items():
        with pytest.raises(errors.QuboCompressError, match=said) as caught:
            qc.compress(digits.model, digits.calibration, qc.Budget(ratio=8), [(inputs, labels), batch], **OPTIONS)
        assert "calibration" not in str(caught.value)
    with pytest.raises(errors.InvalidBatches, match="calibration batch 0: the inputs hold NaN"):
        qc.compress(digits.model, [(inputs * torch.nan, labels)], qc.Budget(ratio=8), digits.validation, **OPTIONS)


def test_the_cache_serves_several_budgets_and_rounds(sample: Any, tmp_path: Path) -> None:
    found = sample("perceptron")
    options = {**OPTIONS, "cache": tmp_path, "rounds": 2, "time_limit": 0.3}
    largest = qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False).plan({}).bytes
    for size in (largest - 50, largest - 60, largest - 50):
        qc.compress(found.model, found.batches, qc.Budget(bytes=size), **options)
    with torch.no_grad():
        found.model[0].weight[0, 0] += 1.0
    with pytest.raises(errors.CacheMismatch, match="weights differ"):
        qc.compress(found.model, found.batches, qc.Budget(bytes=largest), **options)


@pytest.mark.parametrize("name", ["tied", "positions", "dict-inputs", "bfloat16", "attention", "recurrent"])
def test_other_networks_go_the_whole_way(sample: Any, name: str, tmp_path: Path) -> None:
    found = sample(name)
    table = qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False)
    smallest = int(table.problem(qc.Budget(ratio=1)).smallest_totals()[0])
    limit = (smallest + table.plan({}).bytes) // 2
    result = qc.compress(found.model, found.batches, qc.Budget(bytes=limit), rounds=1, **{**OPTIONS, "time_limit": 0.3})
    assert result.save(tmp_path / "net") == result.plan.bytes <= limit


def test_a_front_solves_again_and_measures_nothing(result: qc.CompressionResult) -> None:
    front = qc.pareto(result.table, ratios=(4, 8, 16), solver="annealer", time_limit=0.5)
    assert [point.ratio for point in front] == [4.0, 8.0, 16.0]
    assert all(point.plan.ratio >= point.ratio for point in front)
    assert all(point.bound is None or point.bound <= point.energy + 1e-9 for point in front)


def test_every_solve_is_announced_with_its_limit(sample: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = sample("perceptron")
    # Greedy ends by itself, so that both calls find the same plan on a loaded machine too.
    options = OPTIONS | {"solver": "greedy", "time_limit": 61}
    whole = qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False).plan({})
    budget = qc.Budget(bytes=whole.bytes - 1)
    quiet = qc.compress(found.model, found.batches, budget, **options)
    assert "solving" not in capsys.readouterr().out
    told = qc.compress(found.model, found.batches, budget, **options | {"progress": True})
    assert capsys.readouterr().out.count("solving by greedy for at most 61 s") >= len(told.rounds)
    assert told.rounds and told.plan.choices == quiet.plan.choices != whole.choices


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_goes_the_whole_way(any_sample: Any, tmp_path: Path) -> None:
    found = any_sample
    found.model.cuda()
    plan = qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False).plan({})
    result = qc.compress(found.model, found.batches, qc.Budget(bytes=plan.bytes), rounds=1, epochs=1, **OPTIONS)
    assert next(result.model.parameters()).device.type == "cuda"
    size = result.save(tmp_path / "net")
    net = qc.load(tmp_path / "net", found.model)
    assert size == result.plan.bytes
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), result.model.parameters(), strict=True))


def test_a_search_on_the_network_is_checked_on_examples_that_it_has_not_seen(digits: Any) -> None:
    options = {**OPTIONS, "metric": "magnitude", "recover": False}
    before = qc.compress(digits.model, digits.calibration, qc.Budget(ratio=16), **options)
    found = qc.compress(digits.model, digits.calibration, qc.Budget(ratio=16), **options, evaluations=1500)
    assert before.evolution is None and found.evolution is not None
    assert 136 <= found.evolution.evaluations <= 1500 and found.before.examples == before.before.examples
    names = [name for candidate in found.taken.candidates for name in candidate.names]
    assert "evolved" in names
    # The candidates without the search are the same, on the same examples, so the plan taken is never worse.
    assert found.taken.measure <= before.taken.measure
    assert found.plan.bytes * 16 <= found.plan.original_bytes
    assert any("search on the network forwarded" in line for line in about_calibration(found))


def test_many_held_out_examples_are_shared_with_the_search() -> None:
    measured = read_examples([torch.zeros(100, 2)])
    for count, searched, checking in ((100, 100, 100), (300, 250, 150)):
        among, judge = search_examples(measured, read_examples([torch.arange(2.0 * count).reshape(count, 2) + 1]))
        assert (among.count, judge.count) == (searched, checking)
        seen = {tuple(row) for part in among.slices for row in part.inputs.tolist()}
        assert not seen & {tuple(row) for part in judge.slices for row in part.inputs.tolist()}


def test_evaluations_that_make_no_sense_are_refused_before_the_measurement(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["qubo_compress.pipeline.compress"]
    monkeypatch.setattr(module, "measure_specimen", lambda *_, **__: pytest.fail("it was measured"))
    for wrong, said in ((20, "one pass over the 136 examples"), (-1, "evaluations must be"), (1.5, "evaluations must")):
        with pytest.raises(errors.QuboCompressError, match=said):
            qc.compress(digits.model, digits.calibration, qc.Budget(ratio=8), **OPTIONS, evaluations=wrong)

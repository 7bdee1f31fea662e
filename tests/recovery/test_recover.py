"""Recovery: the same plan, the same bytes, nearer to the original."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.calibration.evaluation import outputs_of, score, score_examples
from qubo_compress.calibration.examples import read_examples
from qubo_compress.errors import InvalidOption, UnknownName
from qubo_compress.plan import compression_of
from qubo_compress.testing import same_snapshot, snapshot

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5))


def compressed(sample: Any, harsh: bool = True) -> torch.nn.Module:
    """Two bits for every weight, and the last choice of every other group."""
    table = qc.measure(sample.model, sample.batches, menu=MENU, metric="magnitude", progress=False)
    choices = {
        group.name: "quantize(bits=2)" if group.kind == "weight" and harsh and len(names) > 1 else names[-1]
        for group, names in zip(table.layout.groups, table.choices, strict=True)
    }
    return table.plan(choices).apply(sample.model)


def divergence(model: torch.nn.Module, sample: Any) -> float:
    examples = read_examples(sample.batches)
    return score_examples(model, examples, "kl", outputs_of(sample.model, examples)).loss


@pytest.mark.parametrize("epochs", [0, 1])
def test_recovery_keeps_bytes_grid_and_models(any_sample: Any, epochs: int, tmp_path: Path) -> None:
    small = compressed(any_sample)
    teacher_before, small_before = snapshot(any_sample.model), snapshot(small)
    size = qc.save(small, tmp_path / "before")
    better = qc.recover(small, any_sample.batches, teacher=any_sample.model, epochs=epochs, progress=False)
    assert same_snapshot(teacher_before, snapshot(any_sample.model))
    assert same_snapshot(small_before, snapshot(small))
    assert qc.save(small, tmp_path / "after") == size
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()
    assert compression_of(better).plan == compression_of(small).plan
    assert qc.save(better, tmp_path / "better") == size == (tmp_path / "better").stat().st_size
    loaded = qc.load(tmp_path / "better", any_sample.model)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), better.parameters(), strict=True))
    assert better is not small and not better.training
    if epochs == 0:
        assert divergence(better, any_sample) <= divergence(small, any_sample) + 1e-6


@pytest.mark.parametrize("epochs", [0, 1])
def test_frozen_groups_stay_and_all_others_may_move(any_sample: Any, epochs: int) -> None:
    small = compressed(any_sample)
    stored = compression_of(small).stored
    for frozen in ([re.escape(next(iter(stored)))], [".*weight"]):
        if not any(re.fullmatch(frozen[0], name) for name in stored):
            continue
        if all(any(re.fullmatch(pattern, name) for pattern in frozen) for name in stored):
            with pytest.raises(InvalidOption, match="nothing"):
                qc.recover(small, any_sample.batches, teacher=any_sample.model, frozen=frozen)
            continue
        better = qc.recover(
            small, any_sample.batches, teacher=any_sample.model, epochs=epochs, progress=False, frozen=frozen
        )
        for name, found in compression_of(better).stored.items():
            if any(re.fullmatch(pattern, name) for pattern in frozen):
                assert found.to_bytes() == stored[name].to_bytes(), name


def test_unknown_frozen_groups_are_refused(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    small = compressed(found)
    with pytest.raises(UnknownName, match=r"0\.weight"):
        qc.recover(small, found.batches, teacher=found.model, frozen=["0.wieght"])
    with pytest.raises(InvalidOption, match="frozen"):
        qc.recover(small, found.batches, teacher=found.model, epochs=1, splicing=True, frozen=["0.weight"])


def test_masks_stay(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    table = qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False)
    small = table.plan(
        {"0.weight": "quantize(bits=4,sparsity=0.5)", "3.weight": "quantize(bits=2,sparsity=0.5)"}
    ).apply(found.model)
    better = qc.recover(small, found.batches, teacher=found.model, epochs=3, progress=False, learning_rate=1e-2)
    for layer in (0, 3):
        masks = [compression_of(m).stored[f"{layer}.weight"].parts[0].mask for m in (small, better)]  # type: ignore[attr-defined]
        assert torch.equal(*masks)
        assert not better[layer].weight.detach().reshape(masks[0].shape)[~masks[0]].any()
    assert not torch.equal(small[0].weight, better[0].weight)


def test_kept_tensors_are_trained_without_touching_the_network_given(
    sample: Callable[[str], Any], tmp_path: Path
) -> None:
    found = sample("perceptron")
    table = qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False)
    small = table.plan({"0.weight": "quantize(bits=2)"}).apply(found.model)
    better = qc.recover(small, found.batches, teacher=found.model, epochs=2, progress=False)
    assert not torch.equal(better[3].weight, small[3].weight)
    assert torch.equal(small[3].weight, found.model[3].weight)
    qc.save(small, tmp_path / "small")


def test_a_normalisation_with_tiny_variances_survives_training(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    with torch.no_grad():
        found.model[1].running_var[:2] = 1e-6
    table = qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False)
    small = table.plan({"0.weight": "quantize(bits=2)"}).apply(found.model)
    better = qc.recover(small, found.batches, teacher=found.model, epochs=5, progress=False, learning_rate=1e-2)
    assert bool((better[1].running_var > 0).all())


def test_digits_recover(digits: Any, tmp_path: Path) -> None:
    table = qc.measure(digits.model, digits.calibration, menu=qc.Menu(bits=(2,)), metric="magnitude", progress=False)
    harsh = {name: "quantize(bits=2)" for name in table.group_names if "conv" in name}
    small = table.plan(harsh).apply(digits.model)
    repaired = qc.recover(small, digits.calibration, teacher=digits.model, progress=False)
    tuned = qc.recover(small, digits.calibration, teacher=digits.model, epochs=1, progress=False)
    losses = [score(net, digits.test).loss for net in (small, repaired, tuned)]
    assert losses[1] < 0.8 * losses[0] and losses[2] < 0.8 * losses[0]
    assert qc.save(repaired, tmp_path / "a") == qc.save(tuned, tmp_path / "b") == table.plan(harsh).bytes


def test_all_work_is_shown_in_steps_no_longer_than_a_run(
    sample: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: dict[str, tuple[float, list[float]]] = {}

    @contextlib.contextmanager
    def counting(show: bool, name: str, total: float) -> Iterator[Callable[[float], None]]:
        assert show
        bars[name] = total, []
        yield bars[name][1].append

    for module in ("recover", "training"):
        monkeypatch.setattr(importlib.import_module(f"qubo_compress.recovery.{module}"), "progress_bar", counting)
    found = sample("perceptron")
    qc.recover(compressed(found), found.batches, teacher=found.model, epochs=2)
    assert set(bars) == {"repairing", "checking the objective", "fine-tuning"}
    count = sum(len(inputs) for inputs, _ in found.batches)
    for total, steps in bars.values():
        assert sum(steps) == total and max(steps) <= count


def test_the_same_seed_gives_the_same_network(sample: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubo_compress.recovery.training.BATCH", 5)
    found = sample("perceptron")
    small = compressed(found)
    nets = [
        qc.recover(small, found.batches, teacher=found.model, epochs=2, seed=seed, progress=False) for seed in (0, 0, 1)
    ]
    weights = [torch.cat([p.detach().reshape(-1) for p in net.parameters()]) for net in nets]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_wrong_input_is_refused(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    with pytest.raises(errors.WrongModel, match="apply a plan"):
        qc.recover(found.model, found.batches, teacher=found.model, progress=False)
    with pytest.raises(errors.InvalidOption, match="epochs"):
        qc.recover(compressed(found), found.batches, teacher=found.model, epochs=-1, progress=False)
    table = qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False)
    kept = table.plan({}).apply(found.model)
    with pytest.raises(errors.NonFiniteLoss, match="learning rate"):
        qc.recover(kept, found.batches, teacher=found.model, epochs=3, progress=False, learning_rate=1e30)


def test_a_rate_that_raises_the_objective_is_not_kept(sample: Callable[[str], Any], caplog: Any) -> None:
    found = sample("perceptron")
    small = compressed(found, harsh=False)
    caplog.set_level("INFO", "qubo_compress.recovery.recover")
    at_rest = qc.recover(small, found.batches, found.model, progress=False)
    wild = qc.recover(small, found.batches, found.model, epochs=1, learning_rate=100.0, progress=False)
    pairs = zip(wild.state_dict().values(), at_rest.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert caplog.text.count("fine-tuned at rate") == 3 and "raised its own objective" in caplog.text
    caplog.clear()
    qc.recover(small, found.batches, found.model, epochs=2, learning_rate=1e-4, progress=False)
    assert caplog.text.count("fine-tuned at rate") == 1

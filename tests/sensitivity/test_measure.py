"""Measuring: bad input met with a clear word, and a cache that survives everything."""

from __future__ import annotations

import functools
import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress._internal.files import write_atomically
from qubo_compress.network.losses.signature import loss_signature
from qubo_compress.sensitivity.factor import reduce_features
from qubo_compress.sensitivity.metrics.auto import AutoMetric
from qubo_compress.sensitivity.metrics.products import Products
from qubo_compress.testing import same_snapshot, same_table, snapshot

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0,))


def measured(sample: Any, **options: Any) -> qc.SensitivityTable:
    return qc.measure(sample.model, options.pop("batches", sample.batches), menu=MENU, progress=False, **options)


@pytest.fixture
def perceptron(sample: Callable[[str], Any]) -> Any:
    return sample("perceptron")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_that_are_not_finite_are_named(perceptron: Any, value: float, name: str) -> None:
    with torch.no_grad():
        perceptron.model.state_dict()[name].reshape(-1)[2] = value
    before = snapshot(perceptron.model)
    with pytest.raises(errors.InvalidModel, match=rf"{name} holds 1 values"):
        measured(perceptron)
    assert [type(a) for a in before] == [type(a) for a in snapshot(perceptron.model)]


def test_infinite_masks_are_allowed(sample: Callable[[str], Any]) -> None:
    assert torch.isinf(sample("tuple-inputs").model.mask).any()
    assert np.isfinite(measured(sample("tuple-inputs")).linear).all()


def test_losses_that_are_not_finite_are_refused(perceptron: Any) -> None:
    with pytest.raises(errors.NonFiniteLoss, match="uncompressed network"):
        measured(perceptron, loss=lambda outputs, targets: outputs.sum(-1) / 0.0)

    def fragile(outputs: Tensor, targets: Tensor | None) -> Tensor:
        same = torch.allclose(outputs, fragile.first) if hasattr(fragile, "first") else True  # type: ignore[attr-defined]
        fragile.first = getattr(fragile, "first", outputs)  # type: ignore[attr-defined]
        return outputs.sum(-1) if same else outputs.sum(-1) * torch.nan

    with pytest.raises(errors.NonFiniteLoss, match=r"when 0\.weight is stored as quantize\(bits="):
        measured(perceptron, loss=fragile, interactions=False)


def test_a_model_that_fails_is_named_and_left_alone(perceptron: Any) -> None:
    before = snapshot(perceptron.model)
    with pytest.raises(errors.ForwardFailed, match="RuntimeError") as caught:
        measured(perceptron, batches=[(torch.ones(4, 9), torch.zeros(4, dtype=torch.long))])
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert same_snapshot(before, snapshot(perceptron.model))


@pytest.mark.parametrize(
    "options, error, said",
    [
        ({"metric": "gaus-newton"}, errors.UnknownName, "did you mean 'gauss-newton'"),
        ({"loss": "crossentropy"}, errors.UnknownName, "did you mean 'cross-entropy'"),
        ({"batches": [torch.ones(4, 5)], "loss": "cross-entropy"}, errors.InvalidBatches, "needs targets"),
        ({"batches": []}, errors.InvalidBatches, "no examples"),
        ({"batches": iter([])}, errors.InvalidBatches, "one-shot"),
        ({"batches": [(torch.ones(4, 5), torch.full((4,), 3))]}, errors.InvalidBatches, "class indices from 0 to 2"),
        ({"batches": [(torch.ones(4, 5), torch.ones(4, 2))]}, errors.InvalidBatches, "do not fit outputs"),
        ({"shrinkage": 2.0}, errors.InvalidMenu, "shrinkage"),
        ({"shrinkage": 0.5, "metric": "magnitude"}, errors.InvalidMenu, "measures no divergences"),
        ({"shrinkage": "auto", "metric": "products"}, errors.InvalidMenu, "measured linear terms on two halves"),
        ({"loss": lambda outputs, targets: outputs}, errors.InvalidModel, "one value per example"),
        ({"groups": "("}, errors.InvalidMenu, "regular expression"),
    ],
)
def test_wrong_arguments_are_refused(
    perceptron: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    before = snapshot(perceptron.model)
    with pytest.raises(error, match=said):
        measured(perceptron, **options)
    assert same_snapshot(before, snapshot(perceptron.model))


def test_models_that_return_something_else_are_refused(perceptron: Any) -> None:
    for forward, said in ((lambda x: {"a": x}, "returned dict"), (lambda x: x.argmax(1), r"\(N, C")):
        model = nn.Sequential(perceptron.model)
        model.forward = forward  # type: ignore[method-assign]
        with pytest.raises(errors.InvalidModel, match=said):
            qc.measure(model, perceptron.batches, menu=MENU, progress=False)


def test_class_probabilities_and_ignored_targets(perceptron: Any) -> None:
    inputs, targets = (torch.cat(parts) for parts in zip(*perceptron.batches, strict=True))
    indices = measured(perceptron, batches=[(inputs, targets)])
    shares = measured(perceptron, batches=[(inputs, nn.functional.one_hot(targets, 3).float())])
    assert np.allclose(indices.linear, shares.linear, atol=1e-6)
    assert np.allclose(indices.factor @ indices.factor.T, shares.factor @ shares.factor.T, atol=1e-6)
    some = targets.clone()
    some[::2] = -100
    ignored = measured(perceptron, batches=[(inputs, some)])
    half = measured(perceptron, batches=[(inputs[1::2], targets[1::2])])
    assert np.allclose(ignored.linear, half.linear, atol=1e-5)  # as in torch, the mean is over what counts


def test_shrinkage_draws_towards_the_divergence(perceptron: Any) -> None:
    plain, drawn, auto = (measured(perceptron, shrinkage=share) for share in (0.0, 0.25, "auto"))
    assert np.allclose(drawn.linear, 0.75 * plain.linear + 0.25 * plain.divergence)
    assert auto.provenance.shrinkage in (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("metric", ["gauss-newton", "jacobian", "fisher", "pairwise"])
def test_a_cache_interrupted_anywhere_gives_the_same_table(perceptron: Any, metric: str, tmp_path: Path) -> None:
    wanted = measured(perceptron, metric=metric)
    # Backward metrics write one part per slice of examples, and here is one slice.
    for stop in (1,) if metric in ("jacobian", "fisher") else (1, 3, 4):
        cache = tmp_path / f"{metric}{stop}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            _interrupt_after(patch, stop)
            measured(perceptron, metric=metric, cache=cache)
        found = measured(perceptron, metric=metric, cache=cache)
        assert same_table(found, wanted) and 1 <= found.provenance.resumed <= stop
        again = measured(perceptron, metric=metric, cache=cache)
        assert same_table(again, wanted) and again.provenance.resumed >= found.provenance.resumed


def _interrupt_after(patch: pytest.MonkeyPatch, files: int) -> None:
    from qubo_compress.sensitivity import cache

    left = files

    def interrupted(path: Path, write: Callable[..., Any]) -> None:
        nonlocal left
        left -= path.suffix == ".npz"
        if left < 0:
            raise KeyboardInterrupt
        write_atomically(path, write)
        if left == 0:
            raise KeyboardInterrupt

    patch.setattr(cache, "write_atomically", interrupted)


def test_a_cache_of_something_else_is_refused_with_the_cause(perceptron: Any, sample: Any, tmp_path: Path) -> None:
    wanted = measured(perceptron, cache=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    shuffled = [perceptron.batches[i] for i in (1, 0, 2)]
    for options, said in (
        ({"batches": shuffled}, "shuffling DataLoader or random augmentation"),
        ({"loss": "kl"}, "another loss"),
        ({"seed": 1}, "another options"),
        ({"metric": "magnitude"}, "another metric"),
        ({"groups": "filter"}, "groups"),
    ):
        with pytest.raises(errors.CacheMismatch, match=said):
            measured(perceptron, cache=tmp_path, **options)
    with pytest.raises(errors.CacheMismatch, match="menu"):
        qc.measure(perceptron.model, perceptron.batches, cache=tmp_path, progress=False)
    with torch.no_grad():
        perceptron.model[0].weight[0, 0] += 1.0
    with pytest.raises(errors.CacheMismatch, match="the weights differ"):
        measured(perceptron, cache=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert same_table(measured(sample("perceptron"), cache=tmp_path), wanted)


def test_a_damaged_cache_is_named(perceptron: Any, tmp_path: Path) -> None:
    measured(perceptron, cache=tmp_path)
    unit = sorted(tmp_path.glob("*.npz"))[0]
    unit.write_bytes(unit.read_bytes()[:-30])
    with pytest.raises(errors.CacheMismatch, match=unit.name):
        measured(perceptron, cache=tmp_path)
    unit.unlink()
    measured(perceptron, cache=tmp_path)
    (tmp_path / "signature.json").write_text("{")
    with pytest.raises(errors.CacheMismatch, match="not the signature"):
        measured(perceptron, cache=tmp_path)
    (tmp_path / "signature.json").unlink()
    with pytest.raises(errors.CacheMismatch, match=r"no signature\.json"):
        measured(perceptron, cache=tmp_path)


def _scaled(outputs: Tensor, targets: Tensor | None, scale: float) -> Tensor:
    return scale * outputs.square().sum(-1)


def test_losses_are_told_apart_by_what_they_do(perceptron: Any, tmp_path: Path) -> None:
    def make(scale: float) -> Callable[..., Tensor]:
        return lambda outputs, targets: (lambda t: scale * t.square().sum(-1))(outputs)

    for number, maker in enumerate((make, lambda s: functools.partial(_scaled, scale=s))):
        cache = tmp_path / str(number)
        first = measured(perceptron, loss=maker(1.0), cache=cache)
        assert (
            measured(perceptron, loss=maker(1.0), cache=cache).provenance.resumed == len(first.group_names) + 1
        )  # the prices
        with pytest.raises(errors.CacheMismatch, match="loss"):
            measured(perceptron, loss=maker(2.0), cache=cache)


def test_the_name_of_a_loss_holds_no_addresses() -> None:
    text = "def loss(o, t):\n    return (lambda x: x if x in {'a', 'b'} else None)(o)"
    names = []
    for _ in range(3):
        made: dict[str, Any] = {}
        exec(text, made)
        names.append(loss_signature(made["loss"]))
    assert len(set(names)) == 1


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Files cannot grow beyond a number of bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_files_alone(
    perceptron: Any, tmp_path: Path, small_disk: Callable[[int], None]
) -> None:
    table = measured(perceptron)
    path, cache = tmp_path / "net.safetensors", tmp_path / "cache"
    qc.save(table.plan({"0.weight": "quantize(bits=2)"}).apply(perceptron.model), path)
    table.plan({}).save(tmp_path / "plan.json")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    small = table.plan({}).apply(perceptron.model)
    small_disk(300)
    for write in (
        lambda: qc.save(small, path),
        lambda: table.plan({}).save(tmp_path / "plan.json"),
        lambda: measured(perceptron, cache=cache),
    ):
        with pytest.raises(errors.StorageError, match="could not be written"):
            write()
    small_disk(1 << 30)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert not list(tmp_path.glob(".*")) and not list(cache.glob(".*"))
    assert same_table(measured(perceptron, cache=cache), table)


def test_folders_that_cannot_be_written_are_named(perceptron: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StorageError, match="file/net"):
        qc.save(measured(perceptron).plan({}).apply(perceptron.model), tmp_path / "file" / "net")
    with pytest.raises(errors.StorageError):
        measured(perceptron, cache=tmp_path / "file")


def test_prices_count_bytes_multiplications_and_cells(sample: Callable[[str], Any]) -> None:
    found = sample("grouped-view-inplace")
    table = measured(found, metric="magnitude")

    def price(name: str, group: str, choice: str) -> int:
        index = table.group_names.index(group)
        return int(table.costs[name][table.offsets[index] + table.choices[index].index(choice)])

    assert price("macs", "stem.weight", "keep") == 4 * 2 * 9 * 36  # 6 x 6 positions
    assert price("macs", "grouped.weight", "keep") == 6 * 2 * 9 * 16
    assert price("macs", "head.weight", "keep") == 24 * 3
    assert price("bit_operations", "head.weight", "keep") == 24 * 3 * 32 * 32
    assert price("cells", "head.weight", "keep") == 24 * 3 * 32
    assert price("bytes", "head.weight", "quantize(bits=4)") == 3 * 2 + 24 * 3 // 2
    assert price("macs", "norm.weight", "keep") == 0


def test_a_group_of_several_layers_counts_each_at_its_own_resolution(sample: Callable[[str], Any]) -> None:
    found = sample("grouped-view-inplace")
    apart = measured(found, metric="magnitude")
    joined = measured(found, metric="magnitude", groups="(weight)$")
    keeps = sum(int(apart.costs["macs"][start]) for start in apart.offsets[:-1])
    assert sum(int(joined.costs["macs"][start]) for start in joined.offsets[:-1]) == keeps


def test_factors_keep_inner_products_and_say_what_they_drop() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 100)).astype(np.float32)
    rows[3] = 0.0
    factor, dropped = reduce_features(rows, None, 0)
    assert factor.shape == (40, 39) and dropped < 1e-6 and not factor[3].any()
    assert np.allclose(factor @ factor.T, rows @ rows.T, atol=1e-3)
    low, dropped = reduce_features(rows, 10, 0)
    gram = rows.astype(np.float64) @ rows.T.astype(np.float64)
    values = np.linalg.eigvalsh(gram)[::-1]
    assert low.shape == (40, 10) and dropped == pytest.approx(1 - values[:10].sum() / values.sum(), abs=1e-4)


def test_a_sketch_of_very_many_columns_is_about_right(perceptron: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    full = measured(perceptron, max_rank=None)
    monkeypatch.setattr(sys.modules["qubo_compress.sensitivity.subject"], "MAX_COLUMNS", 60)
    for metric in ("gauss-newton", "jacobian"):
        sketched = measured(perceptron, metric=metric, max_rank=None)
        wanted, got = (t.factor @ t.factor.T for t in (full, sketched))
        assert np.linalg.norm(got - wanted) < 0.7 * np.linalg.norm(wanted), metric


def test_signature_file_is_readable(perceptron: Any, tmp_path: Path) -> None:
    measured(perceptron, cache=tmp_path)
    signature = json.loads((tmp_path / "signature.json").read_text())
    assert {"weights", "data", "menu", "groups", "metric", "loss", "options", "version"} == set(signature)


class _Weighed:
    def __init__(self, scale: float) -> None:
        self.scale, self.classes = scale, torch.full((2000,), scale)

    def __call__(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        return self.scale * outputs.square().sum(-1)

    def method(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        return self(outputs, targets)


def test_losses_that_are_objects_are_told_apart_by_what_they_hold(perceptron: Any, tmp_path: Path) -> None:
    inner = functools.partial(_scaled, scale=1.0)
    makers: tuple[Callable[[float], Any], ...] = (
        _Weighed, lambda s: _Weighed(s).method, lambda s: lambda o, t: _Weighed(s)(o, t) + 0 * inner(o, t),
        lambda s: nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1 * s),
    )  # fmt: skip
    names = [[loss_signature(maker(scale)) for scale in (1.0, 1.0, 2.0)] for maker in makers]
    assert all(first == again != other for first, again, other in names)
    changed = _Weighed(1.0)
    changed.classes[1500] = 7.0
    assert loss_signature(changed) != loss_signature(_Weighed(1.0))
    measured(perceptron, loss=_Weighed(1.0), cache=tmp_path)
    with pytest.raises(errors.CacheMismatch, match="loss"):
        measured(perceptron, loss=_Weighed(2.0), cache=tmp_path)


def test_what_cannot_be_described_is_never_taken_for_another() -> None:
    assert loss_signature(functools.partial(_scaled, scale=iter(()))) != loss_signature(
        functools.partial(_scaled, scale=iter(()))
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shrinkage": 0.5, "metric": "magnitude"}, "'magnitude' measures no divergences"),
        ({"shrinkage": 1.0, "metric": "fisher"}, "'fisher' measures no divergences"),
        ({"shrinkage": "auto", "metric": "jacobian"}, "'jacobian' measures no divergences"),
        ({"shrinkage": "auto", "metric": "products"}, "'products' measures none"),
    ],
)
def test_a_shrinkage_that_the_metric_cannot_give_is_refused_before_any_work(
    perceptron: Any, options: dict[str, Any], said: str
) -> None:
    def untouched(_: Any) -> Iterator[Any]:
        pytest.fail("a batch was read")
        yield

    class Unread:
        __iter__ = untouched

    with pytest.raises(errors.InvalidMenu, match=said):
        measured(perceptron, batches=Unread(), **options)
    with pytest.raises(errors.InvalidMenu, match=said):
        qc.compress(perceptron.model, Unread(), qc.Budget(ratio=2), progress=False, **options)


def test_what_auto_stands_for_is_refused_before_it_measures(perceptron: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Products, "measure", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(errors.InvalidMenu, match="'products' measures none"):
        measured(perceptron, metric=AutoMetric(small=0.0), shrinkage="auto")


@pytest.mark.parametrize("wrong", ["atuo", 2, -0.1])
def test_wrong_shrinkage_is_refused_before_anything_is_measured(perceptron: Any, wrong: Any) -> None:
    with pytest.raises(errors.InvalidMenu, match="shrinkage must be"):
        measured(perceptron, shrinkage=wrong, metric="no metric of that name is asked for")

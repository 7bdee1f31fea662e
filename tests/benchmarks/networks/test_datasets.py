"""The examples of the benchmark networks: pictures, texts and downloads, read or refused in words."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy
import pytest
import torch

from benchmarks.networks import Batches, NetworkUnavailable, datasets, imagenet, text


def keys(batches: Batches) -> set[bytes]:
    """Every image of the batches as bytes."""
    return {image.numpy().tobytes() for inputs, _ in batches for image in inputs}


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

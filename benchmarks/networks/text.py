"""Text that every Python carries: the sources of the standard library, cut into windows of bytes.

A file belongs to the training, validation or test text by a hash of its path, so that on another version of Python,
where files have other contents, no file that was trained on becomes a test file. Parts that Linux distributions leave
out, and files that a build writes, are not read.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import numpy
import torch

from benchmarks.networks.datasets import Dataset, Examples, NetworkUnavailable

CONTEXT = 128
"""Bytes of a window."""

HELD_OUT_WINDOWS = 1_000
"""Windows of the validation text, and as many of the test text, drawn once and for all."""

LEFT_OUT_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "__phello__", "test", "tests", "idle_test"}
    | {"idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "distutils"}
)


def python_text(folder: Path | None = None) -> Dataset:
    """Windows of 128 bytes of Python's standard library, inputs (N, 128) and targets (N, 128) int64.

    The target of a byte is the byte after it. Of every twenty files about one is validation text and one test text;
    1,000 windows are drawn from each, all different, and none of them a window of another text.

    Args:
        folder: where the sources lie, by default those of the running Python.

    Raises:
        NetworkUnavailable: when the folder holds too few sources for 1,000 validation and test windows.
    """
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    parts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    for path in _sources(folder):
        parts[_part(path.relative_to(folder).as_posix())].append(path.read_bytes())
    windows = {part: _windows(b"".join(contents)) for part, contents in parts.items()}
    seen = set(_keys(windows["train"]))
    for part in ("validation", "test"):
        # A few windows of boilerplate are in several files.
        new = [number for key, number in _keys(windows[part]).items() if key not in seen]
        found = len(new)
        if found < HELD_OUT_WINDOWS:
            raise NetworkUnavailable(
                f"{folder} has {found} windows of {CONTEXT} bytes of {part} text where {HELD_OUT_WINDOWS} are needed; "
                "install Python with the sources of its standard library (.py files, not only .pyc)"
            )
        order = torch.randperm(found, generator=torch.Generator().manual_seed(1))
        windows[part] = windows[part].select(torch.tensor(new)[order[:HELD_OUT_WINDOWS]])
        seen |= set(_keys(windows[part]))
    return Dataset("python-text", windows["train"], windows["validation"], windows["test"])


def _sources(folder: Path) -> list[Path]:
    """The .py files of a standard library that no distribution leaves out and no build writes, in a fixed order."""

    def kept(path: Path) -> bool:
        folders = path.relative_to(folder).parts[:-1]
        written = path.name.startswith("_sysconfigdata") or any(part.startswith("config-") for part in folders)
        return not written and not LEFT_OUT_FOLDERS.intersection(folders)

    return sorted(path for path in folder.rglob("*.py") if kept(path))


def _part(path: str) -> str:
    """Whether a file is training, validation or test text; by its path alone."""
    number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % 20
    return {0: "test", 1: "validation"}.get(number, "train")


def _keys(windows: Examples) -> dict[bytes, int]:
    """The different inputs as bytes, each with the number of its first window, in order."""
    first: dict[bytes, int] = {}
    for number, window in enumerate(windows.inputs):
        first.setdefault(window.numpy().tobytes(), number)
    return first


def _windows(text: bytes) -> Examples:
    """Windows one after the other, the rest at the end left out; inputs and targets are views of one tensor."""
    count = max(len(text) - 1, 0) // CONTEXT
    values = torch.from_numpy(numpy.frombuffer(text, numpy.uint8).astype(numpy.int64))
    size = count * CONTEXT
    return Examples(values[:size].view(count, CONTEXT), values[1 : size + 1].view(count, CONTEXT))

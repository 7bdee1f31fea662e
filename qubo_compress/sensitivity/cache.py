"""A folder of finished parts of a measurement, each written whole or not at all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qubo_compress.errors import CacheMismatch
from qubo_compress.files import write_atomically

Arrays = dict[str, npt.NDArray[np.generic]]

_CAUSES = {
    "data": "the calibration data differ: usual causes are a shuffling DataLoader or random augmentation; "
    "iterate the same examples in the same order",
    "weights": "the weights differ: the cache belongs to another model or to another state of training",
}


class UnitCache:
    """Finished units on disk, or nowhere.

    Args:
        folder: where the units are kept; None keeps nothing.
        signature: everything the measurement depends on.

    Raises:
        CacheMismatch: when the folder was written under another signature; nothing in it is changed.
    """

    def __init__(self, folder: str | Path | None, signature: Mapping[str, str]) -> None:
        self._folder = None if folder is None else Path(folder)
        self.loaded = 0
        if self._folder is None:
            return
        path = self._folder / "signature.json"
        if path.exists():
            self._compare(path, dict(signature))
        elif any(self._folder.glob("*.npz")):
            raise CacheMismatch(
                f"{self._folder} holds measurements but no signature.json that says of what; delete it or name another"
            )
        else:
            text = json.dumps(dict(signature), indent=1, sort_keys=True).encode()
            write_atomically(path, lambda handle: handle.write(text))

    def _compare(self, path: Path, signature: dict[str, str]) -> None:
        try:
            stored = json.loads(path.read_text())
        except (ValueError, UnicodeDecodeError) as cause:
            raise CacheMismatch(f"{path} cannot be read ({cause}); delete the folder or name another") from cause
        different = sorted(name for name in {*stored, *signature} if stored.get(name) != signature.get(name))
        if different:
            hints = [_CAUSES[name] for name in different if name in _CAUSES]
            raise CacheMismatch(
                f"the cache in {self._folder} was measured with another {', '.join(different)}. "
                + ("; ".join(hints) + ". " if hints else "")
                + "Name another folder, or delete this one to measure again"
            )

    def get(self, unit: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a unit: read back where they are complete, else computed and written."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{unit}.npz"
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    arrays = {name: stored[name] for name in stored.files}
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as cause:
                raise CacheMismatch(
                    f"{path} is damaged ({cause}); delete that one file and its part is measured again"
                ) from cause
            self.loaded += 1
            return arrays
        arrays = compute()
        write_atomically(path, lambda handle: np.savez(handle, allow_pickle=False, **arrays))  # type: ignore[arg-type]
        return arrays

"""Choice problems on disk: one ``.npz`` file with a checksum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from qubo_compress._internal.arrays import Array, array_writer, read_arrays
from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.reader import opened, refused_as

WHAT = "a complete choice problem"

_FORMAT = {"format": "qubo_compress problem 2"}

_PAIRS = ("data", "indices", "indptr")

_TEXTS = ("group_names", "choice_names", "budget_names")

_AXES: Mapping[str, tuple[str, int]] = {
    "linear": ("f", 1), "group_offsets": ("iu", 1), "costs": ("iu", 2), "limits": ("iu", 1), "fixed_costs": ("iu", 1),
    "constant": ("f", 0), "factor": ("f", 2), "pairs_data": ("f", 1), "pairs_indices": ("iu", 1),
    "pairs_indptr": ("iu", 1), **dict.fromkeys(_TEXTS, ("U", 1)),
}  # fmt: skip
"""Name -> allowed kinds of numbers, and the number of axes."""

_NEEDED = {"linear", "group_offsets", "costs", "limits", "constant", *_TEXTS}


def write_problem(path: str | Path, fields: Mapping[str, Any]) -> None:
    """Write the fields of a problem, atomically and without pickle.

    Raises:
        StorageError: when the file cannot be written.
    """
    arrays: dict[str, Array] = {}
    for name, value in fields.items():
        if name in _TEXTS:
            arrays[name] = np.array(value, dtype=np.str_)
        elif name == "pairs" and value is not None:
            arrays.update({f"pairs_{part}": getattr(value, part) for part in _PAIRS})
        elif value is not None:
            arrays[name] = np.asarray(value)
    write_atomically(path, array_writer(arrays, _FORMAT, packed=True))


def read_problem(path: str | Path) -> dict[str, Any]:
    """The fields of a problem: their types are checked, but not yet their agreement with each other.

    Files of version 0.4, which had no checksum, are read too.

    Raises:
        CorruptArtifact: when the file is not a complete problem, or was altered.
        StorageError: when it cannot be read.
        FileNotFoundError: when there is no file.
    """
    with opened(path, "a choice problem") as handle, refused_as(path, WHAT, "write it again"):
        found = read_arrays(handle)
        if found.said is not None and found.said != _FORMAT:
            raise ValueError(f"it says that it is {found.said}")
        values: dict[str, Any] = dict(found.arrays)
        _refuse_other_types(values)
        if "pairs_data" in values:
            total = values["linear"].size
            parts = [values.pop(f"pairs_{part}") for part in _PAIRS]
            values["pairs"] = _pairs(parts[0], parts[1], parts[2], total)
        for name in _TEXTS:
            values[name] = tuple(values[name].tolist())
        values["constant"] = float(values["constant"])
        return values


def _refuse_other_types(values: Mapping[str, Array]) -> None:
    missing, unknown = _NEEDED - set(values), set(values) - set(_AXES)
    if missing or unknown:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}" if missing else f"{min(unknown)!r} is not known")
    for name, array in values.items():
        kinds, axes = _AXES[name]
        if array.dtype.kind not in kinds or array.ndim != axes:
            raise ValueError(f"{name} is {array.dtype} along {array.ndim} axes")
    counts = {
        "group_names": values["group_offsets"].size - 1,
        "choice_names": values["linear"].size,
        "budget_names": values["limits"].size,
    }
    for name, count in counts.items():
        # Before names are decoded to text, which takes more memory than in the file.
        if values[name].size != count:
            raise ValueError(f"it has {values[name].size} {name.replace('_', ' ')} where {count} are needed")


def _pairs(data: Array, indices: Array, indptr: Array, total: int) -> sparse.csr_array:
    # Scipy may narrow the index type, so out-of-range indices must be found first.
    if indptr.size != total + 1 or indices.size != data.size:
        raise ValueError("its pairs have other numbers of rows, places and values than they should")
    if indices.size and (indices.min() < 0 or indices.max() >= total):
        raise ValueError(f"its pairs name choices beyond the {total} that there are")
    return sparse.csr_array((data, indices, indptr), shape=(total, total))

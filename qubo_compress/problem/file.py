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
from qubo_compress.problem.pair_costs import PairCosts

WHAT = "a complete choice problem"

_FORMAT = {"format": "qubo_compress problem 2"}

_FORMAT_OF_PAIR_COSTS = {"format": "qubo_compress problem 3"}
"""Of problems with pair costs, so that older versions say what they cannot read."""

_PAIRS = ("data", "indices", "indptr")

_TEXTS = ("group_names", "choice_names", "budget_names")

_LEFT_OUT = ("size_note",)
"""Advice about the table that a problem was made of, which a reader of the file has not."""

_AXES: Mapping[str, tuple[str, int]] = {
    "linear": ("f", 1), "group_offsets": ("iu", 1), "costs": ("iu", 2), "limits": ("iu", 1), "fixed_costs": ("iu", 1),
    "constant": ("f", 0), "factor": ("f", 2), "pairs_data": ("f", 1), "pairs_indices": ("iu", 1),
    "pairs_indptr": ("iu", 1), "pair_costs_data": ("iu", 1), "pair_costs_indices": ("iu", 1),
    "pair_costs_indptr": ("iu", 1), **dict.fromkeys(_TEXTS, ("U", 1)),
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
        elif name == "pair_costs" and value is not None:
            arrays.update({f"pair_costs_{part}": getattr(_stacked(value), part) for part in _PAIRS})
        elif name == "pairs" and value is not None:
            arrays.update({f"pairs_{part}": getattr(value, part) for part in _PAIRS})
        elif value is not None and name not in _LEFT_OUT:
            arrays[name] = np.asarray(value)
    said = _FORMAT if fields.get("pair_costs") is None else _FORMAT_OF_PAIR_COSTS
    write_atomically(path, array_writer(arrays, said, packed=True))


def _stacked(pair_costs: PairCosts) -> sparse.csr_array:
    """(B V, V) the pair costs of all budgets, one below the other."""
    total = next(matrix.shape[0] for matrix in pair_costs if matrix is not None)
    nothing = sparse.csr_array((total, total), dtype=np.int64)
    return sparse.csr_array(sparse.vstack([nothing if matrix is None else matrix for matrix in pair_costs]))


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
        if found.said is not None and found.said not in (_FORMAT, _FORMAT_OF_PAIR_COSTS):
            raise ValueError(f"it says that it is {found.said}")
        values: dict[str, Any] = dict(found.arrays)
        _refuse_other_types(values)
        if "pairs_data" in values:
            total = values["linear"].size
            values["pairs"] = _matrix("pairs", values, total, total)
        if "pair_costs_data" in values:
            total, budgets = values["linear"].size, values["limits"].size
            stacked = _matrix("pair_costs", values, budgets * total, total)
            values["pair_costs"] = [stacked[b * total : (b + 1) * total] for b in range(budgets)]
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


def _matrix(name: str, values: dict[str, Any], rows: int, total: int) -> sparse.csr_array:
    """Take the three arrays of a sparse matrix out of the values."""
    said = name.replace("_", " ")
    missing = [part for part in _PAIRS if f"{name}_{part}" not in values]
    if missing:
        raise ValueError(f"it lacks {name}_{missing[0]}")
    data, indices, indptr = (values.pop(f"{name}_{part}") for part in _PAIRS)
    # Scipy may narrow the index type, so out-of-range indices must be found first.
    if indptr.size != rows + 1 or indices.size != data.size:
        raise ValueError(f"its {said} have other numbers of rows, places and values than they should")
    if indices.size and (indices.min() < 0 or indices.max() >= total):
        raise ValueError(f"its {said} name choices beyond the {total} that there are")
    if indptr[0] != 0 or indptr[-1] > data.size or (np.diff(indptr.astype(np.int64)) < 0).any():
        raise ValueError(f"the rows of its {said} do not begin and end where they should")
    return sparse.csr_array((data, indices, indptr), shape=(rows, total))

"""Sensitivity tables on disk: one ``.npz`` file with a checksum, from which problems and plans are made.

The file holds the names and shapes of the network's tensors, not the network: a table is measured on one machine and
solved on another. What encoding searched for is left out, so applying a plan of a table that was read searches again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from qubo_compress._internal.arrays import Array, array_writer, read_arrays
from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.reader import opened, parsed_json, refused_as
from qubo_compress.errors import InvalidOption
from qubo_compress.network.layout_text import layout_from, layout_text
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.sensitivity.provenance import Provenance

if TYPE_CHECKING:
    from qubo_compress.sensitivity.table import SensitivityTable

WHAT = "a complete sensitivity table"

FORMAT = {"format": "qubo_compress table 1"}

_PAIRS = ("data", "indices", "indptr")

_AXES: Mapping[str, tuple[str, int]] = {
    "linear": ("f", 1), "costs": ("i", 2), "fixed_costs": ("i", 1), "allowed": ("b", 1), "constant": ("f", 0),
    "factor": ("f", 2), "divergence": ("f", 1), "pairs_data": ("f", 1), "pairs_indices": ("i", 1),
    "pairs_indptr": ("i", 1), "said": ("u", 1), "payloads": ("u", 1), "payload_ends": ("i", 1),
}  # fmt: skip
"""Name -> allowed kind of numbers, and the number of axes."""

_OPTIONAL = {"factor", "divergence", *(f"pairs_{part}" for part in _PAIRS)}


def write_table(path: str | Path, table: SensitivityTable) -> None:
    """Write a table, atomically and without pickle.

    Raises:
        InvalidOption: for a table about channels, which holds the network itself.
        StorageError: when the file cannot be written.
    """
    if table.removals is not None or table.remainder is not None:
        raise InvalidOption(
            "a table about channels holds the network and its examples, and cannot be saved: give qc.measure or "
            "qc.compress a cache= folder, which a later call with the same arguments resumes from"
        )
    owners, payloads = list(table.payloads), list(table.payloads.values())
    said = {
        "menu": table.menu_names,
        "choices": table.choices,
        "costs": list(table.costs),
        "fixed_costs": list(table.fixed_costs),
        "kept_because": dict(table.kept_because),
        "payloads": owners,
        "provenance": asdict(table.provenance),
        "layout": layout_text(table.layout),
    }
    arrays: dict[str, Array] = {
        "said": np.frombuffer(json.dumps(said).encode(), dtype=np.uint8),
        "linear": table.linear,
        "costs": np.stack([table.costs[name] for name in table.costs]),
        "fixed_costs": np.array([int(value) for value in table.fixed_costs.values()], dtype=np.int64),
        "allowed": table.allowed,
        "constant": np.array(table.constant),
        "payloads": np.frombuffer(b"".join(payloads), dtype=np.uint8),
        "payload_ends": np.cumsum([len(data) for data in payloads], dtype=np.int64),
    }
    arrays |= {name: getattr(table, name) for name in ("factor", "divergence") if getattr(table, name) is not None}
    if table.pairs is not None:
        arrays |= {f"pairs_{part}": getattr(table.pairs, part) for part in _PAIRS}
    write_atomically(path, array_writer(arrays, FORMAT, packed=True))


def read_table(path: str | Path) -> dict[str, Any]:
    """The fields of a table, checked.

    Raises:
        CorruptArtifact: when the file is not a complete table, or was altered.
        StorageError: when it cannot be read.
        FileNotFoundError: when there is no file.
    """
    with opened(path, "a sensitivity table") as handle, refused_as(path, WHAT, "measure again"):
        found = read_arrays(handle)
        if found.said != FORMAT:
            raise ValueError(f"it says that it is {found.said}")
        _refuse_other_types(found.arrays)
        said = parsed_json(found.arrays["said"].tobytes())
        values = _named(said, found.arrays)
        _refuse_contradictions(values)
        return values


def _refuse_other_types(arrays: Mapping[str, Array]) -> None:
    missing, unknown = set(_AXES) - _OPTIONAL - set(arrays), set(arrays) - set(_AXES)
    if missing or unknown:
        raise ValueError(f"it lacks {min(missing)}" if missing else f"{min(unknown)!r} is not known")
    for name, array in arrays.items():
        kind, axes = _AXES[name]
        if array.dtype.kind != kind or array.ndim != axes:
            raise ValueError(f"{name} is {array.dtype} along {array.ndim} axes")


def _named(said: Any, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """The table's fields from the text and the arrays."""
    if not isinstance(said, dict):
        raise ValueError("its text is JSON of something else")
    choices = tuple(_texts(offered) for offered in _listed(said["choices"]))
    costs, fixed = _texts(said["costs"]), _texts(said["fixed_costs"])
    if (len(costs), len(fixed)) != (len(arrays["costs"]), arrays["fixed_costs"].size):
        raise ValueError("it has other costs than it names")
    kept_because = said["kept_because"]
    if not isinstance(kept_because, dict):
        raise ValueError("its reasons are no table")
    _texts(list(kept_because.values()))
    return {
        "layout": layout_from(said["layout"]),
        "menu_names": _texts(said["menu"]),
        "choices": choices,
        "linear": arrays["linear"],
        "costs": dict(zip(costs, arrays["costs"], strict=True)),
        "fixed_costs": dict(zip(fixed, arrays["fixed_costs"].tolist(), strict=True)),
        "provenance": _provenance(said["provenance"]),
        "factor": arrays.get("factor"),
        "pairs": _pairs(arrays),
        "constant": float(arrays["constant"]),
        "divergence": arrays.get("divergence"),
        "allowed": arrays["allowed"],
        "payloads": _payloads(said["payloads"], arrays),
        "kept_because": kept_because,
    }


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list is no list")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not all(isinstance(text, str) for text in _listed(value)):
        raise ValueError("a name is no text")
    return tuple(value)


def _provenance(value: Any) -> Provenance:
    kinds = {"str": str, "int": int, "float": (int, float)}
    known = {field.name: kinds[str(field.type)] for field in fields(Provenance)}
    if not isinstance(value, dict) or set(value) != set(known):
        raise ValueError("it does not say how it was measured")
    for name, kind in known.items():
        if not isinstance(value[name], kind) or isinstance(value[name], bool):  # type: ignore[arg-type]
            raise ValueError(f"its {name} cannot be {value[name]!r}")
    return Provenance(**value)


def _pairs(arrays: Mapping[str, Array]) -> sparse.csr_array | None:
    held = [f"pairs_{part}" in arrays for part in _PAIRS]
    if not any(held):
        return None
    if not all(held):
        raise ValueError("a part of its pairs is missing")
    total = arrays["linear"].size
    data, indices, indptr = (arrays[f"pairs_{part}"] for part in _PAIRS)
    steps = np.diff(indptr.astype(np.int64))
    whole = indptr.size == total + 1 and indices.size == data.size and indptr[0] == 0 and indptr[-1] == data.size
    if not whole or (steps < 0).any() or (indices.size and not 0 <= indices.min() <= indices.max() < total):
        raise ValueError("the rows of its pairs do not begin and end where they should")
    return sparse.csr_array((data, indices, indptr), shape=(total, total))


def _payloads(owners: Any, arrays: Mapping[str, Array]) -> dict[tuple[str, str], bytes]:
    names: Sequence[tuple[str, ...]] = [_texts(owner) for owner in _listed(owners)]
    ends, data = arrays["payload_ends"].tolist(), arrays["payloads"].tobytes()
    starts = [0, *ends]
    whole = starts[-1] == len(data) and all(a <= b for a, b in zip(starts[:-1], ends, strict=True))
    if not whole or len(names) != len(ends) or not all(len(owner) == 2 for owner in names):
        raise ValueError("the bytes of its choices do not begin and end where they should")
    return {(group, name): data[a:b] for (group, name), a, b in zip(names, starts[:-1], ends, strict=True)}


def _refuse_contradictions(values: Mapping[str, Any]) -> None:
    """Refuse fields that do not agree with each other, by the checks of a choice problem of theirs."""
    layout, choices, menu, costs = (values[name] for name in ("layout", "choices", "menu_names", "costs"))
    if len(choices) != len(layout.groups):
        raise ValueError(f"it has choices of {len(choices)} groups and describes {len(layout.groups)}")
    absent = {name for offered in choices for name in offered} - set(menu)
    if absent or len(set(menu)) < len(menu) or any(len(set(offered)) < len(offered) for offered in choices):
        raise ValueError(f"{min(absent)!r} is not on its menu" if absent else "it offers a choice twice")
    if "bytes" not in costs or not set(costs) >= set(values["fixed_costs"]) or "bytes" not in values["fixed_costs"]:
        raise ValueError("it does not say what its choices cost")
    offsets = np.concatenate([[0], np.cumsum([len(offered) for offered in choices])]).astype(np.int64)
    total = values["linear"].size
    for name in ("allowed", "divergence"):
        if values[name] is not None and values[name].size != total:
            raise ValueError(f"its {name} is of other choices")
    problem = ChoiceProblem(
        linear=values["linear"],
        group_offsets=offsets,
        costs=np.stack(list(costs.values())),
        limits=np.full(len(costs), np.iinfo(np.int64).max // 4),
        fixed_costs=np.array([values["fixed_costs"].get(name, 0) for name in costs], dtype=np.int64),
        factor=values["factor"],
        pairs=values["pairs"],
        constant=values["constant"],
    )
    if not np.logical_or.reduceat(values["allowed"], problem.group_offsets[:-1]).all():
        raise ValueError("a group has no choice that is allowed")

"""The fields of a table of fewer choices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from qubo_compress.errors import InvalidMenu, unknown_name
from qubo_compress.menu.storage.file_format import fixed_bytes

if TYPE_CHECKING:
    from qubo_compress.sensitivity.table import SensitivityTable


def fewer_choices(table: SensitivityTable, names: Iterable[str]) -> dict[str, Any]:
    """Fields that differ when the menu has only some names; see :meth:`SensitivityTable.narrowed`.

    Raises:
        UnknownName: when a name is not on this table's menu.
        InvalidMenu: when a pinned group would lose its last open choice.
    """
    wanted = {*names, "keep"}
    unknown = sorted(wanted - set(table.menu_names))
    if unknown:
        raise unknown_name("choice", unknown[0], table.menu_names)
    menu_names = tuple(name for name in table.menu_names if name in wanted)
    index = np.flatnonzero([name in wanted for group in table.choices for name in group])
    choices = tuple(tuple(name for name in group if name in wanted) for group in table.choices)
    bounds = np.concatenate([[0], np.cumsum([len(group) for group in choices])])
    for name, start, stop in zip(table.group_names, bounds[:-1], bounds[1:], strict=True):
        if not table.allowed[index[start:stop]].any():
            raise InvalidMenu(f"{name!r} is pinned to choices that the narrower menu lacks; unpin it or keep them")
    return {
        "menu_names": menu_names,
        "choices": choices,
        "linear": table.linear[index],
        "costs": {name: values[index] for name, values in table.costs.items()},
        "fixed_costs": {**table.fixed_costs, "bytes": _fixed_bytes(table, menu_names)},
        "factor": None if table.factor is None else table.factor[index],
        "pairs": None if table.pairs is None else table.pairs[index][:, index],
        "divergence": None if table.divergence is None else table.divergence[index],
        "optimism": None if table.optimism is None else table.optimism[index],
        "allowed": table.allowed[index],
        "payloads": {key: data for key, data in table.payloads.items() if key[1] in wanted},
        "pair_costs": {name: values[index][:, index] for name, values in table.pair_costs.items()},
        "fits": None if table.fits is None else table.fits.select(index),
    }


def _fixed_bytes(table: SensitivityTable, menu_names: tuple[str, ...]) -> int:
    """Bytes of a file that no choice changes, with another menu."""
    return table.fixed_costs["bytes"] if table.removals else fixed_bytes(table.layout, menu_names)

"""Why a size is out of reach: which tensors cannot be compressed, their size, the reason, and what pins leave open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from qubo_compress.errors import InfeasibleBudget
from qubo_compress.network.groups import Kept, Layout, kept_text
from qubo_compress.problem.choice_problem import IntArray

if TYPE_CHECKING:
    from qubo_compress.sensitivity.table import SensitivityTable

ONLY_KEPT = "no choice of the menu suits it"
MOST_NAMED = 3
"""Pinned groups that a message names."""


@contextlib.contextmanager
def explained(
    layout: Layout,
    costs: Mapping[str, IntArray],
    fixed_costs: Mapping[str, int],
    offsets: IntArray,
    kept_because: Mapping[str, str],
) -> Iterator[None]:
    """Adds the ratio, and the tensors that are kept whatever is chosen, to an :class:`InfeasibleBudget` for bytes.

    Args:
        layout: of the network.
        costs: budget name -> (V,) cost.
        fixed_costs: budget name -> cost that no choice changes.
        offsets: (G + 1,) first choice of each group.
        kept_because: group name -> why its menu has only ``keep``.
    """
    try:
        yield
    except InfeasibleBudget as error:
        smallest = int(fixed_costs["bytes"] + np.minimum.reduceat(costs["bytes"], offsets[:-1]).sum())
        if error.smallest != smallest:
            raise
        raise InfeasibleBudget(
            f"{error}. {_as_ratio(layout, smallest)}{_kept(layout, smallest, offsets, kept_because)}", error.smallest
        ) from None  # the new error repeats the first one's text


def size_note(table: SensitivityTable, costs: IntArray, fixed: int, limit: int) -> str:
    """The same facts, and what pins and minimum bits add, if the open choices take more bytes than a limit; else "".

    Args:
        table: of choices, and which are open.
        costs: (V,) bytes.
        fixed: bytes that no choice changes.
        limit: in bytes.
    """
    layout, offsets = table.layout, table.offsets
    least = np.minimum.reduceat(np.where(table.allowed, costs, np.iinfo(np.int64).max), offsets[:-1])
    smallest = int(fixed + least.sum())
    if smallest <= limit:
        return ""
    free = np.minimum.reduceat(costs, offsets[:-1])
    kept = _kept(layout, smallest, offsets, table.kept_because)
    return f". {_as_ratio(layout, smallest)}{kept}{_pinned(layout, least, free, smallest)}"


def _as_ratio(layout: Layout, smallest: int) -> str:
    return f"{smallest:,} bytes are a ratio of {layout.original_bytes / smallest:.2f}"


def _kept(layout: Layout, smallest: int, offsets: IntArray, kept_because: Mapping[str, str]) -> str:
    kept = [*layout.kept, *_never_changed(layout, offsets, kept_because)]
    total = sum(item.nbytes for item in kept)
    if not total:
        return ""
    share = f"{total:,} ({total / smallest:.0%})"
    return f". Of the {smallest:,} bytes, {share} are tensors kept as they are: {kept_text(kept)}"


def _pinned(layout: Layout, least: IntArray, free: IntArray, smallest: int) -> str:
    """Which groups pins and minimum bits make larger than they could be, and by how much in all."""
    more = least - free
    order = [index for index in np.argsort(-more, kind="stable") if more[index] > 0]
    if not order:
        return ""
    named = "; ".join(
        f"{layout.groups[index].name} ({least[index]:,} bytes instead of {free[index]:,})"
        for index in order[:MOST_NAMED]
    )
    rest = f"; and {len(order) - MOST_NAMED} more" if len(order) > MOST_NAMED else ""
    without = smallest - int(more.sum())
    return (
        f". Without pins and minimum bits, {without:,} bytes are reachable, a ratio of "
        f"{layout.original_bytes / without:.2f}; they enlarge {named}{rest}"
    )


def _never_changed(layout: Layout, offsets: IntArray, kept_because: Mapping[str, str]) -> list[Kept]:
    """Groups with a single choice."""
    single = np.diff(offsets) == 1
    return [
        Kept(group.name, kept_because.get(group.name, ONLY_KEPT), group.nbytes)
        for group, alone in zip(layout.groups, single, strict=True)
        if alone
    ]

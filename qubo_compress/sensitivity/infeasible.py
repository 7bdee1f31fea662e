"""Why a size is out of reach: which tensors cannot be compressed, their size, and the reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np

from qubo_compress.errors import InfeasibleBudget
from qubo_compress.network.groups import Kept, Layout, kept_text
from qubo_compress.problem.choice_problem import IntArray

ONLY_KEPT = "no choice of the menu suits it"


@contextlib.contextmanager
def explained(
    layout: Layout,
    costs: Mapping[str, IntArray],
    fixed_costs: Mapping[str, int],
    offsets: IntArray,
    kept_because: Mapping[str, str],
) -> Iterator[None]:
    """Adds the tensors that are kept whatever is chosen, and the reason, to an :class:`InfeasibleBudget` for bytes.

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
        kept = [*layout.kept, *_never_changed(layout, offsets, kept_because)]
        total = sum(item.nbytes for item in kept)
        if error.smallest != smallest or not total:
            raise
        raise InfeasibleBudget(
            f"{error}. Of the {smallest:,} bytes, {total:,} ({total / smallest:.0%}) are tensors kept as they are: "
            f"{kept_text(kept)}",
            smallest=error.smallest,
        ) from None  # the new error repeats the first one's text


def _never_changed(layout: Layout, offsets: IntArray, kept_because: Mapping[str, str]) -> list[Kept]:
    """Groups with a single choice."""
    single = np.diff(offsets) == 1
    return [
        Kept(group.name, kept_because.get(group.name, ONLY_KEPT), group.nbytes)
        for group, alone in zip(layout.groups, single, strict=True)
        if alone
    ]

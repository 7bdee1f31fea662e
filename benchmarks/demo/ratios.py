"""The ratio of the demo is chosen by a rule that looks at calibration examples only, and that is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import qubo_compress as qc
from benchmarks.demo.comparison import answers_of, labels_of

RATIOS = (6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 20.0)
LOST = 5.0
"""Points: five are more than 500 examples leave to chance, whose standard error is about one."""
RULE = (
    f"the smallest ratio of {', '.join(f'{ratio:g}' for ratio in RATIOS)} at which `uniform`, recovered, loses "
    f"{LOST:g} points or more on the calibration examples; test examples play no part"
)


@dataclass(frozen=True)
class Tried:
    """One ratio that was tried.

    Attributes:
        ratio: original bytes / bytes.
        lost: points of accuracy that ``uniform``, recovered, loses on the calibration examples.
    """

    ratio: float
    lost: float


def ratio_where_choosing_matters(
    network: qc.ExampleNetwork,
    table: qc.SensitivityTable,
    tell: Callable[[str], None],
    ratios: Sequence[float] = RATIOS,
    lost: float = LOST,
) -> list[Tried]:
    """The ratios tried in order; the last one is the demo's: the first that :data:`RULE` allows, or the largest."""
    labels, original = labels_of(network.calibration), answers_of(network.model, network.calibration)
    tried = []
    for ratio in ratios:
        plan = table.plan(qc.solve(table.problem(qc.Budget(ratio=ratio)), "uniform"))
        small = qc.recover(plan.apply(network.model), network.calibration, network.model, progress=False)
        fewer = (original == labels).sum() - (answers_of(small, network.calibration) == labels).sum()
        tried.append(Tried(ratio, 100.0 * float(fewer) / len(labels)))
        tell(f"  {ratio:g}x: uniform loses {tried[-1].lost:.1f} points on {len(labels):,} calibration examples")
        if tried[-1].lost >= lost:
            break
    return tried

"""Measurements of the zoo's networks, and the same figures written out plainly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.evaluation import outputs_of
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.network.discovery import discover
from qubo_compress.sensitivity.measure import measure_specimen
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.specimen import Around, Specimen
from qubo_compress.sensitivity.table import SensitivityTable

WHOLE_BATCHES = ("batch-dependent", "changeable")  # examples of these influence each other
SLICE = 10
MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5))


def tolerance(sample: Any) -> float:
    return 3e-2 if sample.name == "bfloat16" else 2e-5


def examples_of(sample: Any) -> Examples:
    return read_examples(sample.batches, batch_size=SLICE)


def measured(
    sample: Any, metric: Any = "gauss-newton", loss: Any = "cross-entropy", menu: qc.Menu = MENU,
    base: nn.Module | None = None, groups: Any = "layer", **options: Any,
) -> SensitivityTable:  # fmt: skip
    """Measured in slices of 10, 10 and 4, so that several choices share a pass; nothing is shrunk unless asked."""
    settings = Measurement(
        menu, metric, loss, groups, progress=False, **{"shrinkage": 0.0, "interactions": 1.0, **options}
    )
    specimen = Specimen(sample.model, discover(sample.model, groups), examples_of(sample), settings)
    return measure_specimen(specimen, None if base is None else Around(base))


def singles(table: SensitivityTable) -> list[tuple[int, str, str]]:
    """Number, group and name of every choice."""
    pairs = zip(table.group_names, table.choices, strict=True)
    flat = [(group, choice) for group, names in pairs for choice in names]
    return [(v, group, choice) for v, (group, choice) in enumerate(flat)]


def applied(table: SensitivityTable, sample: Any, *chosen: tuple[str, str]) -> nn.Module:
    return table.plan(dict(chosen)).apply(sample.model)


def all_outputs(model: nn.Module, examples: Examples) -> Tensor:
    return torch.cat(outputs_of(model, examples)).double()


def all_targets(examples: Examples) -> Tensor:
    return torch.cat([part.targets.reshape(-1) for part in examples.slices])

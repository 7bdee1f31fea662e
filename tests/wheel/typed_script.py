"""A user's typed script, outside of the repository: mypy must see the package's types (``py.typed``)."""

from __future__ import annotations

from typing import assert_type

from torch import Tensor, nn

import qubo_compress as qc


def small(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """Types come through the lazy public names."""
    budget = qc.Budget(ratio=8)
    result = qc.compress(model, batches, budget)
    assert_type(result, qc.CompressionResult)
    assert_type(result.plan.bytes, int)
    assert_type(result.save("small.safetensors"), int)
    table = qc.measure(model, batches)
    solution = qc.solve(table.problem(budget), "annealer", time_limit=1.0)
    assert_type(solution, qc.Solution)
    assert_type(qc.example_network().calibration, list[tuple[Tensor, Tensor]])
    qc.Budget(ration=8)  # type: ignore[call-arg]  # with --strict, an error that is not there would be reported
    return result.model

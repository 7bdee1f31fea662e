"""The order in which fine-tuning sees its examples."""

from __future__ import annotations

import pytest
import torch

from qubo_compress.calibration.examples import read_examples
from qubo_compress.recovery.training import BATCH, _orders, _steps


def test_sorted_examples_are_mixed_and_each_is_seen_once() -> None:
    labels = torch.arange(10).repeat_interleave(100)
    examples = read_examples([(torch.arange(1000.0)[:, None], labels)])
    steps = [part for parts in _steps(examples, torch.Generator().manual_seed(0)) for part in parts]
    assert [len(step) for step in steps].count(BATCH) == 1000 // BATCH
    seen = torch.cat([step.inputs[:, 0] for step in steps])  # type: ignore[index]
    assert sorted(seen.tolist()) == list(range(1000)) and seen.tolist() != list(range(1000))
    for step in steps:
        assert step.targets is not None and len(step.targets.unique()) == 10
        assert torch.equal(step.inputs[:, 0].long() // 100, step.targets)  # type: ignore[index]
    assert sum(float(step.weights.sum()) for step in steps) == pytest.approx(1.0)


def test_examples_of_other_shapes_are_batches_of_their_own() -> None:
    batches = [(torch.ones(130, 3), torch.zeros(130).long()), (torch.ones(7, 5), torch.zeros(7).long())]
    examples = read_examples(batches)
    steps = [part for parts in _steps(examples, torch.Generator().manual_seed(0)) for part in parts]
    assert sorted(len(step) for step in steps) == [5, 7, 125]
    assert len(_orders(examples, None)) == 3

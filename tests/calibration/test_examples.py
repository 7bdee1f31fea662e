"""Calibration batches: every form that is promised, and a clear word for everything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qubo_compress.calibration.evaluation import settle
from qubo_compress.calibration.examples import read_examples
from qubo_compress.errors import InvalidBatches

X, Y = torch.arange(60.0).reshape(20, 3), torch.arange(20) % 4


def test_every_form_of_batch_is_read() -> None:
    forms: list[Any] = [
        [X], [(X,)], [(X, Y)], [[X, Y]], [(X, Y, torch.ones(20))], [((X, X), Y)], [({"a": X, "b": X}, Y)], [{"a": X}],
        [(X, Y.tolist())], [(X, Y.numpy())], DataLoader(TensorDataset(X, Y), batch_size=6), ((X, Y), (X, Y)),
    ]  # fmt: skip
    for batches in forms:
        examples = read_examples(batches, max_examples=20)
        assert examples.count == 20
        assert sum(float(part.weights.sum()) for part in examples.slices) == pytest.approx(1.0)


def test_slices_are_even_and_in_order_whatever_the_batches() -> None:
    one, many = read_examples([(X, Y)], batch_size=8), read_examples(DataLoader(TensorDataset(X, Y), 3), batch_size=8)
    assert [len(part) for part in one.slices] == [len(part) for part in many.slices] == [8, 8, 4]
    assert torch.equal(torch.cat([part.inputs for part in many.slices]), X)
    assert one.signature() == many.signature()


def test_reading_stops_at_the_limit() -> None:
    seen = []

    class Counting:
        def __iter__(self) -> Iterator[Any]:
            for i in range(10):
                seen.append(i)
                yield X, Y

    assert read_examples(Counting(), max_examples=30).count == 30
    assert seen == [0, 1]


def test_empty_batches_among_others_are_left_out() -> None:
    examples = read_examples([(X[:0], Y[:0]), (X, Y), (X[:0, :1], Y[:0])])
    assert examples.count == 20 and all(len(part) for part in examples.slices)


def test_weights_are_normalised_over_all_batches() -> None:
    examples = read_examples([(X[:2], Y[:2], torch.tensor([1.0, 3.0])), (X[2:3], Y[2:3], [4])])
    assert torch.cat([part.weights for part in examples.slices]).tolist() == [0.125, 0.375, 0.5]


def test_splitting_keeps_order_and_normalises() -> None:
    first, last = read_examples([(X, Y)], batch_size=7).split(0.25)
    assert (first.count, last.count) == (15, 5)
    assert torch.equal(torch.cat([p.inputs for p in (*first.slices, *last.slices)]), X)
    assert all(sum(float(p.weights.sum()) for p in e.slices) == pytest.approx(1.0) for e in (first, last))


NAN = X.clone()
NAN[3, 1] = torch.nan


@pytest.mark.parametrize(
    "batches, said",
    [
        (iter([(X, Y)]), "one-shot"),
        ((batch for batch in [(X, Y)]), "one-shot generator"),
        (zip([X], [Y], strict=True), "one-shot zip"),
        ([], "no examples"),
        ([(X[:0], Y[:0])], "no examples"),
        (X, "iterable of batches"),
        ({"a": X}, "iterable of batches"),
        (7, "iterable of batches"),
        ([NAN], "NaN"),
        ([(X, Y[:5])], "first axis"),
        ([(X, Y, torch.ones(20), X)], "4 parts"),
        ([np.ones((3, 2))], "must be a Tensor"),
        ([("text", Y)], "must be a Tensor"),
        ([(X, ["a"] * 20)], "targets and weights"),
        ([X, (X, Y)], "some batches have targets"),
        ([(X, Y, -torch.ones(20))], "non-negative"),
        ([(X, Y, torch.zeros(20))], "sum to zero"),
        ([(torch.tensor(3.0), None)], "first axis"),
    ],
)
def test_wrong_batches_are_refused(batches: Any, said: str) -> None:
    with pytest.raises(InvalidBatches, match=said):
        read_examples(batches)


def test_errors_say_whose_batch_is_wrong_and_which() -> None:
    with pytest.raises(InvalidBatches, match=r"^batch 1: the inputs hold NaN"):
        read_examples([X, NAN])
    with pytest.raises(InvalidBatches, match=r"^validation batch 1: the inputs hold NaN"):
        read_examples([X, NAN], whose="validation")
    with pytest.raises(InvalidBatches, match=r"^validation batches is a one-shot"):
        read_examples(iter([X]), whose="validation")
    with pytest.raises(InvalidBatches, match=r"^validation batches holds no examples"):
        read_examples([], whose="validation")


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InvalidBatches, match="max_examples"):
        read_examples([X], max_examples=0)


def test_large_examples_come_in_smaller_slices() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)).eval()
    large = [(torch.zeros(20, 3, 224, 224), torch.zeros(20).long())] * 6
    pictures, _ = settle(net, read_examples(large))
    assert [len(part) for part in pictures.slices] == [106, 14]  # of 64 MB
    small = [(torch.zeros(30, 3, 32, 32), torch.zeros(30).long())] * 2
    assert [len(part) for part in settle(net, read_examples(small))[0].slices] == [60]


def test_one_batch_is_not_taken_for_two() -> None:
    inputs, targets = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(InvalidBatches, match=r"put it into a list: \[\(inputs, targets\)\]"):
        read_examples((inputs, targets))
    assert read_examples((inputs, inputs)).count == 8

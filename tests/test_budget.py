"""Budgets: one size, whole numbers, nothing out of range."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubo_compress import Budget
from qubo_compress.errors import InvalidBudget


@given(st.integers(1, 10**9), st.floats(1.0, 1000.0))
def test_a_ratio_is_never_undershot(original: int, ratio: float) -> None:
    limit = Budget(ratio=ratio).limits(original, 1)["bytes"]
    assert limit * ratio <= original * (1 + 1e-12) and (limit + 1) * ratio > original * (1 - 1e-12)


@given(st.integers(1, 10**8), st.floats(0.1, 32.0))
def test_bits_per_weight_are_never_exceeded(parameters: int, bits: float) -> None:
    limit = Budget(bits_per_weight=bits).limits(4 * parameters, parameters)["bytes"]
    assert 8 * limit / parameters <= bits * (1 + 1e-12)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({}, "none of them"),
        ({"macs": 5}, "none of them"),
        ({"ratio": 4, "bytes": 100}, "ratio, bytes"),
        ({"ratio": 0}, "positive"),
        ({"ratio": float("nan")}, "positive"),
        ({"bytes": -1}, "positive"),
        ({"bytes": 10.5}, "whole number"),
        ({"ratio": 4, "cells": 1.5}, "whole number"),
        ({"bits_per_weight": float("inf")}, "positive"),
        ({"ratio": "12"}, r"ratio must be a number or None; got '12' \(str\).*ratio=12"),
        ({"bytes": "10 kB"}, "bytes must be a number or None; got '10 kB'"),
        ({"ratio": 4, "macs": [5]}, r"macs must be a number or None; got \[5\] \(list\)"),
        ({"ratio": True}, "got True"),
        ({"ratio": 4, "harmful_flips": "1%"}, "got '1%'.*harmful_flips=0.01"),
        ({"ratio": 4, "harmful_flips": 1.5}, "0 to 1"),
        ({"ratio": 4, "harmful_flips": float("nan")}, "0 to 1"),
    ],
)
def test_wrong_budgets_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidBudget, match=said):
        Budget(**wrong)


def test_numbers_of_numpy_and_fractions_are_taken() -> None:
    assert Budget(ratio=np.float32(4)).limits(100, 1) == {"bytes": 25}
    assert Budget(bytes=np.int64(7), harmful_flips=np.float64(0.5)).limits(100, 1) == {
        "bytes": 7, "harmful_flips": 500_000,
    }  # fmt: skip
    assert Budget(ratio=Fraction(5, 2)).limits(100, 1) == {"bytes": 40}  # type: ignore[arg-type]


def test_named_limits_come_after_the_bytes() -> None:
    budget = Budget(bytes=100, cells=7, macs=3)
    assert list(budget.limits(1000, 10).items()) == [("bytes", 100), ("macs", 3), ("cells", 7)]
    assert budget.names == ("bytes", "macs", "cells")

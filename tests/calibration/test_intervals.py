"""Tests, corrections and intervals against what they are defined by."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qubo_compress.audits import corrected, mcnemar, paired_change, spearman
from qubo_compress.errors import InvalidBatches, UnknownName

p_values = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    exact = stats.binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained, mid=False) == pytest.approx(exact, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost) <= exact + 1e-12


@given(p_values)
def test_holm_is_monotone_and_between_raw_and_bonferroni(values: list[float]) -> None:
    found = corrected(values, "holm")
    assert all(v <= f <= min(1.0, v * len(values)) + 1e-12 for v, f in zip(values, found, strict=True))
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()


@given(p_values)
def test_benjamini_hochberg_is_scipys(values: list[float]) -> None:
    expected = stats.false_discovery_control(values, method="bh")
    assert corrected(values, "benjamini-hochberg") == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert corrected(values, "none") == tuple(values)


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    values = [0.001, 0.02, 0.015, 0.3]
    assert [p < 0.05 for p in corrected(values, "holm")] == [True, True, True, False]
    with pytest.raises(UnknownName, match="holm"):
        corrected(values, "hol")  # type: ignore[arg-type]


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 100))
def test_a_paired_interval_holds_the_change_nearly(lost: int, gained: int, kept: int) -> None:
    total = lost + gained + kept + 1
    low, high = paired_change(lost, gained, total)
    assert -1 <= low < high <= 1
    # Its middle is drawn to zero by the pairs that are added, by less than two of them.
    assert low - 2 / total <= (gained - lost) / total <= high + 2 / total
    wide = paired_change(10 * lost, 10 * gained, 10 * total)
    assert wide[1] - wide[0] < high - low


def test_paired_interval_covers() -> None:
    generator = np.random.default_rng(0)
    truth, hits = -0.05, 0
    for _ in range(400):
        lost, gained, _ = generator.multinomial(200, [0.1, 0.05, 0.85])
        low, high = paired_change(int(lost), int(gained), 200)
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_spearman() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=300)
    y = x + generator.normal(size=300)
    found = spearman(x, y)
    assert found.value == pytest.approx(float(stats.spearmanr(x, y).statistic))
    assert found.interval[0] < found.value < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.2
    assert spearman(x, 2 * x).value == pytest.approx(1.0)
    holed = np.where(np.arange(300) < 10, np.nan, x)
    assert spearman(holed, y).value == pytest.approx(spearman(x[10:], y[10:]).value) and spearman(holed, y).count == 290
    assert math.isnan(spearman(x, np.zeros(300)).value)
    with pytest.raises(InvalidBatches, match="same length"):
        spearman([1, 2, 3, 4], [1, 2, 3])

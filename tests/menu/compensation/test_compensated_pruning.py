"""Compensated pruning without codes: never a larger output error than pruning by magnitude in the same bytes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.menu.compensation.compensate import Compensate
from qubo_compress.menu.compensation.moments import output_error
from qubo_compress.menu.prune import Prune
from qubo_compress.network.groups import Group, Member


def _errors(rows: int, columns: int, seed: int, rank: int, sparsity: float) -> tuple[float, float]:
    """Output errors of compensated pruning and of pruning by magnitude, on correlated inputs of some rank."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(rank, columns, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    group = Group("w", "weight", (Member("w", (rows, columns), torch.float32),), "Linear")
    moments = Moments((inputs.T @ inputs / rank,), 0, rows)
    operator = Compensate(None, sparsity)
    ours = operator.encode_with(group, [weight], {InputMoments(): (moments,)})
    plain = Prune(sparsity).encode(group, [weight])
    assert ours.nonzeros == plain.nonzeros
    damped = moments.damped(0, operator.damping)
    first, second = (float(output_error(weight, packed.tensors()[0], damped).sum()) for packed in (ours, plain))
    return first, second


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 5),
    st.integers(2, 12),
    st.integers(0, 10_000),
    st.sampled_from([1, 3, 40]),
    st.sampled_from([0.3, 0.5, 0.8]),
)
def test_output_error_is_never_above_that_of_magnitudes(
    rows: int, columns: int, seed: int, rank: int, sparsity: float
) -> None:
    ours, plain = _errors(rows, columns, seed, rank, sparsity)
    assert ours <= plain * (1 + 1e-5) + 1e-12


def test_it_holds_where_saliencies_pick_the_worse_mask() -> None:
    found = [_errors(4, 10, seed, 40, 0.8) for seed in range(100)]
    assert all(ours <= plain * (1 + 1e-5) for ours, plain in found)

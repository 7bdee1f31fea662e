"""The order of coded tensors and the states of their trellises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qubo_compress.menu.coding.layout import NEXT_STATES, SECOND_QUANTIZER, CodeLayout, multiples, states_of

CODES = arrays.arrays(np.int64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-9, 9))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((16, 8, 3, 3), (16, 72, 9, 8)),
        ((10, 64), (10, 64, 1, 64)),
        ((32, 1, 3, 3), (32, 9, 9, 1)),
        ((7,), (1, 7, 1, 7)),
    ],
)
def test_layouts_of_layers(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    layout = CodeLayout.of(shape, 4)
    assert (layout.rows, layout.columns, layout.positions, layout.channels) == expected
    assert layout.size == np.prod(shape) and layout.states == 4


@pytest.mark.parametrize("bad", [(0, 4, 1, 0), (4, 0, 1, 0), (4, 10, 3, 0), (4, 4, 0, 0), (4, 4, 1, 3)])
def test_other_numbers_are_refused(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="tensor's|trellis"):
        CodeLayout(*bad)


@settings(deadline=None)
@given(CODES, st.sampled_from([4, 8]))
def test_columns_are_walked_from_state_zero_on_their_own(codes: np.ndarray, states: int) -> None:
    found = states_of(codes, states)
    for column in range(codes.shape[1]):
        state = 0
        for row in range(codes.shape[0]):
            assert found[row, column] == state
            state = NEXT_STATES[states][state, codes[row, column] % 2]
    assert np.array_equal(found[:, ::-1], states_of(codes[:, ::-1], states))


@settings(deadline=None)
@given(CODES, st.sampled_from([4, 8]))
def test_quantizers_have_even_multiples_or_odd_ones_and_zero(codes: np.ndarray, states: int) -> None:
    second = SECOND_QUANTIZER[states][states_of(codes, states)].astype(bool)
    found = multiples(codes, states)
    assert (found[~second] % 2 == 0).all() and ((found[second] % 2 == 1) | (found[second] == 0)).all()
    assert np.array_equal(np.sign(found), np.sign(codes))


@pytest.mark.parametrize("states", sorted(NEXT_STATES))
def test_every_state_is_reached_from_two(states: int) -> None:
    assert sorted(NEXT_STATES[states].reshape(-1)) == sorted([*range(states)] * 2)
    assert SECOND_QUANTIZER[states].sum() == states // 2


def test_plain_codes_have_no_states() -> None:
    codes = np.array([[1, 2], [3, 4]])
    assert not states_of(codes, 0).any() and np.array_equal(multiples(codes, 0), codes)
    assert states_of(codes[:0], 4).shape == (0, 2)
    with pytest.raises(ValueError, match="4 or 8"):
        states_of(codes, 5)

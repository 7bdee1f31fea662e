"""Codes on one even grid, for the entropy coder."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.coding.lattice import LARGEST_CODE, Lattice, LatticeTensors
from qubo_compress.menu.coding.writer import coded_bytes
from qubo_compress.menu.compensation.moments import output_error
from qubo_compress.network.groups import Group, Member


def moments_of(size: int, rows: int, generator: torch.Generator, mixing: float = 1.0) -> Moments:
    inputs = torch.randn(3 * size, size, generator=generator, dtype=torch.float64)
    mixed = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    inputs = inputs @ (mixing * mixed + (1 - mixing) * torch.eye(size, dtype=torch.float64))
    return Moments((inputs.T @ inputs / len(inputs),), 0, rows)


def stored(choice: Lattice, weight: Tensor, moments: Moments) -> LatticeTensors:
    group = Group("w", "weight", (Member("w", tuple(weight.shape), weight.dtype),), "Linear")
    return choice.encode_with(group, [weight], {InputMoments(): (moments,)})


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000), rows=st.integers(1, 6), size=st.integers(1, 9), step=st.floats(0.01, 5.0),
    rate=st.sampled_from([0.0, 0.5, 2.0]), scale=st.sampled_from([1e-7, 1.0, 1e6]),
)  # fmt: skip
def test_values_are_codes_times_one_step(
    seed: int, rows: int, size: int, step: float, rate: float, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(rows, size, generator=generator)
    part = stored(Lattice(step, rate), weight, moments_of(size, rows, generator)).parts[0]
    assert torch.equal(part.value(), part.codes.float() * part.step.float())
    assert int(part.codes.min()) == part.low >= -LARGEST_CODE and int(part.codes.max()) == part.high <= LARGEST_CODE
    if scale == 1.0:
        root = float(weight.square().mean().sqrt())
        assert float(part.step) == pytest.approx(max(step * root, float(weight.abs().max()) / LARGEST_CODE), rel=1e-3)


def test_never_worse_than_the_nearest_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, moments = torch.randn(24, 30, generator=generator), moments_of(30, 24, generator)
    damped = moments.damped(0, 0.01)
    for step in (0.3, 0.8, 1.5):
        packed = stored(Lattice(step), weight, moments)
        grid = float(packed.parts[0].step)
        error = float(output_error(weight, packed.tensors()[0], damped).sum())
        nearest = float(output_error(weight, torch.round(weight / grid) * grid, damped).sum())
        assert error < 0.7 * nearest


def test_the_rate_gives_up_error_for_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, moments = torch.randn(64, 72, generator=generator), moments_of(72, 64, generator, mixing=0.2)
    damped = moments.damped(0, 0.01)
    for step in (1.5, 2.2):
        found = [stored(Lattice(step, rate), weight, moments) for rate in (0.0, 0.5, 1.0, 2.0)]
        sizes = [len(coded_bytes(packed)) for packed in found]
        errors = [float(output_error(weight, packed.tensors()[0], damped).sum()) for packed in found]
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.9 * sizes[0]
        assert errors[1] < 1.02 * errors[0] < errors[2] * 1.02 < errors[3]


def test_bits_are_worth_their_price() -> None:
    """At equal bytes, a finer grid with a rate term has less error than a coarser one without."""
    generator = torch.Generator().manual_seed(1)
    weight, moments = torch.randn(60, 40, generator=generator), moments_of(40, 60, generator, mixing=0.3)
    damped = moments.damped(0, 0.01)

    def curve(rate: float) -> list[tuple[float, float]]:
        found = [stored(Lattice(step, rate), weight, moments) for step in (0.5, 0.7, 1.0, 1.4, 2.0)]
        return sorted(
            (len(coded_bytes(p)), math.log(float(output_error(weight, p.tensors()[0], damped).sum()))) for p in found
        )

    def at(points: list[tuple[float, float]], size: float) -> float:
        for (a, low), (b, high) in zip(points, points[1:], strict=False):
            if a <= size <= b:
                return low + (high - low) * (size - a) / (b - a)
        raise AssertionError(f"{size} is outside of {points}")

    free, paid = curve(0.0), curve(1.0)
    inside = [p for p in paid if free[0][0] <= p[0] <= free[-1][0]]
    assert len(inside) >= 2
    assert sum(error - at(free, size) for size, error in inside) < 0


def test_later_values_stay_on_the_grid() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 7, generator=generator)
    packed = stored(Lattice(0.8), weight, moments_of(7, 5, generator))
    size, low, high = packed.nbytes, packed.parts[0].low, packed.parts[0].high
    far = packed.project([torch.full((5, 7), 1e30)])
    assert far.nbytes == size and bool((far.parts[0].codes == high).all())
    assert bool((packed.project([torch.full((5, 7), -1e30)]).parts[0].codes == low).all())
    near = packed.project([weight])
    assert float((near.tensors()[0] - weight).abs().max()) <= 0.5001 * float(packed.parts[0].step)
    part = packed.parts[0]
    assert torch.equal(part.with_codes(torch.zeros(5, 7)).value(), torch.zeros(5, 7))
    assert torch.equal(part.with_steps(2 * part.steps()).value(), 2 * part.value())
    assert packed.nonzeros == int((packed.parts[0].codes != 0).sum())


def test_silent_inputs_and_empty_weights() -> None:
    dead = Moments((torch.zeros(4, 4, dtype=torch.float64),), 0, 3)
    zero = stored(Lattice(1.0, 1.0), torch.zeros(3, 4), dead)
    assert torch.equal(zero.tensors()[0], torch.zeros(3, 4)) and zero.nbytes == 6
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    grid = float(stored(Lattice(0.2), weight, dead).parts[0].step)
    assert torch.equal(stored(Lattice(0.2), weight, dead).tensors()[0], torch.round(weight / grid) * grid)


@pytest.mark.parametrize("options", [{"step": 0.0}, {"step": 1.0, "rate": -1.0}, {"step": float("nan")}, {"step": "1"}])
def test_wrong_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidMenu):
        Lattice(**options)  # type: ignore[arg-type]

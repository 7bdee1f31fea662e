"""The frequency domain: an orthonormal transform, bands without an index, masks with the promised rates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.frequency.bands import (
    Spectrum,
    band_counts,
    band_mask,
    band_rates,
    kernel_bands,
    kernel_basis,
)
from qubo_compress.menu.frequency.frequency import Frequency
from qubo_compress.menu.quantize import Quantize
from qubo_compress.network.groups import Group, Member

KERNELS = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


def group_of(*shape: int, dtype: torch.dtype = torch.float32, rows: tuple[int, int] | None = None) -> Group:
    return Group("w", "weight", (Member("w", shape, dtype, rows),), "Conv2d")


def random_kernels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth_kernels(filters: int, channels: int) -> torch.Tensor:
    """Kernels whose coefficients fall by a factor of 4 per band."""
    spectrum = Spectrum((3, 3))
    coefficients = random_kernels(filters * channels, 9) * 4.0 ** -torch.from_numpy(spectrum.band)
    return spectrum.synthesise(coefficients).reshape(filters, channels, 3, 3).float()


@settings(deadline=None, max_examples=40)
@given(KERNELS, st.integers(0, 1000))
def test_the_basis_is_the_cosine_transform(kernel: tuple[int, ...], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(3, *kernel))
    expected = scipy.fft.dctn(values, norm="ortho", axes=range(1, values.ndim))
    assert np.allclose(values.reshape(3, -1) @ kernel_basis(kernel).T, expected.reshape(3, -1))
    assert kernel_bands(kernel).max() == sum(size - 1 for size in kernel)


@settings(deadline=None, max_examples=30)
@given(KERNELS, st.integers(1, 12), st.integers(0, 1000))
def test_low_bands_are_a_projection(kernel: tuple[int, ...], bands: int, seed: int) -> None:
    spectrum, values = Spectrum(kernel, bands), random_kernels(2, 3, *kernel, seed=seed).double()
    projected = spectrum.synthesise(spectrum.analyse(values))
    again = spectrum.synthesise(spectrum.analyse(projected.reshape(values.shape)))
    assert torch.allclose(projected, again, atol=1e-12)
    left_out = values.reshape(projected.shape) - projected
    assert spectrum.analyse(left_out.reshape(values.shape)).abs().max() < 1e-12
    assert (np.diff(spectrum.band) >= 0).all()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=9),
    st.floats(0.01, 0.99),
    st.floats(0.2, 8.0),
    st.floats(0.2, 8.0),
)
def test_rates_of_the_bands_meet_the_share(sizes: list[int], share: float, first: float, second: float) -> None:
    counts = np.array(sizes)
    rates = band_rates(counts, share, (first, second))
    assert ((rates > 0) & (rates < 1)).all()
    assert float(counts @ rates) == pytest.approx(share * counts.sum(), rel=1e-6)
    if second <= 1.0 <= first:
        assert (np.diff(rates) >= -1e-12).all()
    survivors = max(1, round((1 - share) * counts.sum()))
    kept = band_counts(counts, survivors, (first, second))
    assert kept.sum() == survivors and (kept >= 0).all() and (kept <= counts).all()
    if 0 < survivors < counts.sum():
        wanted = counts * (1 - band_rates(counts, 1 - survivors / counts.sum(), (first, second)))
        assert (np.abs(kept - wanted) < 1).all()


def test_equal_shapes_prune_all_bands_alike() -> None:
    assert band_rates(np.array([4, 8, 12]), 0.3, (1.0, 1.0)) == pytest.approx([0.3] * 3)


@pytest.mark.parametrize("beta", [None, (1.0, 1.0), (3.0, 1.0)])
def test_the_largest_coefficients_of_a_band_survive(beta: tuple[float, float] | None) -> None:
    spectrum = Spectrum((3, 3))
    size = random_kernels(20, 9).abs()
    mask = band_mask(size, spectrum.band, 60, beta)
    assert int(mask.sum()) == 60
    for band in [None] if beta is None else range(5):
        columns = torch.from_numpy(spectrum.band == band) if band is not None else torch.ones(9, dtype=torch.bool)
        kept, gone = size[:, columns][mask[:, columns]], size[:, columns][~mask[:, columns]]
        assert not kept.numel() or not gone.numel() or kept.min() >= gone.max()


def test_high_bands_are_pruned_harder() -> None:
    packed = Frequency(sparsity=0.6, bits=8, beta=(3.0, 1.0)).encode(group_of(8, 6, 3, 3), [random_kernels(8, 6, 3, 3)])
    mask = packed.parts[0].survivors()
    assert mask is not None
    rates = [1 - float(mask[:, packed.parts[0].grid.spectrum.band == band].float().mean()) for band in range(5)]
    assert rates == sorted(rates) and rates[0] < 0.3 and rates[-1] > 0.7


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 2, 5, 3), (7, 3, 5), (4, 2, 3, 2, 3), (9, 1, 7, 7)])
def test_displacement_shrinks_with_bands_and_bits(shape: tuple[int, ...]) -> None:
    group, weight = group_of(*shape), random_kernels(*shape)
    bands = int(kernel_bands(shape[2:]).max()) + 1

    def displacement(**given: object) -> float:
        return float((Frequency(**given).encode(group, [weight]).tensors()[0] - weight).norm() / weight.norm())  # type: ignore[arg-type]

    by_band = [displacement(bands=count, bits=12) for count in range(1, bands + 1)]
    by_bits = [displacement(bits=bits) for bits in range(2, 14)]
    assert all(later < earlier for earlier, later in itertools.pairwise(by_band))
    assert all(later < earlier + 2**-11 for earlier, later in itertools.pairwise(by_bits))
    assert by_band[-1] == displacement(bits=12) < 2e-3 and by_bits[-1] < 1e-3


def test_errors_of_coefficients_are_errors_of_weights() -> None:
    weight = random_kernels(6, 4, 3, 3)
    packed = Frequency(bits=3).encode(group_of(6, 4, 3, 3), [weight])
    part = packed.parts[0]
    apart = part.grid.spectrum.analyse(weight) - part.coefficients()
    assert float(apart.norm()) == pytest.approx(float((packed.tensors()[0] - weight).norm()), rel=1e-5)


def test_bytes_are_those_of_the_formula() -> None:
    group, weight = group_of(16, 8, 3, 3), random_kernels(16, 8, 3, 3)
    sizes = {
        Frequency(bands=3, bits=4): 2 * 6 + 16 * 8 * 6 // 2,
        Frequency(bands=2, bits=3, scales="filter"): 2 * 16 + 16 * 8 * 3 * 3 // 8,
        Frequency(sparsity=0.5, bits=4): 2 * 9 + 1 + 144 + 576 // 2,
        Frequency(bits=6): 2 * 9 + 1152 * 6 // 8,
    }
    for operator, expected in sizes.items():
        assert operator.encode(group, [weight]).nbytes == expected, operator
    one = group_of(16, 8, 3, 3, rows=(4, 5))
    assert Frequency(bits=4).encode(one, [weight[4:5]]).nbytes == 2 + 72 // 2


@pytest.mark.parametrize("bits", [3, 4])
def test_smooth_kernels_are_better_pruned_in_the_frequency_domain(bits: int) -> None:
    group, weight = group_of(16, 12, 3, 3), smooth_kernels(16, 12)

    def stored(operator: qc.menu.Operator) -> tuple[int, float]:
        packed = operator.encode(group, [weight])
        return packed.nbytes, float((packed.tensors()[0] - weight).norm())

    spatial = stored(Quantize(bits, 0.5))
    for operator in (Frequency(sparsity=0.5, bits=bits), Frequency(bands=3, bits=bits)):
        size, error = stored(operator)
        assert size < spatial[0] and error < 0.8 * spatial[1], operator


def test_a_slope_moves_error_from_low_bands_to_high_ones() -> None:
    weight = random_kernels(16, 12, 3, 3)
    errors = []
    for slope in (0.0, 1.0):
        part = Frequency(bits=4, slope=slope, scales="filter").encode(group_of(16, 12, 3, 3), [weight]).parts[0]
        squares = ((part.grid.spectrum.analyse(weight) - part.coefficients()) ** 2).mean(0)
        errors.append((float(squares[0]), float(squares[-1])))
    assert errors[1][0] < errors[0][0] and errors[1][1] > 4 * errors[0][1]


@pytest.mark.parametrize("scales", ["filter", "frequency"])
@pytest.mark.parametrize("bits", [2, 4])
def test_projecting_keeps_the_mask(scales: str, bits: int) -> None:
    packed = Frequency(sparsity=0.6, bits=bits, scales=scales).encode(  # type: ignore[arg-type]
        group_of(6, 4, 3, 3), [random_kernels(6, 4, 3, 3)]
    )
    mask = packed.parts[0].survivors()
    for refit in (False, True):
        moved = packed.project([random_kernels(6, 4, 3, 3, seed=5)], refit).parts[0]
        assert torch.equal(moved.survivors(), mask)  # type: ignore[arg-type]
        assert not moved.coefficients()[~mask].any()  # type: ignore[operator]


def test_kernels_of_low_precision_give_their_coefficients_back() -> None:
    weight = random_kernels(6, 4, 3, 3).to(torch.bfloat16)
    packed = Frequency(bits=14).encode(group_of(6, 4, 3, 3, dtype=torch.bfloat16), [weight])
    again = packed.project(packed.tensors())
    assert torch.equal(again.parts[0].codes.codes, packed.parts[0].codes.codes)


def test_gradients_reach_the_coefficients() -> None:
    packed = Frequency(bands=2, bits=4).encode(group_of(6, 4, 3, 3), [random_kernels(6, 4, 3, 3)])
    coefficients = packed.parameters()[0].requires_grad_()
    assert coefficients.shape == (24, 3)
    wanted = random_kernels(6, 4, 3, 3, seed=1)
    (packed.assemble([coefficients])[0] * wanted).sum().backward()
    assert torch.allclose(coefficients.grad, packed.parts[0].grid.spectrum.analyse(wanted).float(), atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (group_of(6, 4), "matrix"),
        (group_of(6, 4, 1, 1), "kernels of 1 x 1"),
        (group_of(6, 4, 2, 2), "kernels of 2 x 2"),
        (group_of(6, 4, 1, 3), "3 bands only"),
        (Group("b", "bias", (Member("b", (4,), torch.float32),), "Conv2d"), "bias"),
        (Group("w", "weight", (*group_of(6, 4, 3, 3).members, *group_of(3, 6, 1, 1).members), "Conv2d"), "1 x 1"),
    ],
)
def test_what_does_not_suit_is_refused_with_the_reason(group: Group, said: str) -> None:
    reason = Frequency(bands=4, bits=4).refusal(group, [torch.zeros(m.shape) for m in group.members])
    assert reason is not None and said in reason


def test_wrong_settings_are_refused() -> None:
    for wrong in (
        "frequency(bits=1)",
        "frequency(bits=4,bands=0)",
        "frequency(bits=4,sparsity=1.0)",
        "frequency(bits=4,slope=9.0)",
        "frequency(bits=4,scales='row')",
        "frequency(bits=4,beta=(2.0,1.0))",
        "frequency(bits=4,sparsity=0.5,beta=(0.0,1.0))",
        "frequency(bits=4,sparsity=0.5,beta=2.0)",
        "frequency()",
    ):
        with pytest.raises(InvalidMenu):
            qc.menu.parse(wrong)
    assert qc.menu.parse("frequency(bands=3,bits=4)") == Frequency(bands=3, bits=4)

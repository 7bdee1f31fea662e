"""The frequencies of convolution kernels: orthonormal cosine transforms, bands, and rates of pruning per band.

Source: Liu, Xu, Peng, Xiong, "Frequency-Domain Dynamic Pruning for Convolutional Neural Networks", NeurIPS 2018.
The rates here differ: see :func:`band_rates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import numpy.typing as npt
import scipy.fft
import torch
from scipy.optimize import brentq
from torch import Tensor

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LARGEST_LOG_ODDS = 200.0


def kernel_basis(kernel: Sequence[int]) -> Floats:
    """(K, K) orthonormal basis of kernels with K = prod(kernel) values, one frequency per row.

    Row u of an axis of d values is a_u cos(pi (2 x + 1) u / (2 d)), a_0 = sqrt(1 / d), else sqrt(2 / d); several
    axes are transformed one after the other, so their bases multiply.

    Example:
        >>> basis = kernel_basis((3, 3))
        >>> bool(np.allclose(basis @ basis.T, np.eye(9))), bool(np.allclose(basis[0], 1 / 3))
        (True, True)
    """
    axes = [np.asarray(scipy.fft.dct(np.eye(size), norm="ortho", axis=0)) for size in kernel]
    return reduce(np.kron, axes)


def kernel_bands(kernel: Sequence[int]) -> Counts:
    """(K,) band u + v + ... of every frequency, in the order of the rows of :func:`kernel_basis`.

    Example:
        >>> kernel_bands((3, 3)).reshape(3, 3).tolist()
        [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    """
    return np.asarray(np.indices(tuple(kernel)).sum(0).ravel(), dtype=np.int64)


def band_rates(sizes: Counts, share: float, beta: tuple[float, float]) -> Floats:
    """(B,) share of each band's coefficients to prune, ``share`` over all bands.

    The odds of being pruned follow the shape of a Beta density in the band's frequency,

        r_b / (1 - r_b) = xi x_b^(lambda - 1) (1 - x_b)^(omega - 1),    x_b = (b + 1) / (B + 1),

    with xi such that sum_b n_b r_b = share sum_b n_b: the only root of an increasing function. The paper scales the
    rates themselves; odds keep every rate between 0 and 1 for any share. With lambda = omega = 1 all bands have the
    same rate; lambda > 1 = omega prunes high frequencies harder.

    Args:
        sizes: (B,) number of coefficients of each band; a band may be empty.
        share: between 0 and 1, both excluded.
        beta: (lambda, omega), both positive.

    Example:
        >>> rates = band_rates(np.array([1, 2, 3, 2, 1]), 0.5, (3.0, 1.0))
        >>> rates.round(2).tolist(), round(float(rates @ [1, 2, 3, 2, 1] / 9), 6)
        ([0.11, 0.34, 0.54, 0.67, 0.76], 0.5)
    """
    frequency = (np.arange(sizes.size) + 1) / (sizes.size + 1)
    log_shape = (beta[0] - 1) * np.log(frequency) + (beta[1] - 1) * np.log1p(-frequency)

    def rates(log_scale: float) -> Floats:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * (log_scale + log_shape))))

    reach = LARGEST_LOG_ODDS + float(np.abs(log_shape).max())
    root = brentq(lambda t: float(sizes @ rates(t)) - share * float(sizes.sum()), -reach, reach, xtol=1e-12)
    return rates(float(root))


def band_counts(sizes: Counts, survivors: int, beta: tuple[float, float]) -> Counts:
    """(B,) number of surviving coefficients of each band, ``survivors`` in total; by largest remainders.

    Example:
        >>> band_counts(np.array([10, 20, 30, 20, 10]), 45, (3.0, 1.0)).tolist()
        [9, 13, 14, 7, 2]
    """
    total = int(sizes.sum())
    if survivors >= total:
        return sizes.copy()
    wanted = sizes * (1 - band_rates(sizes, 1 - survivors / total, beta))
    counts = np.floor(wanted).astype(np.int64)
    order = np.argsort(-(wanted - counts), kind="stable")
    counts[order[: survivors - int(counts.sum())]] += 1
    return counts


def band_mask(importance: Tensor, bands: Counts, survivors: int, beta: tuple[float, float] | None) -> Tensor:
    """(kernels, frequencies) which coefficients survive: the most important ones overall, or of each band.

    Args:
        importance: (kernels, frequencies), such as magnitudes; ties go to the earlier coefficient.
        bands: (frequencies,) band of each column.
        survivors: how many survive.
        beta: shape of the rates per band, or None for one threshold for all bands.
    """
    flat = importance.reshape(-1)
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    if beta is None:
        mask[torch.argsort(flat, descending=True, stable=True)[:survivors]] = True
        return mask.reshape(importance.shape)
    band = torch.from_numpy(bands).repeat(importance.shape[0])
    sizes = np.bincount(bands) * importance.shape[0]
    for number, count in enumerate(band_counts(sizes, survivors, beta)):
        members = torch.nonzero(band == number).reshape(-1)
        order = torch.argsort(flat[members], descending=True, stable=True)
        mask[members[order[: int(count)]]] = True
    return mask.reshape(importance.shape)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The frequencies of one kernel shape that are kept, in order of their band.

    Args:
        kernel: sizes of its axes.
        bands: how many bands are kept, or None for all.

    Example:
        >>> spectrum = Spectrum((3, 3), bands=2)
        >>> spectrum.analyse(torch.ones(1, 3, 3)).round().int().tolist(), spectrum.band.tolist()
        ([[3, 0, 0]], [0, 1, 1])
    """

    kernel: tuple[int, ...]
    bands: int | None = None
    basis: Tensor = field(init=False, repr=False)
    band: Counts = field(init=False, repr=False)

    def __post_init__(self) -> None:
        band = kernel_bands(self.kernel)
        order = np.argsort(band, kind="stable")
        kept = order if self.bands is None else order[band[order] < self.bands]
        object.__setattr__(self, "band", band[kept])
        object.__setattr__(self, "basis", torch.from_numpy(kernel_basis(self.kernel)[kept]))

    @property
    def frequencies(self) -> int:
        """The number of frequencies that are kept."""
        return int(self.band.size)

    def analyse(self, values: Tensor) -> Tensor:
        """(kernels, frequencies) float64 coefficients of kernels, given in any shape that ends with the kernel's."""
        return values.detach().to("cpu", torch.float64).reshape(-1, self.basis.shape[1]) @ self.basis.T

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """(kernels, K) kernels of (kernels, frequencies) coefficients, in their dtype and differentiable."""
        return coefficients @ self.basis.to(coefficients.device, coefficients.dtype)

"""Shrinkage of a measured table, so that no optimiser can exploit the luck of a few examples.

- **Linear terms** shrink towards the divergence from the original network. A cross-entropy measured on few
  examples is negative for many choices by luck, and an optimiser finds the sum of that luck over all groups.
- **Rows** of the factor are never longer than the measured divergence of their choice alone allows, 1/2 |A|^2 <=
  divergence. The energy is then 1/2 |sum A|^2 plus terms that are not negative.
- **Pair energies** shrink towards zero by how well one half of the examples predicts the other half's, in the
  spirit of Ledoit & Wolf (2004), who shrink a sample covariance by its own sampling error. With a = A / |A| and P_1,
  P_2 the matrices a a^T of even and of odd examples, outside the groups' own blocks,

      rho = <P_1, P_2> / (|P_1| |P_2|),     tau = 2 rho / (1 + rho),

  where tau is the share of signal in the mean of both halves if rho is that in each (Spearman 1910, Brown 1910).
- **Slopes** of the loss, where they are kept, add up to no more than the loss that there is to lose.

With a number, such as ``interactions=1.0``, pair energies are taken as measured, without either limit; together with
``shrinkage=0.0``, none of this is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qubo_compress.errors import InvalidMenu
from qubo_compress.problem.choice_problem import FactorArray, FloatArray, IntArray

if TYPE_CHECKING:
    from qubo_compress.sensitivity.metric import Metric

SHRINKAGES = (0.0, 0.25, 0.5, 0.75, 1.0)

COMPARED_CHOICES = 1500
"""Most choices whose pair energies are compared between the halves: a sample is as good as millions of pairs."""

Half = npt.NDArray[np.bool_]


def check_shrinkage(shrinkage: float | str | None) -> None:
    """Raise :class:`InvalidMenu` unless it is a share, ``"auto"`` or None."""
    if shrinkage is None or shrinkage == "auto":
        return
    if isinstance(shrinkage, (int, float)) and not isinstance(shrinkage, bool) and 0 <= shrinkage <= 1:
        return
    raise InvalidMenu(f"shrinkage must be between 0 and 1, 'auto' or None; got {shrinkage!r}")


def refuse_unshrinkable(metric: Metric, shrinkage: float | str | None) -> None:
    """Refuse, before the measurement, a shrinkage that needs what the metric does not measure.

    Args:
        metric: states what it knows.
        shrinkage: as checked by :func:`check_shrinkage`.

    Raises:
        InvalidMenu: when the metric gives no divergences, or for ``"auto"`` no halves.
    """
    if shrinkage is None or shrinkage == 0.0:
        return
    name = metric.metric_name
    if not metric.knows_divergence:
        raise InvalidMenu(
            f"shrinkage={shrinkage!r} was given, and the metric {name!r} measures no divergences to shrink towards; "
            "leave shrinkage out, or use 'gauss-newton', 'pairwise', 'products', or measured_linear=True of "
            "'jacobian' and 'fisher'"
        )
    if shrinkage == "auto" and not metric.knows_halves:
        raise InvalidMenu(
            f"shrinkage='auto' needs measured linear terms on two halves of the examples, and the metric {name!r} "
            "measures none; give a number, or use 'gauss-newton', 'pairwise' or measured_linear=True"
        )


def check_interactions(interactions: bool | float) -> None:
    """Raise :class:`InvalidMenu` unless it is a truth value or a share."""
    if not (isinstance(interactions, (bool, int, float)) and 0 <= interactions <= 1):
        raise InvalidMenu(f"interactions must be True, False or a share between 0 and 1; got {interactions!r}")


def shrunk_linear(
    linear: FloatArray, divergence: FloatArray | None, halves: FloatArray | None, shrinkage: float | str | None
) -> tuple[float, FloatArray]:
    """Linear terms shrunk towards the divergence, and the share used.

    Args:
        linear: (V,) loss changes.
        divergence: (V,) divergences from the original network, or None if the metric measures none.
        halves: (2, 2, V) both on each half of the examples, or None.
        shrinkage: the share; ``"auto"``: the one with which each half of the examples predicts the other's loss best;
            None: 1 if there are divergences.

    Raises:
        InvalidMenu: when divergences or halves are needed and missing.
    """
    if shrinkage is None:
        shrinkage = 0.0 if divergence is None else 1.0
    if shrinkage == 0.0:
        return 0.0, linear
    if divergence is None:
        raise InvalidMenu("this metric measures no divergences to shrink towards; leave shrinkage out")
    if isinstance(shrinkage, str):
        if halves is None:
            raise InvalidMenu("shrinkage='auto' needs measured linear terms on two halves of the examples")
        errors = [_held_out_error(halves, share) for share in SHRINKAGES]
        shrinkage = SHRINKAGES[int(np.argmin(errors))]
    return float(shrinkage), (1 - shrinkage) * linear + shrinkage * divergence


def _held_out_error(halves: FloatArray, share: float) -> float:
    """Squared error of each half's shrunk terms as a prediction of the other half's loss; halves are (2, 2, V)."""
    linear, divergence = halves
    predicted = (1 - share) * linear + share * divergence
    return float(((predicted - linear[::-1]) ** 2).sum())


def limited_rows(features: FactorArray, divergence: FloatArray) -> FactorArray:
    """(V, columns) rows, shortened so that 1/2 |A|^2 is at most the divergence of their choice.

    Example:
        >>> limited_rows(np.array([[3.0, 4.0], [0.6, 0.8]], dtype=np.float32), np.array([2.0, 2.0])).tolist()
        [[1.2000000476837158, 1.600000023841858], [0.6000000238418579, 0.800000011920929]]
    """
    squares = np.einsum("vc,vc->v", features, features, dtype=np.float64)
    allowed = 2.0 * np.maximum(divergence, 0.0)
    over = squares > allowed
    if not over.any():
        return features
    factors = np.ones_like(squares)
    factors[over] = np.sqrt(allowed[over] / squares[over])
    return np.asarray(features * factors[:, None].astype(np.float32), dtype=np.float32)


def agreement(features: FactorArray, half: Half, offsets: IntArray, rng: np.random.Generator) -> float:
    """tau: how much the pair energies from these examples can be trusted, from 0 to 1.

    Args:
        features: (V, columns) rows.
        half: (columns,) whether a column belongs to the second half of the examples.
        offsets: (G + 1,) first choice of each group.
        rng: draws the choices that are compared, where there are many.

    Example:
        >>> rows = np.random.default_rng(0).standard_normal((40, 1)).astype(np.float32) @ np.ones((1, 8), np.float32)
        >>> same = agreement(rows, np.arange(8) % 2 == 1, np.arange(41), np.random.default_rng(0))
        >>> noise = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
        >>> luck = agreement(noise, np.arange(8) % 2 == 1, np.arange(41), np.random.default_rng(0))
        >>> bool(same > 0.99), bool(luck < 0.2)
        (True, True)
    """
    if not half.any() or half.all():
        return 0.0
    norms = np.sqrt(np.einsum("vc,vc->v", features, features, dtype=np.float64))
    changing, apart = _compared(norms, offsets, rng)
    rows = features[changing].astype(np.float64) / norms[changing, None]
    first, second = ((part @ part.T)[apart] for part in (rows[:, ~half], rows[:, half]))
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    if size == 0.0:
        return 0.0
    rho = max(0.0, float((first * second).sum()) / size)
    return min(1.0, 2.0 * rho / (1.0 + rho))


def _compared(norms: FloatArray, offsets: IntArray, rng: np.random.Generator) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Numbers of the choices to compare, and which pairs of them belong to different groups."""
    changing = np.flatnonzero(norms > 0)
    if changing.size > COMPARED_CHOICES:
        changing = np.sort(rng.choice(changing, COMPARED_CHOICES, replace=False))
    group = np.searchsorted(offsets, changing, side="right")
    return changing, group[:, None] != group[None, :]


def agreement_of_parts(
    parts: Sequence[FactorArray], shares: FloatArray, offsets: IntArray, rng: np.random.Generator
) -> float:
    """tau, from 0 to 1: how much rows from several parts of the examples can be trusted.

    With P_k the pair energies of part k, weighted by its share s_k of the examples, outside the groups' own blocks and
    divided by the norms of the joined rows as in :func:`agreement`,

        rho = sum_jk <P_j, P_k> / sum_jk |P_j| |P_k|   over j != k,    n = 1 / sum_k s_k^2,
        tau = n rho / (1 + (n - 1) rho),

    the Spearman-Brown formula for n parts; n is their number if they have equal sizes.

    Args:
        parts: for every part, (V, columns) rows.
        shares: (parts,) of the examples; they sum to one.
        offsets: (G + 1,) first choice of each group.
        rng: draws the choices that are compared, where there are many.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> signal = rng.standard_normal((40, 1)).astype(np.float32)
        >>> noisy = [np.hstack([signal, 0.5 * rng.standard_normal((40, 1), dtype=np.float32)]) for _ in range(4)]
        >>> two, four = (agreement_of_parts(noisy[:k], np.full(k, 1 / k), np.arange(41), rng) for k in (2, 4))
        >>> bool(0.6 < two < four < 1)
        True
    """
    squares = sum(s * np.einsum("vc,vc->v", p, p, dtype=np.float64) for s, p in zip(shares, parts, strict=True))
    norms = np.sqrt(np.asarray(squares))
    changing, apart = _compared(norms, offsets, rng)
    total = np.zeros(int(apart.sum()))
    own = sizes = 0.0
    for share, part in zip(shares, parts, strict=True):
        rows = part[changing].astype(np.float64) / norms[changing, None]
        energies = share * (rows @ rows.T)[apart]
        total += energies
        own += float((energies**2).sum())
        sizes += float(np.sqrt((energies**2).sum()))
    largest = sizes**2 - own
    if largest <= 0.0:
        return 0.0
    rho = max(0.0, float((total**2).sum()) - own) / largest
    effective = 1.0 / float((shares**2).sum())
    return min(1.0, effective * rho / (1.0 + (effective - 1.0) * rho))


def floored(linear: FloatArray, features: FactorArray | None, offsets: IntArray, most: float) -> FloatArray:
    """(V,) linear terms such that no energy is below ``-most``.

    The energy is 1/2 |sum A|^2 + sum (linear - 1/2 |A|^2), so only negative terms of the second sum can promise too
    much. They are scaled down together until the best of every group add up to ``-most``.

    Args:
        linear: (V,) loss changes.
        features: (V, columns) rows, or None.
        offsets: (G + 1,) first choice of each group.
        most: loss of the original network: no plan can save more.

    Example:
        >>> floored(np.array([0.0, -3.0, 0.0, -1.0, 2.0]), None, np.array([0, 2, 5]), 2.0).tolist()
        [0.0, -1.5, 0.0, -0.5, 2.0]
    """
    own = np.zeros_like(linear) if features is None else 0.5 * np.einsum("vc,vc->v", features, features, dtype=float)
    rest = linear - own
    promised = -float(np.minimum(np.minimum.reduceat(rest, offsets[:-1]), 0.0).sum())
    if promised <= max(most, 0.0):
        return linear
    return np.where(rest < 0, own + rest * (max(most, 0.0) / promised), linear)

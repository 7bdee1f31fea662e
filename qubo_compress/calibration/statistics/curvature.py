"""Curvature of the loss along single weights: the diagonal of the Gauss-Newton Hessian, exact or by random signs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qubo_compress.calibration.examples import Slice
from qubo_compress.calibration.statistics.statistic import Calibration, Statistic
from qubo_compress.errors import InvalidMenu
from qubo_compress.network.groups import Group
from qubo_compress.network.inputs import map_tensors

EXACT_CLASSES = 16
"""Most outputs for which ``method="auto"`` is exact."""

DROPPED = 1e-3
"""Share of the output Hessians' trace that the exact method leaves out: nearly all passes, nearly no curvature."""

METHODS = ("auto", "exact", "signs")


@dataclass(frozen=True)
class Curvature(Statistic):
    """(part shape) float32 per member: h_i = mean over examples of (J^T H J)_ii, J the outputs' Jacobian.

    H is the output Hessian of the loss; for cross-entropy H = diag(p) - p p^T, and h is also the diagonal of the
    Fisher matrix with labels drawn from the network. With H = sum_k l_k u_k u_k^T,

        h_i = mean over examples of sum_k l_k ((J^T u_k)_i)^2,

    one backward pass per example and direction. The smallest l_k are left out until they make up a thousandth of
    the trace of all examples: most images are classified so surely that they cost no pass. For outputs of many
    numbers, E[(sum over the examples of a chunk of J^T R^T s)^2] with R^T R = H and independent signs s is the sum
    of their diagonals (Hutchinson 1990, for a Gauss-Newton matrix): one pass per chunk and draw, with scatter,
    which falls with smaller chunks and more draws.

    Where the network is linear in the weights of one layer between the kinks of its activations, this is the
    diagonal of the Hessian itself, so that independent errors of variance v_i cost 1/2 sum h_i v_i in expectation.
    The bends of the activations add to that under losses whose gradient is not zero at the network's own outputs,
    such as cross-entropy; to a Kullback-Leibler divergence they add nothing in second order.

    Args:
        examples: how many of the calibration examples are used, the first ones.
        chunk: examples per backward pass.
        draws: passes over the examples, each with new signs.
        method: ``"exact"``, ``"signs"``, or ``"auto"``: exact for one row of at most 16 outputs per example.
            ``chunk`` and ``draws`` are of the signs.

    Raises:
        InvalidMenu: for values out of range.
    """

    statistic_name: ClassVar[str] = "curvature"
    examples: int = 1024
    chunk: int = 4
    draws: int = 4
    method: str = "auto"

    def __post_init__(self) -> None:
        for name in ("examples", "chunk", "draws"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise InvalidMenu(f"{name} of the curvature must be a whole number from 1; got {value!r}")
        if self.method not in METHODS:
            raise InvalidMenu(f"method of the curvature is one of {', '.join(METHODS)}; got {self.method!r}")

    def collect(self, calibration: Calibration, group: Group) -> tuple[Tensor, ...]:
        """The group's share of the curvature of the whole network, which is computed once."""
        whole = calibration.remembered("curvature", self, lambda: self._whole(calibration))
        found = []
        for member in group.members:
            value = whole.get(member.name)
            found.append(torch.zeros(member.part_shape) if value is None else member.part(value))
        return tuple(found)

    def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Squared normals, as skewed as real curvatures are."""
        return tuple(torch.randn(part.shape, generator=generator) ** 4 for part in parts)

    def _whole(self, calibration: Calibration) -> dict[str, Tensor]:
        """Parameter name -> curvature of every floating-point parameter."""
        tensors = calibration.tensors
        floating = {name: tensor for name, tensor in tensors.parameters().items() if tensor.is_floating_point()}
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in floating.items()}
        total = {name: torch.zeros(leaf.shape, dtype=torch.float64) for name, leaf in leaves.items()}

        with tensors.swapped(leaves), torch.enable_grad():
            exact = self._exact(calibration)
            chunks = self._chunks(calibration, 1 if exact else self.chunk)
            passes = (
                self._directions(calibration, chunks, leaves) if exact else self._signs(calibration, chunks, leaves)
            )
            for gradients in passes:
                for name, gradient in gradients.items():
                    total[name] += gradient.detach().cpu().double() ** 2
        weight = sum(float(part.weights.sum()) for part in chunks) * (1 if exact else self.draws)
        return {name: (value / max(weight, 1e-30)).float() for name, value in total.items()}

    def _exact(self, calibration: Calibration) -> bool:
        if self.method != "auto":
            return self.method == "exact"
        part = self._chunks(calibration, 1)[0]
        with torch.no_grad():
            rows, classes = calibration.run(part.inputs).shape
        return rows == 1 and classes <= EXACT_CLASSES

    def _chunks(self, calibration: Calibration, size: int) -> list[Slice]:
        calibration.examples.refuse_parts("a menu that looks at the curvature")
        left, found = self.examples, []
        for part in calibration.examples.slices:
            for start in range(0, min(len(part), left), size):
                rows = slice(start, min(start + size, left, len(part)))
                targets = None if part.targets is None else part.targets[rows]
                inputs = map_tensors(part.inputs, lambda t, rows=rows: t[rows])
                found.append(Slice(inputs, targets, part.weights[rows]))
            left -= min(len(part), left)
        return found

    def _directions(
        self, calibration: Calibration, singles: list[Slice], leaves: dict[str, Tensor]
    ) -> Iterator[dict[str, Tensor]]:
        """sqrt(weight l_k) J^T u_k of every example and direction that counts, by parameter."""
        roots = [self._roots(calibration, part) for part in singles]
        sizes = torch.cat([root.square().sum(-1).flatten() for root in roots])
        ordered = sizes.double().sort().values
        small = ordered[ordered.cumsum(0) <= DROPPED * ordered.sum()]
        largest_dropped = float(small[-1]) if len(small) else 0.0
        for part, root in zip(singles, roots, strict=True):
            wanted = root[root.square().sum(-1) > largest_dropped]
            if not len(wanted):
                continue
            outputs = calibration.run(part.inputs).flatten()
            for direction in wanted:
                yield _gradients((outputs * direction).sum(), leaves)

    def _roots(self, calibration: Calibration, part: Slice) -> Tensor:
        """(M C, M C) sqrt(weight l_k) u_k of one example of M output rows, one direction a row."""
        with torch.no_grad():
            outputs = calibration.run(part.inputs)
            units = torch.eye(outputs.numel()).to(outputs).reshape(-1, *outputs.shape)
            columns = calibration.loss.features(units, outputs, part.targets)
            weights = calibration.examples.row_weights(part, outputs.shape[0]).to(outputs)
            columns = (columns * weights.sqrt()[:, None]).flatten(1)
            _, values, vectors = torch.linalg.svd(columns.T, full_matrices=False)
            root: Tensor = values[:, None] * vectors
            return root

    def _signs(
        self, calibration: Calibration, chunks: list[Slice], leaves: dict[str, Tensor]
    ) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(calibration.seed)
        for _ in range(self.draws):
            for part in chunks:
                yield self._drawn(calibration, part, leaves, generator)

    def _drawn(
        self, calibration: Calibration, part: Slice, leaves: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Sum over examples of sqrt(weight) J^T R^T s, by parameter."""
        outputs = calibration.run(part.inputs)
        fixed = outputs.detach()
        signs = 2.0 * torch.randint(0, 2, fixed.shape, generator=generator).to(fixed) - 1.0
        cotangent = calibration.loss.probe(fixed, part.targets, signs)
        weights = calibration.examples.row_weights(part, fixed.shape[0]).to(fixed)
        scalar = (outputs * cotangent * weights.sqrt()[:, None]).sum()
        return _gradients(scalar, leaves)


def _gradients(scalar: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of every leaf that the scalar depends on; the graph is kept for the next direction."""
    if not scalar.requires_grad:
        return {}
    names: list[Any] = list(leaves)
    found = torch.autograd.grad(scalar, [leaves[name] for name in names], allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}

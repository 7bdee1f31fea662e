"""Curvature of the loss along single weights: the diagonal of the Gauss-Newton Hessian, by random signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.examples import Slice, map_tensors
from qubo_compress.menu.groups import Group, state_entries
from qubo_compress.statistics.statistic import Calibration


class _CurvedLoss(Protocol):
    def features(self, change: Tensor, outputs: Tensor, targets: Tensor | None) -> Tensor: ...


@dataclass(frozen=True)
class Curvature:
    """(part shape) float32 per member: h_i = mean over examples of (J^T H J)_ii, J the outputs' Jacobian.

    H is the output Hessian of the loss; for cross-entropy H = diag(p) - p p^T, and h is also the diagonal of the
    Fisher matrix with labels drawn from the network. With R^T R = H and independent signs s of every example and
    output, E[(sum over the examples of a chunk of J^T R^T s)^2] is the sum of their diagonals (Hutchinson 1990,
    for a Gauss-Newton matrix): one backward pass per chunk, whatever modules the network is made of, and no
    label noise. Smaller chunks and more draws give less scatter; ``chunk=1`` has that of the signs alone.

    Where the network is linear in the weights of one layer between the kinks of its activations, this is the
    diagonal of the Hessian itself, so that independent errors of variance v_i cost 1/2 sum h_i v_i in expectation.

    Args:
        examples: how many of the calibration examples are used, the first ones.
        chunk: examples per backward pass.
        draws: passes over the examples, each with new signs.
    """

    statistic_name: ClassVar[str] = "curvature"
    examples: int = 1024
    chunk: int = 4
    draws: int = 4

    def __post_init__(self) -> None:
        for name in ("examples", "chunk", "draws"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise InvalidMenu(f"{name} of the curvature must be a whole number from 1; got {value!r}")

    def collect(self, calibration: Calibration, group: Group) -> tuple[Tensor, ...]:
        """The group's share of the curvature of the whole network, which is computed once."""
        whole = calibration.remembered("curvature", self, lambda: self._whole(calibration))
        found = []
        for member in group.members:
            value = whole.get(member.name, torch.zeros(member.shape))
            found.append(value if member.rows is None else value[member.rows[0] : member.rows[1]])
        return tuple(found)

    def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Squared normals, as skewed as real curvatures are."""
        return tuple(torch.randn(part.shape, generator=generator) ** 4 for part in parts)

    def _whole(self, calibration: Calibration) -> dict[str, Tensor]:
        """Parameter name -> curvature of every floating-point parameter."""
        entries = {
            name: entry
            for name, entry in state_entries(calibration.model)[0].items()
            if entry.is_parameter and entry.tensor.is_floating_point()
        }
        leaves = {name: entry.tensor.detach().clone().requires_grad_() for name, entry in entries.items()}
        places = [(*owner, leaves[name]) for name, entry in entries.items() for owner in entry.owners]
        total = {name: torch.zeros(leaf.shape, dtype=torch.float64) for name, leaf in leaves.items()}
        from qubo_compress.sensitivity.substitution import swapped  # imported late: sensitivity imports statistics

        generator = torch.Generator().manual_seed(calibration.seed)
        weight = 0.0
        with swapped(places), torch.enable_grad():
            for draw in range(self.draws):
                for part in self._chunks(calibration):
                    weight += float(part.weights.sum()) if draw == 0 else 0.0
                    for name, gradient in self._drawn(calibration, part, leaves, generator).items():
                        total[name] += gradient.detach().cpu().double() ** 2
        return {name: (value / max(weight * self.draws, 1e-30)).float() for name, value in total.items()}

    def _chunks(self, calibration: Calibration) -> list[Slice]:
        left, found = self.examples, []
        for part in calibration.examples.slices:
            for start in range(0, min(len(part), left), self.chunk):
                rows = slice(start, min(start + self.chunk, left, len(part)))
                targets = None if part.targets is None else part.targets[rows]
                inputs = map_tensors(part.inputs, lambda t, rows=rows: t[rows])
                found.append(Slice(inputs, targets, part.weights[rows]))
            left -= min(len(part), left)
        return found

    def _drawn(
        self, calibration: Calibration, part: Slice, leaves: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Sum over examples of sqrt(weight) J^T R^T s, by parameter."""
        outputs = calibration.run(part.inputs)
        fixed = outputs.detach()
        signs = 2.0 * torch.randint(0, 2, fixed.shape, generator=generator).to(fixed) - 1.0
        # R^T s is the gradient of s . R x, which is linear in x.
        point = torch.zeros_like(fixed).requires_grad_()
        product = (cast(_CurvedLoss, calibration.loss).features(point, fixed, part.targets) * signs).sum()
        cotangent = torch.autograd.grad(product, point)[0]
        weights = part.weights.to(fixed).repeat_interleave(fixed.shape[0] // len(part)) / (fixed.shape[0] // len(part))
        scalar = (outputs * cotangent * weights.sqrt()[:, None]).sum()
        if not scalar.requires_grad:
            return {}
        names: list[Any] = list(leaves)
        gradients = torch.autograd.grad(scalar, [leaves[name] for name in names], allow_unused=True)
        return {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}

"""How much the loss minds errors in each output of a layer: the output side of a Kronecker-factored curvature.

For a layer with outputs a (R, positions) the expected loss change of an output error e is about

    1/2 sum_r g_r mean |e_r|^2,     g_r = mean over positions and examples of (d loss / d a_r)^2,

with labels drawn from the network's own predictions (K-FAC, Martens & Grosse, ICML 2015, diagonal on the output side).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_compress.examples import map_tensors, tensors_of
from qubo_compress.menu.groups import WEIGHTED, Group, state_entries
from qubo_compress.statistics.statistic import Calibration


@dataclass(frozen=True)
class OutputSensitivity:
    """Gathers g_r of every row of every member; all layers in one pass.

    Args:
        count: examples that are looked at.
    """

    statistic_name: ClassVar[str] = "output-sensitivity"
    count: int = 512

    def collect(self, calibration: Calibration, group: Group) -> tuple[Tensor, ...]:
        """(rows,) float64 of every member, relative to the mean over the whole tensor; ones where nothing is known."""
        every = calibration.remembered(self.statistic_name, self.count, lambda: self._gathered(calibration))
        found = []
        for member in group.members:
            whole = every.get(member.name)
            if whole is None or not bool(torch.isfinite(whole).all()) or float(whole.mean()) <= 0:
                whole = torch.ones(member.shape[0], dtype=torch.float64)
            rows = whole if member.rows is None else whole[member.rows[0] : member.rows[1]]
            found.append(rows / whole.mean())
        return tuple(found)

    def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Log-normal sensitivities."""
        return tuple(
            torch.randn(member.part_shape[0], generator=generator, dtype=torch.float64).exp()
            for member in group.members
        )

    def _gathered(self, calibration: Calibration) -> dict[str, Tensor]:
        names: dict[int, str] = {}
        for name, entry in state_entries(calibration.model)[0].items():
            for module, attribute in entry.owners:
                if attribute == "weight" and isinstance(module, WEIGHTED):
                    names[id(module)] = name
        sums: dict[str, Tensor] = {}
        owners = {id(m): m for m in calibration.model.modules() if id(m) in names}
        handles = [m.register_forward_hook(_watching(sums, names[key])) for key, m in owners.items()]
        generator = torch.Generator().manual_seed(calibration.seed)
        left = self.count
        try:
            with torch.enable_grad():
                for part in calibration.examples.slices:
                    inputs = _tracked(map_tensors(part.inputs, lambda t: t[:left]))  # noqa: B023 - used at once
                    rows = calibration.run(inputs)
                    drawn = torch.multinomial(rows.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
                    value = functional.cross_entropy(rows, drawn.to(rows.device), reduction="sum")
                    leaves = [t for t in tensors_of(inputs) if t.requires_grad]
                    if leaves:
                        # Not backward(), which would leave gradients on the caller's parameters.
                        torch.autograd.grad(value, leaves, allow_unused=True)
                    left -= min(left, len(part))
                    if left == 0:
                        break
        finally:
            for handle in handles:
                handle.remove()
        return sums


def _tracked(inputs: Any) -> Any:
    """Inputs that gradients reach, so that they pass through layers without touching the parameters."""
    return map_tensors(inputs, lambda t: t.detach().requires_grad_() if t.is_floating_point() else t)


def _watching(sums: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, _: tuple[Any, ...], outputs: Tensor) -> None:
        if not outputs.requires_grad:
            return
        axis = -1 if isinstance(module, (nn.Linear, nn.Embedding)) else 1

        def square(gradient: Tensor) -> None:
            moved = gradient.detach().movedim(axis, 0).reshape(gradient.shape[axis], -1)
            found = (moved.double() ** 2).sum(1).cpu()
            sums[name] = sums[name] + found if name in sums else found

        outputs.register_hook(square)  # type: ignore[no-untyped-call]

    return hook

"""Fine-tuning within a plan: masks fixed, codes on the grid, the original network as teacher."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from qubo_compress.errors import NonFiniteLoss
from qubo_compress.examples import Examples, Slice, call, map_tensors, tensors_of
from qubo_compress.menu.fold import attribute
from qubo_compress.menu.operator import Packed
from qubo_compress.plan import Compression
from qubo_compress.sensitivity.losses import rows_of, target_rows
from qubo_compress.sensitivity.substitution import evaluating, substituted

BATCH = 125
LEARNING_RATE = 1e-3
STATISTICS = ("running_mean", "running_var")


@contextlib.contextmanager
def _gradients_off(model: nn.Module) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class _Latent:
    """Real-valued tensors behind the codes; gradients pass straight through the rounding."""

    def __init__(self, compression: Compression, small: nn.Module) -> None:
        device = next(small.parameters()).device
        self._compression = compression
        self._values: dict[str, list[Tensor]] = {}
        for group in compression.layout.groups:
            # Clones: some stored forms hand out the very tensors that they hold. Statistics are not trained.
            self._values[group.name] = [
                value.to(device, torch.float32).clone().requires_grad_(attribute(member.name) not in STATISTICS)
                if value.is_floating_point()
                else value.to(device)
                for member, value in zip(group.members, compression.stored[group.name].tensors(), strict=True)
            ]

    def leaves(self) -> list[Tensor]:
        return [v for values in self._values.values() for v in values if v.requires_grad]

    def packed(self) -> dict[str, Packed]:
        stored = self._compression.stored
        return {
            name: stored[name].project([v.detach() for v in values], refit=True)
            for name, values in self._values.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """First name -> whole tensor whose value is on the grid and whose gradient reaches the latent one."""
        packed = self.packed()
        whole: dict[str, Tensor] = {}
        for group in self._compression.layout.groups:
            stored = packed[group.name].tensors()
            rows: list[Tensor] = []
            for member, latent, value in zip(group.members, self._values[group.name], stored, strict=True):
                value = value.to(latent.device)
                passed = latent + (value.float() - latent).detach() if latent.requires_grad else value
                rows.append(passed.to(member.dtype))
            for member, value in zip(group.members, rows, strict=True):
                if member.rows is None:
                    whole[member.name] = value
                else:
                    former = whole.get(member.name)
                    whole[member.name] = value if former is None else torch.cat([former, value])
        return whole


def fine_tuned(
    small: nn.Module,
    compression: Compression,
    teacher: nn.Module,
    examples: Examples,
    *,
    epochs: int,
    seed: int,
    progress: bool,
    learning_rate: float = LEARNING_RATE,
) -> dict[str, Packed]:
    """Stored groups after training.

    The loss is the cross-entropy with the targets, where there are any, plus the KL divergence from the
    teacher. Normalisations stay in eval mode: their folded scale and shift are trained instead.
    """
    generator = torch.Generator().manual_seed(seed)
    with evaluating(small), evaluating(teacher), _gradients_off(small), _gradients_off(teacher), torch.enable_grad():
        latent = _Latent(compression, small)
        optimizer = torch.optim.Adam(latent.leaves(), lr=learning_rate)
        batches = _steps(examples, generator)
        total = epochs * len(batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, total))
        for _ in track(range(epochs), description="recovering", disable=not progress, transient=True):
            for part in _steps(examples, generator):
                optimizer.zero_grad(set_to_none=True)
                value = _loss(small, teacher, latent.tensors(), part)
                # Codes are whole numbers: rounding would hide a weight that is not a number.
                if not bool(torch.isfinite(value)):
                    raise NonFiniteLoss(f"fine-tuning diverged at learning rate {learning_rate}; use a smaller one")
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return latent.packed()


def _share_of_rate(step: int, total: int) -> float:
    """Linear warm-up over the first tenth of the steps, then half a cosine down to zero."""
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _steps(examples: Examples, generator: torch.Generator) -> list[Slice]:
    """All examples in a new order, in small batches."""
    steps = []
    for part in examples.slices:
        order = torch.randperm(len(part), generator=generator)
        for start in range(0, len(part), BATCH):
            rows = order[start : start + BATCH]
            pick: Callable[[Tensor], Tensor] = lambda t, rows=rows: t[rows.to(t.device)]  # type: ignore[misc]  # noqa: E731
            targets = None if part.targets is None else pick(part.targets)
            steps.append(Slice(map_tensors(part.inputs, pick), targets, pick(part.weights)))
    shuffled = torch.randperm(len(steps), generator=generator)
    return [steps[int(i)] for i in shuffled]


def _loss(small: nn.Module, teacher: nn.Module, tensors: dict[str, Tensor], part: Slice) -> Tensor:
    with substituted(small, tensors):
        found = rows_of(call(small, part.inputs))
    with torch.no_grad():
        goal = rows_of(call(teacher, part.inputs)).log_softmax(-1)
    weights = part.weights.to(found.device).float()
    weights = weights.repeat_interleave(found.shape[0] // len(part))
    weights = weights / weights.sum().clamp(min=1e-12)
    values = functional.kl_div(found.log_softmax(-1), goal, reduction="none", log_target=True).sum(-1)
    if part.targets is not None and tensors_of(part.inputs):
        values = values + functional.cross_entropy(found, target_rows(part.targets, found), reduction="none")
    return (values * weights).sum()

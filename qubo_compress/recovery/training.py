"""Fine-tuning within a plan: masks fixed, codes on the grid, the original network as teacher."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_compress.calibration.examples import Examples, Slice
from qubo_compress.errors import ForwardFailed, InvalidBatches, NonFiniteLoss
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group
from qubo_compress.network.inputs import tensors_of
from qubo_compress.network.losses.classification import target_rows
from qubo_compress.network.replay import run_model
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression
from qubo_compress.recovery.latent import Latent
from qubo_compress.sensitivity.progress import progress_bar

BATCH = 125
LEARNING_RATE = 1e-3


Objective = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(rows, teacher's rows, labels or None) -> (M,) loss per output row; rows are (M, C) float32."""

Align = Callable[[Tensor | None, Tensor], Tensor | None]
"""(targets, rows) -> the objective's labels."""

Disturbance = Callable[[Group, Stored], tuple[Tensor, ...] | None]
"""(group, stored) -> random errors of its members' values, redrawn in every step; None: no errors."""

Augmentation = Callable[[Any], Any]
"""(inputs of a batch, as the network takes them) -> as many others, as transforms of torchvision make them."""

Afterwards = Callable[[Latent, int, int], None]
"""(latent numbers, steps done, total steps): called before the first and after every step; may move masks."""


def distillation(found: Tensor, goal: Tensor, labels: Tensor | None) -> Tensor:
    """Cross-entropy with the labels, if there are any, plus the KL divergence from the teacher."""
    values = functional.kl_div(found.log_softmax(-1), goal.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    if labels is not None:
        values = values + functional.cross_entropy(found, labels, reduction="none")
    return values


@dataclass(frozen=True)
class Training:
    """How a compressed network is fine-tuned.

    Attributes:
        epochs: passes over the examples.
        seed: of the examples' order.
        learning_rate: of Adam, after a short warm-up; it falls to zero along a cosine.
        objective: what is minimised.
        align: targets -> the objective's labels; by default class indices or probabilities of each row.
        disturb: errors with which the stored values are read back.
        afterwards: called between two steps, for example to move masks.
        augment: changes the inputs of every batch, for both networks.
        frozen: names of the groups that stay as they are.
    """

    epochs: int
    seed: int = 0
    learning_rate: float = LEARNING_RATE
    objective: Objective = distillation
    align: Align | None = None
    disturb: Disturbance | None = None
    afterwards: Afterwards | None = None
    augment: Augmentation | None = None
    frozen: frozenset[str] = frozenset()

    @property
    def comparable(self) -> bool:
        """Whether networks before and after can be compared by the objective: the same masks, no errors."""
        return self.disturb is None and self.afterwards is None


def fine_tuned(
    small: nn.Module,
    compression: Compression,
    teacher: nn.Module,
    examples: Examples,
    training: Training,
    progress: bool,
) -> dict[str, Stored]:
    """The stored groups after training.

    Normalisations stay in eval mode: their folded scale and shift are trained instead.

    Args:
        small: a compressed module in eval mode, which this function may change.
        compression: the module's.
        teacher: a private copy of the original network.
        examples: on the device of both.
        training: the settings.
        progress: show a progress bar.
    """
    generator = torch.Generator().manual_seed(training.seed)
    for parameter in small.parameters():
        parameter.requires_grad_(False)  # the latent numbers are the leaves of the graph
    held = NetworkTensors(small)
    work = training.epochs * examples.count
    with torch.enable_grad(), _drawing(training), progress_bar(progress, "fine-tuning", work) as advance:
        latent = Latent(compression, held, training.frozen)
        optimizer = torch.optim.Adam(latent.leaves(), lr=training.learning_rate)
        rowwise = _Rowwise(training.objective, training.align or _class_labels)

        steps = _orders(examples, None)
        # Divide by the average weight of a full batch, so that a short last batch counts in proportion.
        usual = max(min(BATCH, examples.count), *(sum(map(len, rows)) for rows in steps)) / examples.count
        total = training.epochs * len(steps)

        def loss(tensors: dict[str, Tensor], part: Slice) -> Tensor:
            value = _loss(held, teacher, tensors, examples, augmented(part, training.augment), rowwise) / usual
            advance(len(part))
            return value

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, total))
        done = 0
        if training.afterwards is not None:
            training.afterwards(latent, done, total)
        for _ in range(training.epochs):
            for step in _steps(examples, generator):
                optimizer.zero_grad(set_to_none=True)
                with _named(done, total, examples.unit):
                    value = _descend(latent.tensors(training.disturb), step, loss)
                # Codes are whole numbers: rounding would hide a NaN weight.
                if not math.isfinite(value):
                    raise diverged(training)
                optimizer.step()
                schedule.step()
                done += 1
                if training.afterwards is not None:
                    training.afterwards(latent, done, total)
        return latent.packed()


def augmented(part: Slice, augment: Augmentation | None) -> Slice:
    """The examples with other inputs.

    Raises:
        InvalidBatches: when these are not inputs of as many examples.
    """
    if augment is None:
        return part
    with torch.no_grad():
        inputs = augment(part.inputs)
    before, after = ([tensor.shape[:1] for tensor in tensors_of(given)] for given in (part.inputs, inputs))
    if type(inputs) is not type(part.inputs) or before != after:
        raise InvalidBatches(
            f"augment was given a {type(part.inputs).__name__} of {len(part)} examples and returned a "
            f"{type(inputs).__name__} of another form; it must return inputs of as many examples, as the network takes "
            "them"
        )
    return replace(part, inputs=inputs)


@contextlib.contextmanager
def _drawing(training: Training) -> Iterator[None]:
    """Let an augmentation draw from torch's own generator what the seed says, and leave that as it was."""
    if training.augment is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        yield


def objective_of(model: nn.Module, teacher: nn.Module, examples: Examples, training: Training, progress: bool) -> float:
    """What fine-tuning minimises, on all examples, of a network as it is."""
    held, rowwise = NetworkTensors(model), _Rowwise(training.objective, training.align or _class_labels)
    total = 0.0
    with torch.no_grad(), progress_bar(progress, "checking the objective", examples.count) as advance:
        for part in examples.slices:
            total += float(_loss(held, teacher, {}, examples, part, rowwise))
            advance(len(part))
    return total


def diverged(training: Training) -> NonFiniteLoss:
    """The error for a network whose values are no longer finite."""
    return NonFiniteLoss(f"fine-tuning diverged at learning rate {training.learning_rate}; use a smaller one")


def _share_of_rate(step: int, total: int) -> float:
    """Linear warm-up over the first tenth of the steps, then half a cosine down to zero."""
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _descend(
    tensors: dict[str, Tensor], parts: Sequence[Slice], loss: Callable[[dict[str, Tensor], Slice], Tensor]
) -> float:
    """The loss of a step; adds up the gradient over its parts, then propagates it to the latent numbers."""
    if len(parts) == 1:
        value = loss(tensors, parts[0])
        if bool(torch.isfinite(value)):
            _backward([value])
        return float(value.detach())
    # The graph between latent and stored numbers is traversed once per step, not once per run.
    leaves = {name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in tensors.items()}
    found = 0.0
    for part in parts:
        value = loss(leaves, part)
        found += float(value.detach())
        if not math.isfinite(found):
            return found
        _backward([value])
    reached = [name for name, leaf in leaves.items() if leaf.grad is not None]
    _backward([tensors[name] for name in reached], [leaves[name].grad for name in reached])
    return found


def _backward(values: list[Tensor], gradients: list[Tensor | None] | None = None) -> None:
    """Take gradients; turn failures of the network's backward pass into this package's error."""
    try:
        torch.autograd.backward(values, gradients)
    except RuntimeError as cause:
        raise ForwardFailed(
            f"the backward pass raised {type(cause).__name__}: {cause}; the models are as they were. Check that "
            "gradients can pass: nothing changed in place that is needed again, and no detach() or numpy(); or use "
            "epochs=0, which needs no gradients"
        ) from cause


@contextlib.contextmanager
def _named(done: int, total: int, unit: int) -> Iterator[None]:
    """Add the step of the training to a network's failure; errors of the objective and of this package pass."""
    where = f"in step {done + 1} of {total} of fine-tuning (batches of up to {unit} examples, eval mode, gradients on)"
    try:
        yield
    except ForwardFailed as cause:
        raise ForwardFailed(f"{where}: {cause}") from cause.__cause__


def _steps(examples: Examples, generator: torch.Generator) -> Iterator[list[Slice]]:
    """All examples in a new order, in small batches; examples of one shape are mixed across their original batches.

    A batch consists of parts, on which the network runs one after another.
    """
    steps = _orders(examples, generator)
    for number in torch.randperm(len(steps), generator=generator).tolist():
        yield [examples.pick(rows) for rows in steps[number]]


def _orders(examples: Examples, generator: torch.Generator | None) -> list[list[Tensor]]:
    """Numbers of the examples in every part of every step; without a generator, in order."""
    if examples.whole:
        return _whole_orders(examples, generator)
    size = examples.together or BATCH
    return [list(torch.split(rows, size)) for order in _mixed(examples, generator) for rows in order]


def _whole_orders(examples: Examples, generator: torch.Generator | None) -> list[list[Tensor]]:
    """Unchanged slices, with about the usual number of examples in a step."""
    ends = np.cumsum([len(part) for part in examples.slices]).tolist()
    rows = [torch.arange(end - len(part), end) for end, part in zip(ends, examples.slices, strict=True)]
    order = range(len(rows)) if generator is None else torch.randperm(len(rows), generator=generator).tolist()
    each = max(1, BATCH // len(rows[0]))
    mixed = [rows[number] for number in order]
    return [mixed[start : start + each] for start in range(0, len(mixed), each)]


def _mixed(examples: Examples, generator: torch.Generator | None) -> list[list[Tensor]]:
    """Numbers of the examples in every batch, for each shape of examples; without a generator, in order."""
    alike: dict[str, list[Tensor]] = {}
    start = 0
    for part in examples.slices:
        alike.setdefault(part.form, []).append(torch.arange(start, start + len(part)))
        start += len(part)
    found = []
    for numbers in map(torch.cat, alike.values()):
        order = numbers if generator is None else numbers[torch.randperm(len(numbers), generator=generator)]
        found.append(list(torch.split(order, BATCH)))
    return found


def _loss(
    held: NetworkTensors,
    teacher: nn.Module,
    tensors: dict[str, Tensor],
    examples: Examples,
    part: Slice,
    rowwise: _Rowwise,
) -> Tensor:
    with held.swapped(tensors):
        found = examples.reading.rows(run_model(held.model, part.inputs))
    with torch.no_grad():
        goal = examples.reading.rows(run_model(teacher, part.inputs))
    weights = examples.row_weights(part, found.shape[0]).to(found.device).float()
    return (rowwise.objective(found, goal, rowwise.align(part.targets, found)) * weights).sum()


@dataclass(frozen=True)
class _Rowwise:
    """An objective with its labels."""

    objective: Objective
    align: Align


def _class_labels(targets: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if targets is None else target_rows(targets, rows)

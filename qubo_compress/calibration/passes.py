"""How many examples a network gets at once: the caller's batch is the unit.

The caller's batches fit on the caller's machine, and some networks accept only one batch size, or let the examples of
a batch influence each other. So a network runs on the batches as given, except:

- batches are joined up to :data:`MOST_JOINED` examples if the network returned the same for examples among others,
  and if the largest step of the run then takes at most :data:`JOINED_BYTES`: with small batches, small networks would
  spend their time between the layers;
- batches above :data:`MOST_JOINED` examples or ``SLICE_VALUES`` input values are split if the network returned the
  same for fewer examples;
- ``batch_size=`` of the public functions is used as given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qubo_compress.calibration.examples import MOST_JOINED, Examples, Slice, even_slices
from qubo_compress.errors import ForwardFailed, InvalidBatches, InvalidModel
from qubo_compress.network.inputs import Inputs, tensors_of
from qubo_compress.network.private import Joined, steady_answer
from qubo_compress.network.replay import run_model
from qubo_compress.network.scores import OutputReading
from qubo_compress.network.tensors import NetworkTensors

JOINED_BYTES = {"cpu": 64_000_000, "cuda": 2_000_000_000}
"""Batches are joined as long as no step of a run reads and writes more bytes than this, by kind of device."""

SLICE_VALUES = 4_000_000
"""Batches with more input values are split: 250 images of 224 x 224 take gigabytes in each layer."""

SETTLING_EXAMPLES = 2
"""Number of examples that a network is shown first."""

AMONG_OTHERS = 8
"""Number of examples, including the first ones, that it is shown next: the first ones should give the same."""

SAME = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Tolerance of equal outputs, as a share of the largest, by type: other batches sum in another order."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A network's answer to the first examples.

    Attributes:
        part: these examples, on the device of the network.
        answer: the return value of forward.
        reading: how outputs are read, settled on them.
        examples: all given examples, in the slices that the network should run on.
    """

    part: Slice
    answer: Any
    reading: OutputReading
    examples: Examples


class LargestStep(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, records the most bytes that an operation reads and writes, without the network's own tensors.

    Example:
        >>> with LargestStep(nn.Linear(3, 2)) as largest:
        ...     _ = torch.ones(4, 3) * 2
        >>> largest.bytes
        96
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers()) if not t.is_meta}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to keep torch.compile out of here, torch would import all of it, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count the bytes of its inputs and outputs."""
        named = dict(kwargs or {})
        result = func(*args, **named)
        held = {
            tensor.untyped_storage().data_ptr(): tensor.numel() * tensor.element_size()
            for tensor in tree_leaves([list(args), named, result])
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
        }
        self.bytes = max(self.bytes, sum(size for place, size in held.items() if place not in self._own))
        return result


def shown(model: nn.Module, examples: Examples) -> Shown:
    """Show a network the first examples, alone and among others, and slice all examples accordingly.

    Args:
        model: unchanged.
        examples: as read.

    Raises:
        InvalidModel: when the output is ambiguous, or two runs on the same examples differ.
        InvalidBatches: when the network takes only whole batches, and one of another size fails.
        ForwardFailed: when it does not run on its own first batch.
    """
    device = NetworkTensors(model).device
    if examples.whole:
        return _of_part(model, examples, examples.slices[0].to(device), examples.whole)
    others = examples.batch_size or SETTLING_EXAMPLES + 1
    few = _first(examples, max(1, min(SETTLING_EXAMPLES, _alike(examples) - 1, others - 1))).to(device)
    largest = LargestStep(model)
    sizes: list[int] = []

    def more(steps: LargestStep) -> Inputs | None:
        size = _joined_size(examples, steps.bytes // len(few), device)
        if examples.whole is not None or size <= len(few):
            return None
        sizes.extend((len(few), size))
        return _first(examples, size).to(device).inputs

    joined = Joined(largest, more, lambda answer, others: _same(examples.reading, few, answer, others))
    try:
        answer = steady_answer(model, few.inputs, run_model, joined)
        reading = examples.reading.settled_on(answer, len(few), tensors_of(few.inputs), few.targets)
    except (ForwardFailed, InvalidModel) as cause:
        if len(examples.slices[0]) == len(few) or not _about_sizes(cause):
            raise
        size = len(examples.slices[0])
        part = f"{len(few)} of the {size} examples of a batch" if size > len(few) else f"{len(few)} examples at once"
        why = f"with {part} it failed: {cause}"
        return _of_part(model, examples, examples.slices[0].to(device), why)
    if examples.whole is not None:
        return Shown(few, answer, reading, examples)
    if joined.reason:
        return _of_part(model, examples, examples.slices[0].to(device), joined.reason)
    found = replace(
        examples, whole="", cut=0, together=_together(examples, largest.bytes // len(few), device),
        shown=sum(sizes) or 2 * len(few),
    )  # fmt: skip
    if examples.batch_size is None:
        parts = list(examples.slices)
        found = replace(found, slices=tuple(even_slices(parts, found.most())))
    return Shown(few, answer, reading, found)


def _about_sizes(cause: ForwardFailed | InvalidModel) -> bool:
    """Whether another number of examples may help: forward failed, or the number of outputs did not match."""
    return isinstance(cause, ForwardFailed) or "must count the examples" in str(cause)


def _of_part(model: nn.Module, examples: Examples, part: Slice, why: str) -> Shown:
    """The network's answer to a whole batch, and the examples as batches that are never split or joined."""
    answer = steady_answer(model, part.inputs, run_model)
    reading = examples.reading.settled_on(answer, len(part), tensors_of(part.inputs), part.targets)
    if examples.whole:
        return Shown(part, answer, reading, examples)
    kept = examples.slices
    if examples.cut and len(kept) > 1:
        kept = kept[:-1]  # the part of a batch before max_examples
    found = examples.with_slices(kept, whole=why, together=max(len(p) for p in kept), cut=0)
    _refuse_other_sizes(model, found, part)
    return Shown(part, answer, reading, found)


def _refuse_other_sizes(model: nn.Module, examples: Examples, first: Slice) -> None:
    """Raise :class:`InvalidBatches` if a batch of another size, such as the last one, fails."""
    known = {len(first)}
    for number, part in enumerate(examples.slices):
        if len(part) in known:
            continue
        known.add(len(part))
        try:
            steady_answer(model, part.to(first.weights.device).inputs, run_model)
        except ForwardFailed as cause:
            raise InvalidBatches(
                f"batch {number} has {len(part)} examples, and this {type(model).__name__}, which runs on batches of "
                f"{len(first)}, fails on it: {cause.__cause__ or cause}; leave part batches out (a DataLoader with "
                "drop_last=True) or give batch_size="
            ) from cause.__cause__


def _same(reading: OutputReading, few: Slice, answer: Any, others: Any) -> bool:
    """Whether the rows of the first examples equal those without the others."""
    settled = reading.settled_on(answer, len(few), tensors_of(few.inputs), few.targets)
    tensor = settled.tensor(answer)
    alone, among = settled.rows(answer), settled.rows(others)
    if among.shape[0] <= alone.shape[0] or among.shape[1] != alone.shape[1]:
        return False
    largest = float(alone.nan_to_num(0.0, 0.0, 0.0).abs().max())
    tolerance = SAME.get(tensor.dtype, 1e-3) * max(largest, 1e-30)
    return torch.allclose(alone, among[: len(alone)], rtol=0.0, atol=tolerance, equal_nan=True)


def _alike(examples: Examples) -> int:
    """The number of leading examples that have the first one's form, and so can be joined with it."""
    form, count = examples.slices[0].form, 0
    for part in examples.slices:
        if part.form != form:
            break
        count += len(part)
    return count


def _first(examples: Examples, count: int) -> Slice:
    """The first examples, across batches."""
    return (
        examples.slices[0].rows(slice(0, count))
        if count <= len(examples.slices[0])
        else examples.pick(torch.arange(count))
    )


def _joined_size(examples: Examples, each: int, device: torch.device) -> int:
    """The number of examples to show at once: as many as a run will have, if more than a batch."""
    together = _together(examples, each, device)
    joined = together > examples.unit and examples.batch_size is None
    among = examples.batch_size or min(AMONG_OTHERS, max(examples.unit, SETTLING_EXAMPLES + 1))
    return min(_alike(examples), together if joined else min(AMONG_OTHERS, among))


def _together(examples: Examples, each: int, device: torch.device) -> int:
    """Most examples in one run by memory, at least the caller's batch."""
    if examples.batch_size is not None:
        return examples.batch_size
    first = examples.slices[0]
    values = sum(t.numel() for t in tensors_of(first.inputs)) // max(1, len(first))
    small = JOINED_BYTES.get(device.type, JOINED_BYTES["cpu"]) // max(1, each)
    return max(1, small, min(examples.unit, MOST_JOINED, SLICE_VALUES // max(1, values)))

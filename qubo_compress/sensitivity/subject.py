"""The subject of a measurement: a network, the choices of its groups and the examples, prepared and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import MOST_JOINED, Examples, Slice
from qubo_compress.calibration.statistics.statistic import Calibration
from qubo_compress.errors import ForwardFailed, InvalidBatches, InvalidModel, NonFiniteLoss, QuboCompressError
from qubo_compress.menu.menu import Menu
from qubo_compress.menu.operator import Operator
from qubo_compress.network.calls import WeightCall, weight_calls, why_unseen
from qubo_compress.network.groups import Group, Layout, kept_text, state_entries
from qubo_compress.network.inputs import map_tensors
from qubo_compress.network.losses.classification import Loss
from qubo_compress.network.losses.custom import CallableLoss
from qubo_compress.network.replay import CallTrace, run_model, trace_calls
from qubo_compress.sensitivity.cache import UnitCache
from qubo_compress.sensitivity.reach import unreached_groups
from qubo_compress.sensitivity.task import PROBE_EXAMPLES, MeasureTask, base_outputs

logger = logging.getLogger(__name__)

ROWS_PER_PASS = {"cpu": 256, "cuda": 8192}
"""Choices share a pass up to this many examples: more gains nothing on a CPU and fills the caches."""

MAX_COLUMNS = 65_536

Restriction = Callable[[int, dict[str, Any]], dict[str, Any]]
"""(group number, choice name -> operator) -> the choices that are left."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured.

    Attributes:
        base: the model around which is measured, in eval mode.
        original: the uncompressed network, from which ``base`` differs by a plan already applied, or ``base`` itself.
        examples: as they were read.
        menu: what is offered.
        layout: the groups.
        loss: the loss.
        restrict: may shorten a group's choices.
        payloads: stored bytes of choices that an earlier table made from data.
    """

    base: nn.Module
    original: nn.Module
    examples: Examples
    menu: Menu
    layout: Layout
    loss: Loss
    restrict: Restriction | None = None
    payloads: Mapping[tuple[str, str], bytes] | None = None


def prepared(subject: Subject, seed: int, interactions: bool, first_order: bool) -> tuple[MeasureTask, dict[str, str]]:
    """The task that a metric is given, without a cache, and why some groups are offered ``keep`` only.

    Called with both networks in eval mode and without gradients.

    Args:
        subject: what is measured.
        seed: of everything drawn.
        interactions: whether features are wanted.
        first_order: whether slopes of the loss are wanted.

    Raises:
        InvalidBatches, InvalidModel, NonFiniteLoss, ForwardFailed.
    """
    base, original, layout, loss = subject.base, subject.original, subject.layout, subject.loss
    if loss.needs_targets and not subject.examples.labelled:
        raise InvalidBatches("the loss needs targets; give (inputs, targets) batches or loss='kl'")
    originals = {name: entry.tensor.detach().cpu() for name, entry in state_entries(original)[0].items()}
    refuse_nothing_to_compress(layout)
    _refuse_bad_weights(original, layout)
    examples = _placed(base, subject.examples)
    reference = base_outputs(original, examples)
    outputs = reference if base is original else base_outputs(base, examples)
    _refuse_bad_outputs(reference, loss, examples)
    _refuse_blind_loss(reference, loss, examples)
    trace = _trace(base, examples)

    def rows(inputs: Any) -> Tensor:
        return examples.reading.rows(run_model(original, inputs))

    calls = _calls(base, examples, trace)
    unreached = unreached_groups(original, layout, examples, rows)
    choices = []
    for number, group in enumerate(layout.groups):
        parts = [member.part(originals[member.name]) for member in group.members]
        offered = _measurable(subject.menu.offered(group, parts), group, calls)
        if group.name in unreached:
            offered = {"keep": offered["keep"]}
        choices.append(offered if subject.restrict is None else subject.restrict(number, offered))
    task = MeasureTask(
        base=base, originals=originals, layout=layout, choices=choices, examples=examples, loss=loss,
        reference=reference, outputs=outputs, seed=seed,
        rows_per_pass=_rows_per_pass(outputs[0].device.type, examples), interactions=interactions,
        max_columns=MAX_COLUMNS, first_order=first_order, cache=UnitCache(None, {}), advance=lambda _: None,
        trace=trace, payloads=dict(subject.payloads or {}),
        calibration=Calibration(original, examples, loss, rows, seed),
    )  # fmt: skip
    return task, unreached


def _rows_per_pass(kind: str, examples: Examples) -> int:
    """Examples that share a pass: no more than memory allows, and one slice where slices are not joined."""
    return 1 if examples.whole else min(ROWS_PER_PASS.get(kind, 512), examples.together or MOST_JOINED)


def refuse_unfit(model: nn.Module, layout: Layout) -> None:
    """Raise :class:`InvalidModel` for what no measurement can be made of, before the network runs."""
    refuse_nothing_to_compress(layout)
    _refuse_without_values(model)
    for group in layout.groups:
        for member in group.members:
            if member.dtype.is_floating_point and member.dtype.itemsize < 2:
                raise InvalidModel(
                    f"{member.name} is stored as {str(member.dtype).removeprefix('torch.')}, in which nothing can be "
                    "computed; convert the network first, such as by model.to(torch.bfloat16), or keep that layer out "
                    "with groups=, a function that returns None for it"
                )


def refuse_nothing_to_compress(layout: Layout) -> None:
    """Raise :class:`InvalidModel` for a network all of whose tensors are kept, with the reasons."""
    if not layout.groups:
        raise InvalidModel(f"nothing in this network can be compressed: {kept_text(layout.kept)}")


def _refuse_without_values(model: nn.Module) -> None:
    """Raise :class:`InvalidModel` for tensors on the meta device, which have shapes and no values."""
    missing = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if missing:
        raise InvalidModel(
            f"tensors without values, on the meta device: {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' * (len(missing) > 3)}; load the weights on a real device first"
        )


def _measurable(
    offered: dict[str, Operator], group: Group, calls: Mapping[str, Sequence[WeightCall]]
) -> dict[str, Operator]:
    """The choices without those that must watch what a weight multiplies where this cannot be seen."""

    def watches(operator: Operator) -> bool:
        return any(getattr(need, "watches_inputs", False) for need in getattr(operator, "needs", ()))

    unseen = [name for name, operator in offered.items() if watches(operator)]
    reasons = [why_unseen(calls.get(member.name, ()), bool(member.inputs_first)) for member in group.members]
    reason = next((said for said in reasons if said is not None), None)
    if not unseen or reason is None:
        return offered
    logger.info("%s is not offered %s: %s", group.name, ", ".join(unseen), reason)
    return {name: operator for name, operator in offered.items() if name not in unseen}


def _refuse_bad_weights(model: nn.Module, layout: Layout) -> None:
    grouped = {member.name for group in layout.groups for member in group.members}
    for name, entry in state_entries(model)[0].items():
        tensor = entry.tensor.detach()
        # A buffer that no operator touches may hold infinities on purpose: attention masks do.
        checked = tensor.is_floating_point() and (entry.is_parameter or name in grouped)
        tensor = tensor.float() if tensor.dtype.itemsize < 2 else tensor
        if checked and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise InvalidModel(f"{name} holds {count} values that are NaN or infinite; load sound weights first")


def _refuse_bad_outputs(reference: list[Tensor], loss: Any, examples: Examples) -> None:
    for part, rows in zip(examples.slices, reference, strict=True):
        values = loss.values(rows, part.targets, rows)
        if not bool(torch.isfinite(rows).all()) or not bool(torch.isfinite(values).all()):
            raise NonFiniteLoss(
                "the uncompressed network's outputs or losses are NaN or infinite on the calibration data; "
                "check the weights, the inputs' normalisation and the targets"
            )


def _refuse_blind_loss(reference: list[Tensor], loss: Loss, examples: Examples) -> None:
    """A caller's loss may compare classes, too, and of a single output every choice would then cost nothing."""
    if not isinstance(loss, CallableLoss) or any(rows.shape[1] > 1 for rows in reference):
        return
    for part, rows in zip(examples.slices, reference, strict=True):
        values = loss.values(rows, part.targets, rows)
        others = (torch.zeros_like(rows), rows + 1, -rows)
        if not all(torch.equal(values, loss.values(other, part.targets, rows)) for other in others):
            return
    raise InvalidModel(
        "the loss given is the same whatever the network's one output is, as the cross-entropy is: the softmax of one "
        "column is constant; use loss='binary-cross-entropy' or 'squared-error', or 'auto', which chooses"
    )


def _placed(model: nn.Module, examples: Examples) -> Examples:
    """Examples on the model's device; images channels last on the CPU, where that gives the same outputs."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    examples = examples.to(device)
    first = examples.first(PROBE_EXAMPLES).inputs
    if device.type != "cpu" or not any(t.ndim == 4 for t in (first,) if isinstance(t, Tensor)):
        return examples

    def last(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    before = examples.reading.rows(run_model(model, first))
    try:
        after = examples.reading.rows(run_model(model, map_tensors(first, last)))
    except QuboCompressError:
        # A model that reshapes with view() accepts only the layout it was written for.
        return examples
    if before.shape != after.shape or not torch.allclose(before, after, rtol=1e-3, atol=1e-4):
        return examples
    moved = tuple(Slice(map_tensors(s.inputs, last), s.targets, s.weights) for s in examples.slices)
    return replace(examples, slices=moved)


def _trace(model: nn.Module, examples: Examples) -> CallTrace | None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return None
    try:
        return trace_calls(model, examples.first(PROBE_EXAMPLES).inputs, fewer=not examples.whole)
    except ForwardFailed as cause:
        logger.info("the network's modules cannot be followed (%s); the whole of it is run for every choice", cause)
        return None


def _calls(model: nn.Module, examples: Examples, trace: CallTrace | None) -> Mapping[str, Sequence[WeightCall]]:
    """By name, the calls of the functions that are given that parameter, also where modules cannot be followed."""
    if trace is not None:
        return {name: [call for _, call in seen] for name, seen in trace.weights.items()}
    probe = examples.first(PROBE_EXAMPLES).inputs
    watched = {name: entry.tensor for name, entry in state_entries(model)[0].items() if entry.is_parameter}
    return weight_calls(lambda: run_model(model, probe), watched)

"""Makes the subject of a measurement: runs the networks, checks outputs and weights, offers choices."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import Examples, Slice
from qubo_compress.calibration.statistics.statistic import Calibration
from qubo_compress.errors import ForwardFailed, InvalidBatches, InvalidModel, NonFiniteLoss, QuboCompressError
from qubo_compress.menu.operator import Operator
from qubo_compress.network.calls import WeightCall, weight_calls, why_unseen
from qubo_compress.network.discovery import LOOKED_UP
from qubo_compress.network.groups import Group, Layout
from qubo_compress.network.inputs import map_tensors
from qubo_compress.network.losses.classification import Loss, make_loss
from qubo_compress.network.losses.custom import CallableLoss
from qubo_compress.network.replay import CallTrace, run_model, trace_calls
from qubo_compress.network.roundable import why_not_rounded
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.cache import UnitCache
from qubo_compress.sensitivity.choices import StoredChoices
from qubo_compress.sensitivity.reach import unreached_groups
from qubo_compress.sensitivity.specimen import Around, Specimen, refuse_nothing_to_compress
from qubo_compress.sensitivity.subject import PROBE_EXAMPLES, Subject, Work

logger = logging.getLogger(__name__)


def prepared(specimen: Specimen, around: Around | None = None) -> Subject:
    """The subject for a metric, without a cache.

    Both networks must be in eval mode, with gradients disabled.

    Raises:
        InvalidBatches, InvalidModel, NonFiniteLoss, ForwardFailed.
    """
    original, base = specimen.model, specimen.model if around is None else around.base
    loss = make_loss(specimen.loss)
    if loss.needs_targets and not specimen.examples.labelled:
        raise InvalidBatches("the loss needs targets; give (inputs, targets) batches or loss='kl'")
    refuse_nothing_to_compress(specimen.layout)
    tensors = NetworkTensors(original)
    _refuse_bad_weights(tensors, specimen.layout)
    examples = _placed(base, specimen.examples)
    reference = _outputs(original, examples)
    outputs = reference if around is None else _outputs(base, examples)
    _refuse_bad_outputs(reference, loss, examples)
    _refuse_blind_loss(reference, loss, examples)
    held = tensors if around is None else NetworkTensors(base)
    trace = _trace(base, examples)
    choices = _offered(specimen.on(examples), tensors, calls_of(held, examples, trace), around)
    work = Work(UnitCache(None, {}))
    return Subject(held, choices, examples, loss, reference, outputs, trace, specimen.settings, work)


def _offered(
    specimen: Specimen,
    original: NetworkTensors,
    calls: Mapping[str, Sequence[WeightCall]],
    around: Around | None,
) -> StoredChoices:
    """The choices of every group that can be measured."""
    examples, layout, settings = specimen.examples, specimen.layout, specimen.settings

    def rows(inputs: Any) -> Tensor:
        return examples.reading.rows(run_model(original.model, inputs))

    unreached = unreached_groups(original.model, layout, examples, rows)
    choices, menu = [], settings.offered
    suited = [menu.offered(group, original.parts(group)) for group in layout.groups]
    unrounded, unseen = _unrounded(specimen, original, suited), unseen_inputs(layout, calls)
    for number, group in enumerate(layout.groups):
        offered = _measurable(suited[number], group, unseen, unrounded)
        if group.name in unreached:
            offered = {"keep": offered["keep"]}
        choices.append(offered if around is None or around.restrict is None else around.restrict(number, offered))
    loss = make_loss(specimen.loss)
    calibration = Calibration(original.model, examples, loss, rows, settings.seed, frozenset(unseen))
    if around is None:
        return StoredChoices(layout, choices, original, calibration, None, unreached)
    return StoredChoices(layout, choices, original, calibration, around.payloads, unreached, around.optimism)


def _outputs(model: nn.Module, examples: Examples) -> list[Tensor]:
    """Output rows of a model, slice by slice."""
    return [examples.reading.rows(run_model(model, part.inputs)) for part in examples.slices]


def _measurable(
    offered: dict[str, Operator], group: Group, unseen: Mapping[str, str], unrounded: Mapping[str, str]
) -> dict[str, Operator]:
    """The choices, without those that need the inputs of a weight if these cannot be observed, or not rounded."""
    watching = [name for name, operator in offered.items() if any(need.watches_inputs for need in operator.needs)]
    blind = [name for name in watching if not offered[name].takes_unseen_inputs]
    rounding = [name for name in watching if offered[name].activation_bits]

    def why(reasons: Mapping[str, str]) -> str | None:
        return next((reasons[member.name] for member in group.members if member.name in reasons), None)

    for names, reason in ((blind, why(unseen)), (rounding, why(unrounded))):
        if names and reason is not None:
            logger.info("%s is not offered %s: %s", group.name, ", ".join(names), reason)
            offered = {name: operator for name, operator in offered.items() if name not in names}
    return offered


def unseen_inputs(layout: Layout, calls: Mapping[str, Sequence[WeightCall]]) -> dict[str, str]:
    """Name -> why the inputs of a weight are not observed; those of embeddings, which have none, are not missed."""
    members = [member for group in layout.groups if group.module_type not in LOOKED_UP for member in group.members]
    found = {item.name: why_unseen(calls.get(item.name, ()), bool(item.inputs_first)) for item in members}
    return {name: reason for name, reason in found.items() if reason is not None}


def _unrounded(
    specimen: Specimen, original: NetworkTensors, offered: Sequence[Mapping[str, Operator]]
) -> dict[str, str]:
    """Name -> why the inputs of a weight cannot be rounded, of the groups that are offered such choices."""
    wanted = [
        member.name
        for group, choices in zip(specimen.layout.groups, offered, strict=True)
        if any(operator.activation_bits for operator in choices.values())
        for member in group.members
    ]
    probe = specimen.examples.first(PROBE_EXAMPLES).inputs
    return why_not_rounded(original, wanted, lambda: run_model(original.model, probe)) if wanted else {}


def _refuse_bad_weights(tensors: NetworkTensors, layout: Layout) -> None:
    grouped = {member.name for group in layout.groups for member in group.members}
    for name, held in tensors.items():
        tensor = held.detach()
        # Buffers that no operator touches may hold infinities on purpose, such as attention masks.
        checked = tensor.is_floating_point() and (tensors.is_parameter(name) or name in grouped)
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
    """Refuse a caller's loss that compares classes if there is only one output: no choice would cost anything."""
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
    """Examples on the model's device; on the CPU, images are channels last if that gives the same outputs."""
    device = NetworkTensors(model).device
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
        # A model that reshapes with view() may accept only one memory layout.
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


def calls_of(
    tensors: NetworkTensors, examples: Examples, trace: CallTrace | None
) -> Mapping[str, Sequence[WeightCall]]:
    """Parameter name -> calls of the functions that receive it, even if modules cannot be traced."""
    if trace is not None:
        return {name: [call for _, call in seen] for name, seen in trace.weights.items()}
    probe = examples.first(PROBE_EXAMPLES).inputs
    return weight_calls(lambda: run_model(tensors.model, probe), tensors.parameters())

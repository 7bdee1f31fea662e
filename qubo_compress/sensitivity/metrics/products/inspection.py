"""Determines from a few examples how a network uses its parameters, and checks that against torch's own gradients.

Nothing is assumed about a network. On a few examples, torch computes every parameter's per-example gradient, with
cotangents that are zero except on that example, and it is compared with the one from recorded layer calls. If they
differ, the parameter is also used in some other way (elementwise, to compute another tensor, or in a fused cell), and
its gradients are taken from runs of single examples.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qubo_compress.calibration.examples import Slice
from qubo_compress.errors import InvalidModel
from qubo_compress.network.groups import Member
from qubo_compress.network.inputs import Inputs, map_tensors, tensors_of
from qubo_compress.network.replay import run_model
from qubo_compress.network.rounding import InputRange
from qubo_compress.network.scores import OutputReading
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.metrics.products.calls import Call, Recorder
from qubo_compress.sensitivity.metrics.products.displacements import Block
from qubo_compress.sensitivity.metrics.products.slices import (
    Axes,
    Structure,
    depends_on_others,
    refuses_writes,
    slice_products,
)
from qubo_compress.sensitivity.subject import Subject

logger = logging.getLogger(__name__)

EXAMPLES = 3
"""Enough examples to recognise example axes, and to see whether examples influence each other."""

TOLERANCE = 1e-2
"""Largest relative distance of two directional derivatives that agree in float32."""

NOISE = 1e-6
"""Gradients that are this share of the largest are rounding: a bias in front of a normalisation has none."""

LOW_PRECISION_TOLERANCE = 0.2


@dataclass(frozen=True, eq=False)
class _Probe:
    """A network with substituted tensors, and a few examples."""

    tensors: NetworkTensors
    reading: OutputReading
    state: Mapping[str, Tensor]
    inputs: Inputs
    ranges: Mapping[str, InputRange]

    def rows(self) -> Tensor:
        return self.reading.rows(run_model(self.tensors.model, self.inputs))


def inspect(subject: Subject) -> Structure:
    """How the base network uses the parameters of all groups.

    Raises:
        InvalidModel: when its outputs carry no gradient, or examples influence each other.
    """
    if subject.examples.whole:
        raise depends_on_others(subject.examples.whole)
    state = _state(subject)
    inputs = _few(subject.examples.slices[0].inputs)
    wanted = frozenset(
        member.name
        for group in subject.layout.groups
        for member in group.members
        if member.dtype.is_floating_point and subject.tensors.is_parameter(member.name)
    )
    low = any(t.dtype in (torch.bfloat16, torch.float16) for t in (*state.values(), *tensors_of(inputs)))
    tolerance = LOW_PRECISION_TOLERANCE if low else TOLERANCE
    present = {name: subject.tensors.range_of(name) for name in sorted(wanted)}
    ranges = {name: found for name, found in present.items() if found is not None}
    probe = _Probe(subject.tensors, subject.examples.reading, state, inputs, ranges)
    structure = _recorded(probe, wanted)
    generator = torch.Generator().manual_seed(subject.seed)
    directions = {
        name: torch.randn(state[name].shape, generator=generator).to(state[name].device) for name in sorted(wanted)
    }
    cotangent = _cotangent(probe, generator)
    with refuses_writes(structure):
        true = _true_products(probe, directions, cotangent)
    floor = NOISE * max((float(found.abs().max()) for found in true.values()), default=0.0)
    found = _recorded_products(probe, structure, directions, cotangent)
    captured = frozenset(name for name in structure.captured if _agree(found[name], true[name], tolerance, floor))
    turned = _turned(structure, structure.captured - captured)
    if turned is not structure:
        found = _recorded_products(probe, turned, directions, cotangent)
        again = frozenset(name for name in structure.captured if _agree(found[name], true[name], tolerance, floor))
        if again >= captured:
            structure, captured = turned, again
    single = wanted - captured
    checked = replace(structure, captured=captured, single=single)
    if single:
        logger.info("%s: not used by known layers only; measured one example at a time", ", ".join(sorted(single)))
        alone = _recorded_products(probe, replace(checked, captured=frozenset()), directions, cotangent)
        wrong = sorted(name for name in single if not _agree(alone[name], true[name], tolerance, floor))
        if wrong:
            raise depends_on_others(f"the gradients by {wrong[0]} differ from those among others")
    return checked


def _turned(structure: Structure, wrong: frozenset[str]) -> Structure:
    """The structure with examples varying fastest in the calls of several rows per example that disagreed."""
    axes = tuple(
        replace(found, inner=True)
        if found is not None and found.rows > 1 and any(view.name in wrong for view in views)
        else found
        for found, (_, views) in zip(structure.axes, structure.signatures, strict=True)
    )
    return structure if axes == structure.axes else replace(structure, axes=axes)


def _state(subject: Subject) -> dict[str, Tensor]:
    """Every tensor of the base network, without gradient, with the groups' values in their parameters."""
    state = {name: tensor.detach() for name, tensor in subject.tensors.items()}
    for number, group in enumerate(subject.layout.groups):
        if group.kind != "normalisation":
            continue
        for member, value in zip(group.members, subject.references(number), strict=True):
            held = state[member.name]
            if member.rows is None:
                state[member.name] = value.to(held.device, held.dtype)
    return state


def _few(inputs: Inputs) -> Inputs:
    """A few examples, repeated if there are not enough."""
    count = tensors_of(inputs)[0].shape[0]
    index = torch.arange(EXAMPLES) % count
    picked: Inputs = map_tensors(inputs, lambda t: t[index.to(t.device)])
    return picked


def _recorded(probe: _Probe, wanted: frozenset[str]) -> Structure:
    """The calls of a pass, and their axes from a pass with one example less."""
    passes = []
    for count in (EXAMPLES, EXAMPLES - 1):
        recorder = Recorder(probe.state, _ignore, ranges=probe.ranges)
        with probe.tensors.swapped(probe.state, dict.fromkeys(probe.ranges)), torch.enable_grad(), recorder:
            run_model(probe.tensors.model, map_tensors(probe.inputs, lambda t, count=count: t[:count]))
        passes.append(recorder.calls)
    more, fewer = passes
    if [call.signature for call in more] != [call.signature for call in fewer]:
        return Structure(probe.reading, probe.state, (), (), frozenset(), wanted, frozenset(), 1)
    axes = tuple(
        _axes(a.kind, tuple(a.inputs.shape), tuple(b.inputs.shape), a.output_shape, b.output_shape)
        for a, b in zip(more, fewer, strict=True)
    )
    # Views of buffers that are changed in place, and activations that overwrite a layer's input.
    copied = frozenset(call.number for call in more if call.inputs._version != call.version)
    held = sum(
        call.inputs.numel() * call.inputs.element_size() + 4 * int(np.prod(call.output_shape, dtype=np.int64))
        for call in more
    )
    return Structure(
        probe.reading, probe.state, tuple(call.signature for call in more), axes, wanted, frozenset(), copied,
        held // EXAMPLES + 1, probe.ranges,
    )  # fmt: skip


def _ignore(call: Call, gradient: Tensor) -> None:
    """Ignore gradients, if only the calls matter."""


def _axes(
    kind: str, inputs: Sequence[int], fewer_in: Sequence[int], outputs: Sequence[int], fewer_out: Sequence[int]
) -> Axes | None:
    found = []
    for more, fewer in ((inputs, fewer_in), (outputs, fewer_out)):
        if len(more) != len(fewer):
            return None
        differing = [a for a, (m, f) in enumerate(zip(more, fewer, strict=True)) if m != f]
        if len(differing) != 1 or more[differing[0]] * (EXAMPLES - 1) != fewer[differing[0]] * EXAMPLES:
            return None
        found.append(differing[0])
    axes = Axes(found[0], found[1], outputs[found[1]] // EXAMPLES)
    if kind == "embedding":
        return axes if axes.inputs == axes.outputs else None
    if axes.inputs != axes.outputs or len(inputs) != len(outputs):
        return None
    channels_last = kind in ("linear", "product", "layer-norm", "rms-norm")
    return axes if (axes.inputs < len(inputs) - 1 if channels_last else axes.inputs == 0) else None


def _cotangent(probe: _Probe, generator: torch.Generator) -> Tensor:
    with probe.tensors.swapped(probe.state), torch.no_grad():
        rows = probe.rows()
    return torch.randn(rows.shape, generator=generator).to(rows.device)


def _true_products(probe: _Probe, directions: Mapping[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    """Name -> (n,) product of a direction with every example's gradient, computed by torch alone."""
    leaves = {name: probe.state[name].clone().requires_grad_() for name in directions}
    with probe.tensors.swapped({**probe.state, **leaves}), torch.enable_grad():
        with Recorder({}, None):
            rows = probe.rows()
        if not rows.requires_grad:
            raise InvalidModel(
                "the outputs carry no gradient: forward switches gradients off, or no group reaches the outputs; "
                "use metric='gauss-newton', which needs none"
            )
        repeats = rows.shape[0] // EXAMPLES
        found = []
        for example in range(EXAMPLES):
            only = torch.zeros_like(cotangent)
            only[example * repeats : (example + 1) * repeats] = cotangent[example * repeats : (example + 1) * repeats]
            found.append(torch.autograd.grad(rows, list(leaves.values()), only, retain_graph=True, allow_unused=True))
    return {
        name: torch.stack(
            [
                torch.zeros((), device=cotangent.device) if g[i] is None else (g[i].float() * directions[name]).sum()
                for g in found
            ]
        )
        for i, name in enumerate(leaves)
    }


def _recorded_products(
    probe: _Probe, structure: Structure, directions: Mapping[str, Tensor], cotangent: Tensor
) -> dict[str, Tensor]:
    """These products from recorded calls (captured parameters) and from runs of single examples (all others)."""
    numbers = {name: number for number, name in enumerate(directions)}
    wanted = structure.captured | structure.single
    blocks = {
        name: (
            Block(np.array([number], dtype=np.int64), _whole(name, directions[name]), directions[name].float()[None]),
        )
        for name, number in numbers.items()
        if name in wanted
    }
    part = Slice(probe.inputs, None, torch.full((EXAMPLES,), 1.0 / EXAMPLES, dtype=torch.float64))
    found = slice_products(
        probe.tensors, structure, part, [cotangent], lambda name: blocks.get(name, ()), len(directions)
    )
    return {name: found[number, 0] for name, number in numbers.items()}


def _whole(name: str, values: Tensor) -> Member:
    return Member(name, tuple(values.shape), values.dtype)


def _agree(found: Tensor, true: Tensor, tolerance: float, floor: float) -> bool:
    scale = float(true.abs().max())
    return bool((found - true).abs().max() <= tolerance * scale + floor + 1e-12)

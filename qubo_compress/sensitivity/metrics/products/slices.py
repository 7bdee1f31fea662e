"""One slice of examples: a forward pass, then a backward pass per probe that forms every choice's products."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import Slice
from qubo_compress.errors import ForwardFailed, InvalidModel
from qubo_compress.network.inputs import Inputs, map_tensors
from qubo_compress.network.replay import run_model
from qubo_compress.network.rounding import InputRange
from qubo_compress.network.scores import OutputReading
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.metrics.products.calls import Call, Recorder, View
from qubo_compress.sensitivity.metrics.products.displacements import Block, ColumnBlock, RowBlock
from qubo_compress.sensitivity.metrics.products.gradients import by_example, parameter_gradients

GRADIENT_BYTES = 8_000_000
"""Most bytes of per-example gradients at a time: about the size of the CPU caches."""

SAME_OUTPUTS = 0.05
"""Relative distance up to which an example's outputs alone and among others count as equal, even in bfloat16."""

BlocksOf = Callable[[str], Sequence[Block | RowBlock | ColumnBlock]]
"""Parameter name -> the displacements of its choices."""


@dataclass(frozen=True)
class Axes:
    """The example axes of a call's input and output.

    Attributes:
        inputs, outputs: the axes.
        rows: per example along them.
        inner: examples vary faster than their rows.
    """

    inputs: int
    outputs: int
    rows: int = 1
    inner: bool = False


@dataclass(frozen=True, eq=False)
class Structure:
    """The result of inspecting a network, the same for every slice.

    Attributes:
        reading: how the network's outputs are read.
        state: name -> tensor of the network during the measurement; none requires a gradient.
        signatures: of every call, in order.
        axes: of every call; None if no example axis was found.
        captured: parameters used only by calls of known layers.
        single: parameters with other uses, whose gradients are taken one example at a time.
        copied: calls whose inputs are changed in place afterwards.
        bytes_per_example: held by the calls of one pass.
        ranges: weight's name -> range to which the network at present rounds the inputs of its layers.
    """

    reading: OutputReading
    state: Mapping[str, Tensor]
    signatures: tuple[tuple[str, tuple[View, ...]], ...]
    axes: tuple[Axes | None, ...]
    captured: frozenset[str]
    single: frozenset[str]
    copied: frozenset[int]
    bytes_per_example: int
    ranges: Mapping[str, InputRange] = field(default_factory=dict)


def slice_products(
    tensors: NetworkTensors,
    structure: Structure,
    part: Slice,
    cotangents: Sequence[Tensor],
    blocks_of: BlocksOf,
    choices: int,
) -> Tensor:
    """(choices, S, n) inner products of every choice's displacement with the gradients of every example.

    Args:
        tensors: of a model in eval mode, which is unchanged afterwards.
        structure: see :class:`Structure`.
        part: n examples.
        cotangents: S tensors (M, C), one for every backward pass: gradients of a scalar with respect to the output
            rows.
        blocks_of: the displacements.
        choices: number of all choices.

    Raises:
        InvalidModel: when single examples have to run, and their outputs differ from those among others, or the network
            overwrites what its gradients need.
    """
    accumulator = _Accumulator(structure, len(part), len(cotangents), blocks_of, choices, cotangents[0].device)
    with refuses_writes(structure):
        with tensors.swapped(structure.state, dict.fromkeys(structure.ranges)), torch.enable_grad():
            recorder = Recorder(structure.state, accumulator.watch, structure.copied, structure.ranges)
            with recorder:
                outputs = structure.reading.rows(run_model(tensors.model, part.inputs))
            if tuple(call.signature for call in recorder.calls) != structure.signatures:
                # These examples take another path than the inspected ones: its calls are unknown.
                structure = replace(structure, captured=frozenset(), single=structure.captured | structure.single)
            elif recorder.roots and outputs.requires_grad:
                for number, cotangent in enumerate(cotangents):
                    accumulator.probe = number
                    last = number == len(cotangents) - 1
                    torch.autograd.grad(outputs, recorder.roots, cotangent, retain_graph=not last, allow_unused=True)
        if structure.single:
            _add_singles(tensors, structure, part, outputs.detach(), cotangents, accumulator)
    return accumulator.products


def _add_singles(
    tensors: NetworkTensors,
    structure: Structure,
    part: Slice,
    together: Tensor,
    cotangents: Sequence[Tensor],
    accumulator: _Accumulator,
) -> None:
    """Products of parameters with other uses: one run and S backward passes per example."""
    names = sorted(structure.single)
    for name in names:
        if any(block.rounds for block in accumulator.blocks_of(name)):
            raise InvalidModel(
                f"the inputs of {name} cannot be followed on these examples, and choices on the menu round them; use "
                "metric='gauss-newton', which runs every choice"
            )
    leaves = {name: structure.state[name].clone().requires_grad_() for name in names}
    rows = cotangents[0].shape[0] // len(part)
    with tensors.swapped({**structure.state, **leaves}), torch.enable_grad():
        for example in range(len(part)):
            inputs = map_tensors(part.inputs, lambda t, i=example: t[i : i + 1])
            outputs = _run_alone(tensors.model, structure.reading, inputs)
            if not _alike(outputs, together[example * rows : (example + 1) * rows]):
                raise depends_on_others("its outputs differ from those among others")
            if not outputs.requires_grad:
                continue
            for number, cotangent in enumerate(cotangents):
                found = torch.autograd.grad(
                    outputs, list(leaves.values()), cotangent[example * rows : (example + 1) * rows],
                    retain_graph=number < len(cotangents) - 1, allow_unused=True,
                )  # fmt: skip
                for name, gradient in zip(names, found, strict=True):
                    if gradient is not None:
                        accumulator.probe = number
                        accumulator.add(name, gradient.float()[None], example)


def _run_alone(model: nn.Module, reading: OutputReading, inputs: Inputs) -> Tensor:
    try:
        with Recorder({}, None):
            return reading.rows(run_model(model, inputs))
    except ForwardFailed as cause:
        raise depends_on_others(str(cause)) from cause


def depends_on_others(seen: str) -> InvalidModel:
    """The error for networks whose gradients do not belong to single examples."""
    return InvalidModel(
        f"what the network makes of an example depends on the others of its batch ({seen}); use "
        "metric='gauss-newton', which runs every choice"
    )


WRITTEN = "modified by an inplace operation"
"""What torch says when a backward pass needs a value that the network has overwritten."""


@contextlib.contextmanager
def refuses_writes(structure: Structure) -> Iterator[None]:
    """Name the layer whose input a network overwrites, where torch has no gradients for that reason.

    Raises:
        InvalidModel: instead of torch's error.
    """
    try:
        yield
    except RuntimeError as cause:
        if WRITTEN not in str(cause):
            raise
        names = [view.name for number in sorted(structure.copied) for view in structure.signatures[number][1]]
        place = f"the input of {names[0]}" if names else "an activation"
        raise InvalidModel(
            f"{place} is overwritten in place after it was used, so that torch has no gradients of this network; "
            "write x = x + 1 instead of x += 1, or use metric='gauss-newton', which needs none"
        ) from cause


def _alike(alone: Tensor, together: Tensor) -> bool:
    """Whether outputs agree up to low precision and the order of summation."""
    if alone.shape != together.shape:
        return False
    scale = float(together.abs().max())
    return bool((alone.detach() - together).abs().max() <= SAME_OUTPUTS * scale + 1e-6)


class _Accumulator:
    """Receives the gradients of layers' outputs and adds the products of their parameters' choices."""

    def __init__(
        self,
        structure: Structure,
        examples: int,
        probes: int,
        blocks_of: BlocksOf,
        choices: int,
        device: torch.device,
    ) -> None:
        self.structure, self.examples, self.blocks_of = structure, examples, blocks_of
        self.products = torch.zeros(choices, probes, examples, device=device)
        self.probe = 0

    def watch(self, call: Call, gradient: Tensor) -> None:
        """Called in the backward pass with the gradient of a call's output."""
        axes = self.structure.axes[call.number]
        wanted = {
            role: view
            for role, view in call.views.items()
            if view.name in self.structure.captured and self.blocks_of(view.name)
        }
        if axes is None or not wanted:
            return
        inputs = by_example(call.inputs, axes.inputs, self.examples, axes.inner)
        delta = by_example(gradient, axes.outputs, self.examples, axes.inner)
        size = self._examples_at_once(call, wanted, inputs, delta)
        for start in range(0, self.examples, size):
            self._chunk(call, wanted, inputs[start : start + size], delta[start : start + size], start)
        given = self._blocks(wanted.get("weight"))
        rounding = [block for block in given if block.rounds and not isinstance(block, ColumnBlock)]
        if rounding:
            before = (
                inputs if call.unrounded is None else by_example(call.unrounded, axes.inputs, self.examples, axes.inner)
            )
            for start in range(0, self.examples, size):
                some = slice(start, start + size)
                self._add_rounded(call, wanted["weight"], rounding, (before[some], inputs[some], delta[some]), start)

    def _blocks(self, view: View | None) -> Sequence[Block | RowBlock | ColumnBlock]:
        return () if view is None else self.blocks_of(view.name)

    def _add_rounded(
        self,
        call: Call,
        view: View,
        blocks: Sequence[Block | RowBlock],
        given: tuple[Tensor, Tensor, Tensor],
        start: int,
    ) -> None:
        """Products of choices that also change the layer's inputs, from x to y: <d, G(y)> + <w, G(y - x)>.

        G is linear in the inputs, so this is the output's change, layer(y; w + d) - layer(x; w), times its gradient.
        """
        before, inputs, delta = given
        narrowed = Call(**{**vars(call), "views": {"weight": view}})
        held = self.structure.state[view.name]
        for wanted in dict.fromkeys(block.range for block in blocks):
            changed = before if wanted is None else wanted.rounded(before)
            gradients, apart = (
                _in_parameter(parameter_gradients(narrowed, some, delta)["weight"], view, held)
                for some in (changed, changed - inputs)
            )
            of_inputs = apart.flatten(1) @ held.float().flatten()
            for block in blocks:
                if block.range == wanted:
                    where = torch.from_numpy(block.choices).to(gradients.device)
                    count = gradients.shape[0]
                    self.products[where, self.probe, start : start + count] += block.products(gradients) + of_inputs

    def _examples_at_once(self, call: Call, wanted: Mapping[str, View], inputs: Tensor, delta: Tensor) -> int:
        weight = _numel(call.weight_shape)
        kernel = _numel(call.weight_shape[2:]) if call.kind in ("convolution", "transposed") else 1
        unfolded = max(inputs[0].numel(), delta[0].numel()) * (kernel if kernel > 1 else 1)
        per_example = 4 * (weight + unfolded) if "weight" in wanted else 4 * delta[0].numel()
        return max(1, min(self.examples, GRADIENT_BYTES // max(1, per_example)))

    def _chunk(self, call: Call, wanted: Mapping[str, View], inputs: Tensor, delta: Tensor, start: int) -> None:
        if "weight" in wanted and self._calling_is_cheaper(call, wanted["weight"], delta):
            self._called(call, wanted["weight"], inputs, delta, start)
            wanted = {role: view for role, view in wanted.items() if role != "weight"}
        if not wanted:
            return
        narrowed = Call(**{**vars(call), "views": wanted})
        for role, gradients in parameter_gradients(narrowed, inputs, delta).items():
            view = wanted[role]
            self.add(view.name, _in_parameter(gradients, view, self.structure.state[view.name]), start)

    def _calling_is_cheaper(self, call: Call, view: View, delta: Tensor) -> bool:
        """Whether K layer calls, F multiplications each, beat the gradient and its K products: F + K P."""
        if call.kind not in ("linear", "product", "embedding"):
            return False
        blocks = self.blocks_of(view.name)
        if not all(block.whole for block in blocks):
            return False
        choices = sum(len(block.choices) for block in blocks if not block.rounds)
        values = _numel(call.weight_shape)
        positions = delta[0].numel() // delta.shape[-1]
        if call.kind == "embedding":
            return True
        return choices * values * positions <= values * positions + choices * values

    def _called(self, call: Call, view: View, inputs: Tensor, delta: Tensor, start: int) -> None:
        """Products from calling the layer with every displacement as its weight, times the gradient of its output."""
        flat = delta.float().flatten(1, -2)
        for block in self._unrounded(view.name):
            for k, choice in enumerate(block.choices.tolist()):
                weight = _seen(block.values[k], view)
                if call.kind == "embedding":
                    change = torch.nn.functional.embedding(inputs.flatten(1), weight)
                else:
                    rows = inputs.float().flatten(1, -2)
                    change = rows @ (weight if call.kind == "product" else weight.T)
                self.products[choice, self.probe, start : start + len(flat)] += (change * flat).flatten(1).sum(1)

    def _unrounded(self, name: str) -> list[Block | RowBlock | ColumnBlock]:
        """The blocks that leave the inputs of the layer as they are."""
        return [block for block in self.blocks_of(name) if not block.rounds]

    def add(self, name: str, gradients: Tensor, start: int) -> None:
        """Add <d(v), G_n> for the given examples and all choices of a parameter."""
        count = gradients.shape[0]
        for block in self._unrounded(name):
            found = block.products(gradients)
            where = torch.from_numpy(block.choices).to(found.device)
            self.products[where, self.probe, start : start + count] += found


def _seen(values: Tensor, view: View) -> Tensor:
    """A parameter's values as the layer sees them."""
    if view.shape is None:
        return values
    flat = values.contiguous()
    return flat.as_strided(view.shape, view.stride, flat.storage_offset() + view.offset)


def _in_parameter(gradients: Tensor, view: View, parameter: Tensor) -> Tensor:
    """(n, *parameter shape) from the gradients of the view that the layer saw."""
    if view.shape is None:
        return gradients
    count = gradients.shape[0]
    whole = gradients.new_zeros(count, parameter.numel())
    whole.as_strided((count, *view.shape), (parameter.numel(), *view.stride), view.offset).copy_(gradients)
    return whole.reshape(count, *parameter.shape)


def _numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())

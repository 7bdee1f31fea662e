"""From a PyTorch module to an ONNX graph, whose shapes are computed ahead and whose weights are not touched."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from qubo_compress._internal.optional import require
from qubo_compress.errors import ExportRefused
from qubo_compress.exports.onnx.attention import exchange_axes_at_once
from qubo_compress.exports.onnx.attention_operator import attention_translations, join_heads
from qubo_compress.exports.onnx.canvas import EXTRA, Canvas
from qubo_compress.exports.onnx.names import name_outputs, output_names
from qubo_compress.exports.onnx.rounding import translations
from qubo_compress.exports.onnx.sizes import read_sizes_from_inputs
from qubo_compress.exports.weights import Exportable, Held
from qubo_compress.network.inputs import Inputs, map_tensors
from qubo_compress.network.replay import run_model
from qubo_compress.network.tensors import NetworkTensors

TRACED = 2
"""Examples in the inputs that the network is traced with: a batch of one is taken for a fixed size."""

_ONE_AT_A_TIME = threading.Lock()
"""torch's exporter, and what is set around it, hold for all threads."""


def traced(network: Exportable, inputs: Inputs, dynamic: Sequence[int], opset: int, runtime: str | None) -> Canvas:
    """The graph of a network.

    Args:
        network: on the CPU.
        inputs: of one example or more.
        dynamic: axes of the inputs that may have any length, 0 the batch.
        opset: version of ONNX's operators.
        runtime: which the graph is written for; None for any.

    Raises:
        ExportRefused: when torch cannot trace the network, or the network fixes the length of a dynamic axis.
        MissingDependency: without the extra ``onnx``.
    """
    require("onnxscript", EXTRA)
    _refuse_types(network)
    written = translations() | (attention_translations() if runtime == "onnxruntime" else {})
    program = _program(network.model, _few(inputs), dynamic, opset, written)
    model = program.model
    _refuse_fixed_axes(network.model, program, dynamic)
    aliases = NetworkTensors(network.model).aliases
    held = {}
    for name, value in model.graph.initializers.items():
        known = network.held.get(aliases.get(name, name))
        if known is None:
            known = Held(torch.from_numpy(value.const_value.numpy().copy()), None, name)
        held[name] = known
    with _opaque(model.graph), _levels(FOLDING):
        require("onnxscript.optimizer", EXTRA).optimize_ir(model)
        exchange_axes_at_once(model.graph)
        join_heads(model.graph)
        read_sizes_from_inputs(model)
    with torch.no_grad():
        name_outputs(model.graph, output_names(run_model(network.model, _few(inputs))))
    return Canvas(model, held, runtime)


def _few(inputs: Inputs) -> Inputs:
    """The first examples, repeated if there is only one."""

    def few(tensor: Tensor) -> Tensor:
        found = tensor[:TRACED].cpu()
        return found.repeat(TRACED, *[1] * (found.ndim - 1)) if found.ndim and len(found) < TRACED else found

    found: Inputs = map_tensors(inputs, few)
    return found


def _program(
    model: nn.Module, inputs: Inputs, dynamic: Sequence[int], opset: int, written: dict[Any, Callable[..., Any]]
) -> Any:
    named = inputs if isinstance(inputs, dict) else {}
    args = (inputs,) if isinstance(inputs, Tensor) else inputs if isinstance(inputs, tuple) else ()
    shapes = {name: _free(tensor, dynamic) for name, tensor in named.items()}
    free = shapes or _as_taken(model, tuple(_free(tensor, dynamic) for tensor in args))
    try:
        with _ONE_AT_A_TIME, _quiet(), _plain_attention(), torch.no_grad():
            return torch.onnx.export(
                model, args, kwargs=named, dynamic_shapes=free, opset_version=opset, dynamo=True, optimize=False,
                verbose=False, verify=False, report=False,
                custom_translation_table=written,
            )  # fmt: skip
    except Exception as cause:  # torch's and the network's own
        raise ExportRefused(
            f"torch.onnx.export cannot trace this {type(model).__name__}: {_first_line(cause)}; its forward must be "
            "free of branches on values of tensors. Nothing was written"
        ) from cause


def _as_taken(model: nn.Module, free: tuple[Any, ...]) -> tuple[Any, ...]:
    """The free axes of arguments, in one tuple for those that a forward takes as ``*args``."""
    for number, parameter in enumerate(inspect.signature(model.forward).parameters.values()):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and number < len(free):
            return (*free[:number], free[number:])
    return free


def _free(tensor: Tensor, dynamic: Sequence[int]) -> dict[int, Any]:
    return {axis: torch.export.Dim.AUTO for axis in dynamic if axis < tensor.ndim}


def _first_line(cause: BaseException) -> str:
    """What was wrong at first: torch's exporter wraps the cause in its own error."""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:300] if lines else 'no reason given'}"


def _refuse_types(network: Exportable) -> None:
    """Raise :class:`ExportRefused` for types of numbers that runtimes do not compute with on a CPU."""
    found = [name for name, held in network.held.items() if held.value.dtype == torch.bfloat16]
    if found:
        raise ExportRefused(
            f"{found[0]} is bfloat16, for which runtimes have no operators on a CPU; compress the network in float32, "
            "or export it with format='torch'. Nothing was written"
        )
    for name, module in network.model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) and module.weight.dtype == torch.float64:
            raise ExportRefused(
                f"{name or 'the network'} is a convolution in float64, which onnxruntime does not compute on a CPU; "
                "compress the network in float32, or export it with format='torch'. Nothing was written"
            )


def _refuse_fixed_axes(model: nn.Module, program: Any, dynamic: Sequence[int]) -> None:
    """Raise :class:`ExportRefused` for an axis that is to have any length and has one length in all inputs."""
    ranges = program.exported_program.range_constraints
    only = {str(symbol): int(found.lower) for symbol, found in ranges.items() if found.lower == found.upper}
    for axis in dynamic:
        inputs = [value for value in program.model.graph.inputs if value.shape and len(value.shape) > axis]
        lengths = [only.get(str(getattr(value.shape[axis], "value", "")), value.shape[axis]) for value in inputs]
        if not lengths or not all(isinstance(length, int) for length in lengths):
            continue
        name, length = inputs[0].name, lengths[0]
        if axis == 0:
            raise ExportRefused(
                f"the forward of this {type(model).__name__} fixes the batch of {name} to the size that it was traced "
                "with; write sizes as x.shape[0], not as numbers. Nothing was written"
            )
        raise ExportRefused(
            f"dynamic lists axis {axis}, and the forward of this {type(model).__name__} fixes its length in {name} to "
            f"{length}: a layer or a number in the code expects it; leave the axis out, or give examples that are "
            "longer than 1 there. Nothing was written"
        )


class _WithoutTorch:
    """The program's standard error without what torch's own code prints there: graphs that it could not finish.

    The reason is in our error. What the network, other libraries and other threads write is passed on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, unless a module of torch asks for it."""
        writer = str(sys._getframe(1).f_globals.get("__name__", ""))
        return len(text) if writer.partition(".")[0] == "torch" else self._stream.write(text)


NOTES = {
    "torch.onnx": logging.ERROR, "onnxscript": logging.ERROR, "onnx_ir": logging.ERROR,
    "torch.fx.experimental.symbolic_shapes": logging.ERROR, "torch.export._trace": logging.CRITICAL,
}  # fmt: skip
"""Loggers of the exporter's notes on its own progress, and the level from which they are passed on."""

FOLDING = {"onnxscript.optimizer._constant_folding": logging.ERROR}
"""The optimizer warns "Evaluation failed" of a node whose sizes are known only at a run. It leaves the node."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own progress."""
    hidden: Any = _WithoutTorch(sys.stderr)
    with _levels(NOTES), warnings.catch_warnings(), contextlib.redirect_stderr(hidden):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _levels(wanted: Mapping[str, int]) -> Iterator[None]:
    """Loggers with other levels."""
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in wanted]
    try:
        for logger, _ in before:
            logger.setLevel(wanted[logger.name])
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as products and a softmax: torch's fused kernel has no operator in ONNX."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _opaque(graph: Any) -> Iterator[None]:
    """Hide the values of floating-point constants, so that nothing is computed from them ahead."""
    hidden = [value for value in graph.initializers.values() if value.const_value.dtype.is_floating_point()]
    values = [value.const_value for value in hidden]
    for value in hidden:
        del graph.initializers[value.name]
        value.const_value = None
        graph.inputs.append(value)
    try:
        yield
    finally:
        for value, found in zip(hidden, values, strict=True):
            graph.inputs.remove(value)
            value.const_value = found
            graph.register_initializer(value)

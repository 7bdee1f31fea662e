"""Rounded inputs of layers as ``QuantizeLinear`` and ``DequantizeLinear``, and what lets runtimes compute in integers.

A layer between rounded inputs and integer weights is computed in integers by OpenVINO without more, and so are linear
layers by onnxruntime. A convolution of onnxruntime also needs rounded *outputs*. Where its output, behind a ReLU, goes
straight to the next rounded layer, it has them; before a sum or an average it gets them here, for this runtime only,
with the range that it has on the example inputs, and sums read the rounded form of what a layer reads rounded. These
are more roundings than the network has. The inputs of a layer in floating point are never rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch

from qubo_compress._internal.optional import require
from qubo_compress.calibration.statistics.input_ranges import ValueCounts
from qubo_compress.exports.onnx.canvas import EXTRA, Canvas
from qubo_compress.exports.onnx.running import fed, session
from qubo_compress.network.inputs import Inputs
from qubo_compress.network.rounding import InputRange

ALL_BITS = 8
ALL_LEVELS = 255
"""The highest level of 8 bits; ranges of fewer bits are cut off first, and then rounded in as many levels."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits")
"""Operators that multiply with weights."""

MOVES = (
    "Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Pad", "Slice", "Split",
    "Concat", "Identity",
)  # fmt: skip
"""Operators whose outputs are some of their inputs: runtimes round behind them what is rounded before them."""


def translations() -> dict[Any, Callable[..., Any]]:
    """What torch's exporter writes for rounded inputs."""
    operators, helper = require("onnxscript", EXTRA).opset18, require("onnx", EXTRA).numpy_helper

    def constant(value: float, kind: type) -> Any:
        return operators.Constant(value=helper.from_array(np.array(value, dtype=kind)))

    def rounded(inputs: Any, scale: float, zero_point: int, levels: int) -> Any:
        step, zero = constant(scale, np.float32), constant(zero_point, np.uint8)
        if levels < ALL_LEVELS:
            ends = (-zero_point * scale, (levels - zero_point) * scale)
            inputs = operators.Clip(inputs, *(constant(end, np.float32) for end in ends))
        return operators.DequantizeLinear(operators.QuantizeLinear(inputs, step, zero), step, zero)

    return {torch.ops.qubo_compress.round_input.default: rounded}


def mark_rounded(canvas: Canvas) -> None:
    """Note the weights that multiply with rounded inputs: integer kernels read their codes in 8 bits."""
    for value in canvas.graph.initializers.values():
        readers = [reader for node, _ in value.uses() for reader in _behind_transpose(node)]
        if readers and all(_is_rounded(node.inputs[0]) for node in readers):
            canvas.rounded.add(value.name)


def _behind_transpose(node: Any) -> list[Any]:
    return [used for used, _ in node.outputs[0].uses()] if node.op_type == "Transpose" else [node]


def _is_rounded(value: Any) -> bool:
    """Whether a value comes from a pair of rounding nodes, reshaped or padded at most."""
    made = None if value is None else value.producer()
    while made is not None and made.op_type in ("Reshape", "Pad", "Transpose", "Flatten"):
        value = made.inputs[0]
        made = None if value is None else value.producer()
    if made is None or made.op_type != "DequantizeLinear" or made.inputs[0] is None:
        return False
    before = made.inputs[0].producer()
    return before is not None and before.op_type == "QuantizeLinear"


def round_outputs(model: Any, batches: Sequence[Inputs]) -> int:
    """Round the outputs of rounded convolutions that are not rounded yet, in place; returns how many were.

    Args:
        model: a finished graph, as a protocol buffer.
        batches: examples on which the outputs have their ranges.
    """
    graph = model.graph
    _share_codes(graph, _readers(graph))
    _in_order(graph)
    readers = _readers(graph)
    makers = {name: node for node in graph.node for name in node.output}
    ends = [
        _behind_limits(node.output[0], readers)
        for node in graph.node
        if node.op_type == "Conv" and _both_in_codes(node, makers)
    ]
    wanted = [
        name
        for name in dict.fromkeys(ends)
        if readers.get(name) and not _goes_to_codes(name, readers) and not _feeds_floats(name, readers)
    ]
    new = [name for name in wanted if not any(node.op_type == "QuantizeLinear" for node in readers[name])]
    for name, found in zip(new, _ranges(model, new, batches), strict=True):
        _round(graph, makers[name], readers[name], found)
    for name in set(wanted).difference(new):
        _read_codes(name, readers)
    _in_order(graph)
    return len(wanted)


def _behind_limits(name: str, readers: dict[str, list[Any]]) -> str:
    """The value behind a ReLU or clip, part of the convolution in runtimes: what is cut off needs no levels."""
    found = readers.get(name, [])
    while len(found) == 1 and found[0].op_type in ("Relu", "Clip") and found[0].input[0] == name:
        name = found[0].output[0]
        found = readers.get(name, [])
    return name


def _feeds_floats(name: str, readers: dict[str, list[Any]]) -> bool:
    """Whether a layer multiplies a value as it is, moved at most: the plan leaves the inputs of that layer unrounded.

    Between rounded values onnxruntime would also round that layer's weights, all of them with a single step.
    """
    left, seen = [name], set()
    while left:
        for node in readers.get(left.pop(), []):
            if node.op_type in LAYERS:
                return True
            moved = [one for one in node.output if node.op_type in MOVES and one not in seen]
            seen.update(moved)
            left += moved
    return False


def _readers(graph: Any) -> dict[str, list[Any]]:
    """Name of a value -> the nodes that read it."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _share_codes(graph: Any, readers: dict[str, list[Any]]) -> None:
    """Let sums and slices read the rounded form of a value that a layer reads rounded: then they are integers, too."""
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            _read_codes(node.input[0], readers, ("Add", "Slice"))


def _read_codes(name: str, readers: dict[str, list[Any]], kinds: Collection[str] = ()) -> None:
    """Let nodes of some kinds, or all, read the rounded form of a value; layers in floating point never do."""
    rounding = [node for node in readers[name] if node.op_type == "QuantizeLinear"]
    behind = [one for node in rounding for one in readers.get(node.output[0], []) if one.op_type == "DequantizeLinear"]
    others = [node for node in readers[name] if node not in rounding and (not kinds or node.op_type in kinds)]
    for other in others if behind else ():
        if not (other.op_type in MOVES and any(_feeds_floats(made, readers) for made in other.output)):
            _read_instead(other, name, behind[0].output[0])


def _in_order(graph: Any) -> None:
    """Put every node behind those that it reads."""
    left, known = list(graph.node), {value.name for value in (*graph.input, *graph.initializer)} | {""}
    made = []
    while left:
        ready = [node for node in left if known.issuperset(node.input)]
        left = [node for node in left if not known.issuperset(node.input)]
        made += ready
        known.update(name for node in ready for name in node.output)
        if not ready:
            return  # what it reads comes from outside, as in the body of a loop: nothing was moved there
    del graph.node[:]
    graph.node.extend(made)


def _both_in_codes(node: Any, makers: dict[str, Any]) -> bool:
    return all(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input[:2])


def _goes_to_codes(name: str, readers: dict[str, list[Any]]) -> bool:
    """Whether every reader of a value rounds it."""
    return all(node.op_type == "QuantizeLinear" for node in readers[name])


def _ranges(model: Any, names: Sequence[str], batches: Sequence[Inputs]) -> list[InputRange]:
    """The ranges of least squared error of some tensors of a graph."""
    if not names:
        return []
    helper = require("onnx", EXTRA).helper
    watched = type(model)()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    running = session(bytes(watched.SerializeToString()), exactly=True)
    counts = [ValueCounts() for _ in names]
    for inputs in batches:
        for count, values in zip(counts, running.run(list(names), fed(running, inputs)), strict=True):
            count.add(torch.from_numpy(values))
    return [count.fitted(ALL_BITS) for count in counts]


def _round(graph: Any, maker: Any, readers: Sequence[Any], given: InputRange) -> None:
    onnx = require("onnx", EXTRA)
    name = maker.output[0]
    constants = [f"{name}_step", f"{name}_zero"]
    for constant, value in zip(constants, (np.float32(given.scale), np.uint8(given.zero_point)), strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), constant))
    place = list(graph.node).index(maker) + 1
    graph.node.insert(place, onnx.helper.make_node("QuantizeLinear", [name, *constants], [f"{name}_codes"]))
    made = onnx.helper.make_node("DequantizeLinear", [f"{name}_codes", *constants], [f"{name}_rounded"])
    graph.node.insert(place + 1, made)
    for reader in readers:
        _read_instead(reader, name, f"{name}_rounded")


def _read_instead(node: Any, before: str, after: str) -> None:
    """Let a node read another value."""
    for number, given in enumerate(node.input):
        if given == before:
            node.input[number] = after

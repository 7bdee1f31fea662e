"""Rounded inputs of layers as ``QuantizeLinear`` and ``DequantizeLinear``, and what lets runtimes compute in integers.

A layer between rounded inputs and integer weights is computed in integers by OpenVINO without more, and so are linear
layers by onnxruntime. A convolution of onnxruntime also needs rounded *outputs*. Where its output, behind a ReLU, goes
straight to the next rounded layer, it has them; before a sum or an average it gets them here, for this runtime only,
with the range that it has on the example inputs, and sums read the rounded form of what a layer reads rounded. These
are more roundings than the network has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from qubo_compress._internal.optional import require
from qubo_compress.exports.onnx.canvas import EXTRA, Canvas
from qubo_compress.exports.onnx.running import fed, session
from qubo_compress.network.inputs import Inputs

ALL_LEVELS = 255
"""The highest level of 8 bits; ranges of fewer bits are cut off first, and then rounded in as many levels."""


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
    readers = _readers(graph)
    _share_codes(graph, readers)
    readers = _readers(graph)
    makers = {name: node for node in graph.node for name in node.output}
    wanted = [
        node.output[0]
        for node in graph.node
        if node.op_type == "Conv" and _both_in_codes(node, makers) and not _goes_to_codes(node.output[0], readers)
    ]
    for name, (low, high) in zip(wanted, _extremes(model, wanted, batches), strict=True):
        _round(graph, makers[name], readers.get(name, []), low, high)
    return len(wanted)


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
        if node.op_type != "QuantizeLinear":
            continue
        behind = [one for one in readers.get(node.output[0], []) if one.op_type == "DequantizeLinear"]
        others = [one for one in readers.get(node.input[0], []) if one.op_type in ("Add", "Slice")]
        for other in others if behind else ():
            for number, given in enumerate(other.input):
                if given == node.input[0]:
                    other.input[number] = behind[0].output[0]
    _in_order(graph)


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
    """Whether every reader of a value, behind a ReLU or a clip, rounds it."""
    found = readers.get(name, [])
    if len(found) == 1 and found[0].op_type in ("Relu", "Clip"):
        found = readers.get(found[0].output[0], [])
    return bool(found) and all(node.op_type == "QuantizeLinear" for node in found)


def _extremes(model: Any, names: Sequence[str], batches: Sequence[Inputs]) -> list[tuple[float, float]]:
    """The smallest and largest value of some tensors of a graph, and zero."""
    if not names:
        return []
    helper = require("onnx", EXTRA).helper
    watched = type(model)()
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    running = session(bytes(watched.SerializeToString()), exactly=True)
    ends = np.zeros((len(names), 2))
    for inputs in batches:
        for number, values in enumerate(running.run(list(names), fed(running, inputs))):
            ends[number] = min(ends[number, 0], float(values.min())), max(ends[number, 1], float(values.max()))
    return [(float(low), float(high)) for low, high in ends]


def _round(graph: Any, maker: Any, readers: Sequence[Any], low: float, high: float) -> None:
    onnx = require("onnx", EXTRA)
    name, step = maker.output[0], np.float32(max(high - low, 1e-30) / ALL_LEVELS)
    zero = np.uint8(np.clip(round(-low / float(step)), 0, ALL_LEVELS))
    constants = [f"{name}_step", f"{name}_zero"]
    for constant, value in zip(constants, (step, zero), strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), constant))
    place = list(graph.node).index(maker) + 1
    graph.node.insert(place, onnx.helper.make_node("QuantizeLinear", [name, *constants], [f"{name}_codes"]))
    made = onnx.helper.make_node("DequantizeLinear", [f"{name}_codes", *constants], [f"{name}_rounded"])
    graph.node.insert(place + 1, made)
    for reader in readers:
        for number, given in enumerate(reader.input):
            if given == name:
                reader.input[number] = f"{name}_rounded"

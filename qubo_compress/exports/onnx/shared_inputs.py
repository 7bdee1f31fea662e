"""Products with the same inputs as one product, for onnxruntime: query, key and value of attention, for example.

Each product rounds its inputs to 8 bits and is called for a time of its own, which for one row is most of what it
takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qubo_compress.exports.onnx.canvas import MICROSOFT, Canvas

OPERATOR = "MatMulNBits"
MATRIX = 2
"""Axes of what is no vector."""


def join_products(canvas: Canvas) -> None:
    """Join ``MatMulNBits`` of the same inputs and the same width, each with its bias or each without one."""
    found: dict[Any, list[Any]] = {}
    for node in canvas.graph:
        if node.op_type == OPERATOR and len(node.inputs[1].uses()) == 1 and not node.outputs[0].is_graph_output():
            settings = tuple(node.attributes[name].value for name in ("K", "bits", "block_size", "accuracy_level"))
            found.setdefault((id(node.inputs[0]), settings, _sum(node) is None), []).append(node)
    for nodes in found.values():
        if len(nodes) > 1:
            _join(canvas, nodes)


def _sum(product: Any) -> Any:
    """The node that adds a bias to a product, if that is its only use."""
    uses = list(product.outputs[0].uses())
    node, position = uses[0] if len(uses) == 1 else (None, 0)
    if node is None or node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    return node if _is_vector(node.inputs[1 - position], product.attributes["N"].as_int()) else None


def _is_vector(value: Any, length: int) -> bool:
    """Whether a value is a vector of the file, plain or in codes that are cast and scaled."""
    return {length} <= _lengths(value) <= {length, 1}


def _lengths(value: Any) -> set[int]:
    """The lengths of the constants that a value is computed from, 1 for single numbers; 0 for anything else."""
    if value.const_value is not None:
        return {int(np.prod(value.const_value.shape)) if len(value.const_value.shape) < MATRIX else 0}
    made = value.producer()
    if made is None or made.op_type not in ("Cast", "Mul"):
        return {0}
    return set().union(*map(_lengths, made.inputs))


def _join(canvas: Canvas, nodes: Sequence[Any]) -> None:
    first, sizes = nodes[0], [node.attributes["N"].as_int() for node in nodes]
    constants = [value for node in nodes for value in node.inputs[1:3]]
    packed, steps = (_stacked(canvas, [node.inputs[place] for node in nodes]) for place in (1, 2))
    sums = [node for node in map(_sum, nodes) if node is not None]
    inputs = [first.inputs[0], packed, steps]
    if sums:
        biases = [node.inputs[1 - _place(node, product)] for node, product in zip(sums, nodes, strict=True)]
        inputs += [None, None, canvas.call("Concat", biases, axis=0)]
    kept = {name: attribute.value for name, attribute in first.attributes.items()} | {"N": sum(sizes)}
    whole = canvas.call(OPERATOR, inputs, domain=MICROSOFT, **kept)
    split = canvas.constant(f"{packed.name}_outputs", np.array(sizes))
    parts = canvas.calls("Split", [whole, split], len(nodes), axis=-1)
    for node, part in zip(sums or nodes, parts, strict=True):
        canvas.replace(node, part)
    if sums:
        canvas.graph.remove(nodes, safe=True)
    for value in constants:
        canvas.drop(value)


def _place(node: Any, product: Any) -> int:
    return 0 if node.inputs[0] is product.outputs[0] else 1


def _stacked(canvas: Canvas, values: Sequence[Any]) -> Any:
    """The rows of several constants in one."""
    return canvas.constant(values[0].name, np.concatenate([value.const_value.numpy() for value in values]))

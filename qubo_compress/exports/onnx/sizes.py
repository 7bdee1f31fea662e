"""Sizes that a graph reads from inner values are read from its inputs instead, so that equal ones are computed once.

torch's exporter knows that the length of a text is the same in every layer, but lets every layer read it from its own
values, and compute its own attention mask of that length.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.exports.onnx.canvas import EXTRA


def read_sizes_from_inputs(model: Any) -> None:
    """Replace slices of shapes by sizes of inputs, or by constants, and compute what is now equal only once."""
    ir, graph = require("onnx_ir", EXTRA), model.graph
    found: dict[str, Any] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            name = _name(size)
            if name and name not in found:
                node = ir.node("Shape", inputs=[value], attributes={"start": axis, "end": axis + 1})
                graph.insert_before(graph[0], [node])
                found[name] = node.outputs[0]
    for node in list(graph):
        size = _single_size(node)
        known = found.get(_name(size)) if size is not None else None
        if isinstance(size, int):
            constant = ir.node("Constant", inputs=[], attributes={"value": ir.tensor(np.array([size]))})
            graph.insert_before(node, [constant])
            known = constant.outputs[0]
        if known is not None:
            node.outputs[0].replace_all_uses_with(known)
    common = require("onnx_ir.passes.common", EXTRA)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.CommonSubexpressionEliminationPass()(model)


def _name(size: Any) -> str:
    """The name of a size that is not known ahead; none for numbers and for computed sizes."""
    return "" if isinstance(size, int) or size is None else str(getattr(size, "value", None) or "")


def _single_size(node: Any) -> Any:
    """The size that a slice of a shape takes, if it takes one and that is known or has a name."""
    if node.op_type != "Slice" or len(node.inputs) != 3 or node.outputs[0].is_graph_output():
        return None
    whole, ends = node.inputs[0].producer(), [end.const_value for end in node.inputs[1:]]
    if whole is None or whole.op_type != "Shape" or whole.attributes.get("end") or None in ends:
        return None
    shape = whole.inputs[0].shape
    start = whole.attributes["start"].as_int() if "start" in whole.attributes else 0
    if shape is None or start != 0:
        return None
    cut = list(shape)[int(ends[0].numpy()[0]) : int(ends[1].numpy()[0])]
    return cut[0] if len(cut) == 1 else None

"""A finished graph as the bytes of a file, without what only its writer needed."""

from __future__ import annotations

from typing import Any

from qubo_compress._internal.optional import require
from qubo_compress.exports.onnx.canvas import EXTRA, Canvas
from qubo_compress.exports.onnx.names import name_axes
from qubo_compress.menu.storage.portable import Portable, Product, ScaledCodes

PLAIN, PACKED, ATTENTION, TWO_BITS = 20, 21, 23, 25
"""Versions of ONNX's operators: without packed integers, with those of 4 and 16 bits, attention, integers of 2 bits."""

FORMATS = {PLAIN: 9, PACKED: 10, ATTENTION: 11, TWO_BITS: 13}
"""The oldest version of the file format that has these operators."""

PRODUCER = "qubo_compress"


def version_needed(forms: list[Portable | None]) -> int:
    """The version of operators that a network is traced with.

    Example:
        >>> version_needed([]), version_needed([None])
        (20, 20)
    """
    codes = [part for form in forms for part in _codes(form)]
    return PLAIN if all(part.bits == 8 for part in codes) else PACKED


def _codes(form: Portable | None) -> list[ScaledCodes]:
    if isinstance(form, Product):
        return [part for part in (form.left, form.right) if isinstance(part, ScaledCodes)]
    return [form] if isinstance(form, ScaledCodes) else []


def finished(canvas: Canvas) -> Any:
    """The graph as a protocol buffer of onnx: in order, without unused nodes, notes, and shapes of what is between."""
    ir, common = require("onnx_ir", EXTRA), require("onnx_ir.passes.common", EXTRA)
    model, graph = canvas.model, canvas.graph
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    graph.sort()
    name_axes(graph)
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    kept = {id(value) for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    for node in graph:
        node.name = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in kept:
                value.shape = value.type = None  # any program infers them
    two_bits = any(value.dtype in (ir.DataType.INT2, ir.DataType.UINT2) for value in graph.initializers.values())
    attention = any(node.op_type == "Attention" for node in graph)
    version = TWO_BITS if two_bits else ATTENTION if attention else graph.opset_imports[""]
    graph.opset_imports[""] = version
    model.ir_version = FORMATS[version]
    model.producer_name, model.producer_version = PRODUCER, None
    model.metadata_props.clear()
    graph.name = "network"
    return ir.to_proto(model)


def graph_bytes(model: Any) -> int:
    """Bytes of a file without the data of its constants."""
    data = sum(len(constant.raw_data) for constant in model.graph.initializer)
    return int(model.ByteSize()) - data

"""Attention as one operator: written for onnxruntime only.

For inputs of one row, the twelve nodes that torch's exporter writes take longer than the products of the layers around
them. Of onnxruntime's three operators for attention, the standard's is the fastest on a CPU: for one row of four heads
2.1 microseconds, ``MultiHeadAttention`` 3.4, ``GroupQueryAttention`` 3.7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qubo_compress._internal.optional import require
from qubo_compress.exports.onnx.canvas import EXTRA

OPERATOR = "Attention"

LATER = "qubo_compress.later"
"""Where the operator comes from while the exporter works with an older version of the standard's operators."""

AXES = 4
"""Of queries, keys and values in heads."""

HEADS_FIRST = (0, 2, 1, 3)
"""(batch, positions, heads, features) <-> (batch, heads, positions, features)."""


def attention_translations() -> dict[Any, Callable[..., Any]]:
    """What torch's exporter writes for attention: the operator where it computes the same, else the exporter's own."""
    script, library = require("onnxscript", EXTRA), require("onnxscript.function_libs.torch_lib.ops.nn", EXTRA)
    plain, shape = script.opset18, require("onnx_ir", EXTRA).Shape
    operator = script.values.Op(script.values.Opset(LATER, 1), OPERATOR, _schema())

    def attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        joined = [_before_heads(one) for one in (query, key, value)]
        if attn_mask is not None or None in joined or not _is_plain(query, key, value, is_causal):
            return library.aten_scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
            )
        heads, size = query.shape[1], query.shape[3]
        given = {} if scale is None else {"scale": float(scale)}
        mixed = operator(*joined, q_num_heads=heads, kv_num_heads=heads, is_causal=int(is_causal), **given)
        mixed.shape = shape([query.shape[0], query.shape[2], heads * size])
        return plain.Transpose(plain.Reshape(mixed, plain.Constant(value_ints=[0, 0, heads, size])), perm=HEADS_FIRST)

    return {torch.ops.aten.scaled_dot_product_attention.default: attention}


def _schema() -> Any:
    """What onnx must know of the operator in that place."""
    schemas = require("onnx", EXTRA).defs.OpSchema
    numbers, kinds = schemas.FormalParameter, schemas.AttrType
    attributes = {"q_num_heads": kinds.INT, "kv_num_heads": kinds.INT, "is_causal": kinds.INT, "scale": kinds.FLOAT}
    return schemas(
        OPERATOR, LATER, 1, inputs=[numbers(name, "T") for name in ("query", "key", "value")],
        outputs=[numbers("output", "T")], type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[schemas.Attribute(name, kind, required=False) for name, kind in attributes.items()],
    )  # fmt: skip


def _before_heads(value: Any) -> Any:
    """(batch, positions, features) that were split into heads; None if the value comes about in another way."""
    exchange = value.producer()
    if exchange is None or exchange.op_type != "Transpose":
        return None
    split = exchange.inputs[0].producer()
    if tuple(exchange.attributes["perm"].as_ints()) != HEADS_FIRST or split is None or split.op_type != "Reshape":
        return None
    features, whole = _sizes(split.inputs[0]), _sizes(split.outputs[0])
    known = len(features) == AXES - 1 and len(whole) == AXES and None not in features[:2]
    return split.inputs[0] if known and features[:2] == whole[:2] else None


def _is_plain(query: Any, key: Any, value: Any, is_causal: bool) -> bool:
    """Whether all are float32 with as many heads and features, and a query has its own key where some are hidden."""
    shapes = [_sizes(one) for one in (query, key, value)]
    known = all(isinstance(shape[1], int) and isinstance(shape[3], int) for shape in shapes)
    known = known and query.dtype == require("onnx_ir", EXTRA).DataType.FLOAT
    same = len({(shape[1], shape[3]) for shape in shapes}) == 1
    return known and same and (not is_causal or shapes[0][2] == shapes[1][2])


def _sizes(value: Any) -> list[Any]:
    """The sizes of a value, as numbers and names; None for what is not known."""
    return [getattr(size, "value", size) for size in value.shape or ()]


def join_heads(graph: Any) -> None:
    """Leave out pairs of ``Reshape`` of which the second undoes the first: heads that are split and joined again.

    The operator gets its own name.
    """
    graph.opset_imports.pop(LATER, None)
    for node in list(graph):
        node.domain = "" if node.domain == LATER else node.domain
        if node.op_type != "Reshape" or node.outputs[0].is_graph_output():
            continue
        before = node.inputs[0].producer()
        if before is not None and before.op_type == "Reshape" and _is_same(before.inputs[0], node.outputs[0]):
            node.outputs[0].replace_all_uses_with(before.inputs[0])


def _is_same(one: Any, other: Any) -> bool:
    sizes = _sizes(one)
    return bool(sizes) and None not in sizes and sizes == _sizes(other)

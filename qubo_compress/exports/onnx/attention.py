"""Attention as torch's exporter writes it, with the last two axes of the keys exchanged in one node instead of ten.

For keys of unknown sizes the exporter merges all leading axes, exchanges the last two, and splits the leading ones
again, with sizes that it cuts from the shape at every run. For inputs of one row these nodes take longer than the
products.
"""

from __future__ import annotations

from typing import Any

from qubo_compress._internal.optional import require
from qubo_compress.exports.onnx.canvas import EXTRA

FAR = 1 << 31
"""A position beyond the end of any shape."""

MERGED = (None, (-2, -1), (-1, FAR))
SPLIT = ((-FAR, -2), (-1, FAR), (-2, -1))
"""Which sizes of the keys a shape joins; None: all others, merged."""


def exchange_axes_at_once(graph: Any) -> None:
    """Replace every such chain of nodes by one ``Transpose``."""
    ir = require("onnx_ir", EXTRA)
    for node in list(graph):
        if node.op_type != "Reshape" or node.outputs[0].is_graph_output():
            continue
        keys = _exchanged(node)
        if keys is not None:
            order = [*range(len(keys.shape) - 2), len(keys.shape) - 1, len(keys.shape) - 2]
            made = ir.node("Transpose", inputs=[keys], attributes={"perm": order})
            graph.insert_before(node, [made])
            node.outputs[0].replace_all_uses_with(made.outputs[0])


def _exchanged(last: Any) -> Any:
    """The keys whose last two axes a chain exchanges that ends with this node; None if it is another chain."""
    middle = last.inputs[0].producer()
    if middle is None or middle.op_type != "Transpose" or tuple(middle.attributes["perm"].as_ints()) != (0, 2, 1):
        return None
    first = middle.inputs[0].producer()
    if first is None or first.op_type != "Reshape" or first.inputs[0].shape is None:
        return None
    keys = first.inputs[0]
    same = _sizes(first.inputs[1], keys) == MERGED and _sizes(last.inputs[1], keys) == SPLIT
    return keys if same else None


def _sizes(shape: Any, of: Any) -> tuple[Any, ...]:
    """Which sizes of a value a shape joins, as (start, stop) of slices; None for a constant of -1."""
    joined = shape.producer()
    if joined is None or joined.op_type != "Concat":
        return ()
    return tuple(_size(part, of) for part in joined.inputs)


def _size(part: Any, of: Any) -> Any:
    if part.const_value is not None:
        return None if part.const_value.numpy().tolist() == [-1] else ()
    cut = part.producer()
    if cut is None or cut.op_type != "Slice" or len(cut.inputs) != 3:
        return ()
    whole, ends = cut.inputs[0].producer(), [end.const_value for end in cut.inputs[1:]]
    known = whole is not None and whole.op_type == "Shape" and whole.inputs[0] is of and None not in ends
    return tuple(max(-FAR, min(FAR, int(end.numpy()[0]))) for end in ends) if known else ()

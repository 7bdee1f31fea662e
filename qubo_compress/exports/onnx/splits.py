"""Weights that a network splits before it multiplies, as attention does, become a constant for each part."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch

from qubo_compress.exports.onnx.canvas import Canvas
from qubo_compress.exports.weights import Held
from qubo_compress.menu.storage.portable import Halves, Portable, ScaledCodes


def split_constants(canvas: Canvas) -> None:
    """Split every tensor along its first axis whose only use is such a split."""
    for value in list(canvas.graph.initializers.values()):
        uses = list(value.uses())
        if value.name in canvas.held and len(uses) == 1 and uses[0][0].op_type == "Split" and uses[0][1] == 0:
            _split(canvas, value, uses[0][0])


def _split(canvas: Canvas, value: Any, node: Any) -> None:
    held = canvas.held[value.name]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    sizes = _sizes(node, len(held.value)) if axis == 0 and held.value.ndim else []
    if not sizes or any(output.is_graph_output() for output in node.outputs):
        return
    ends = list(accumulate(sizes, initial=0))
    for number, (output, (start, stop)) in enumerate(zip(node.outputs, pairwise(ends), strict=True)):
        part = held.value[start:stop].contiguous()
        made = canvas.numbers(f"{value.name}_{number}", part)
        canvas.held[made.name] = Held(part, _rows(held.portable, start, stop), held.source)
        output.replace_all_uses_with(made)
    canvas.graph.remove(node, safe=True)
    canvas.drop(value)


def _sizes(node: Any, rows: int) -> list[int]:
    """Lengths of the parts; none if the graph computes them."""
    count = len(node.outputs)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        known = node.inputs[1].const_value
        return [] if known is None else [int(size) for size in known.numpy()]
    longest = -(-rows // count)
    return [max(0, min(longest, rows - longest * number)) for number in range(count)]


def _rows(form: Portable | None, start: int, stop: int) -> Portable | None:
    """Some rows of a form; None if it is a product."""
    if isinstance(form, Halves):
        return Halves(form.values[start:stop])
    if not isinstance(form, ScaledCodes):
        return None
    by_row = form.steps.numel() > 1 and form.axis == 0
    steps: torch.Tensor = form.steps[start:stop] if by_row else form.steps
    return ScaledCodes(form.codes[start:stop].contiguous(), steps, form.axis)

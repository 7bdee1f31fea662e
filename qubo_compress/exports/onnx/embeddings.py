"""Tables of which a graph picks rows: the packed rows are picked, and only these are unpacked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qubo_compress.exports.onnx.canvas import Canvas, narrow_name
from qubo_compress.exports.onnx.linear import Blocks
from qubo_compress.menu.storage.portable import Product, ScaledCodes

FLOAT, INT32 = 1, 6
"""ONNX's numbers of these types."""


def picks_rows(value: Any) -> bool:
    """Whether all uses of a table pick rows of it."""
    uses = list(value.uses())
    return bool(uses) and all(_is_pick(node, position) for node, position in uses)


def _is_pick(node: Any, position: int) -> bool:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return node.op_type == "Gather" and position == 0 and axis == 0


def place_table(canvas: Canvas, value: Any, codes: ScaledCodes, source: str) -> None:
    """Replace a table of rows with a step each, of which rows are picked."""
    table = _Table(canvas, value.name, codes)
    for node, _ in list(value.uses()):
        canvas.replace(node, table.rows(node.inputs[1]))
    canvas.drop(value)
    canvas.record(source, narrow_name(table.bits), table.constants, "Gather of packed rows")


def place_product_table(canvas: Canvas, value: Any, form: Product, source: str) -> None:
    """Replace a table that is a product: rows of its left factor are picked, then multiplied by the right one."""
    table = _Table(canvas, f"{value.name}_left", form.left)
    constants = list(table.constants)
    if isinstance(form.right, ScaledCodes):
        codes = canvas.integers(f"{value.name}_right_codes", form.right.codes, canvas.width(form.right))
        steps = canvas.numbers(f"{value.name}_right_steps", form.right.steps)
        right, constants = (
            canvas.call("DequantizeLinear", [codes, steps], axis=form.right.axis),
            [*constants, codes, steps],
        )
    else:
        right = canvas.numbers(f"{value.name}_right", form.right)
        constants.append(right)
    for node, _ in list(value.uses()):
        rows = table.rows(node.inputs[1])
        canvas.replace(node, canvas.call("MatMul", [rows, right]))
    canvas.drop(value)
    canvas.record(source, f"product of {narrow_name(table.bits)}", constants, "Gather of packed rows, MatMul")


class _Table:
    """A table in bytes of one or more codes each.

    A byte holds codes of columns that are a part of the width apart, so that the parts are unpacked one after the other
    and need no reordering.
    """

    def __init__(self, canvas: Canvas, name: str, codes: ScaledCodes) -> None:
        self.canvas, self.name = canvas, name
        self.bits, self.columns = codes.bits, codes.codes.shape[1]
        self.steps: Any = None
        if self.bits >= 8:
            self.packed = canvas.integers(f"{name}_codes", codes.codes, self.bits)
        else:
            each = 8 // self.bits
            self.part = -(-self.columns // each)
            padded = torch.zeros(len(codes.codes), each * self.part, dtype=torch.int64)
            padded[:, : self.columns] = codes.codes + self.middle
            parts = padded.reshape(len(padded), each, self.part) << (self.bits * torch.arange(each))[:, None]
            self.packed = canvas.constant(f"{name}_codes", parts.sum(1).to(torch.uint8).numpy())
        self.constants = [self.packed]
        if not (codes.steps.numel() == 1 and float(codes.steps) == 1.0):
            shape = (1, 1) if codes.steps.numel() == 1 else (-1, 1) if codes.axis == 0 else (1, -1)
            self.by_row = shape == (-1, 1)
            self.steps = canvas.numbers(f"{name}_steps", codes.steps.reshape(shape))
            self.constants.append(self.steps)

    @property
    def middle(self) -> int:
        """What is added to codes so that none is negative."""
        return 1 << (self.bits - 1)

    def rows(self, picked: Any) -> Any:
        """The float32 rows of some indices."""
        call = self.canvas.call
        found = call("Gather", [self.packed, picked], axis=0)
        if self.bits < 8:
            found = self._unpacked(call("Cast", [found], to=INT32))
        found = call("Cast", [found], to=FLOAT)
        if self.bits < 8:
            found = call("Sub", [found, self._scalar("middle", np.float32(self.middle))])
        if self.steps is None:
            return found
        steps = call("Gather", [self.steps, picked], axis=0) if self.by_row else self.steps
        return call("Mul", [found, steps])

    def _unpacked(self, whole: Any) -> Any:
        """The codes of (..., bytes) as (..., columns); int32, because OpenVINO shifts bytes wrongly."""
        call, parts = self.canvas.call, []
        for number in range(8 // self.bits):
            part = whole
            if number:
                part = call("Div", [part, self._scalar(f"place{number}", np.int32(1 << (self.bits * number)))])
            if number < 8 // self.bits - 1:
                part = call("BitwiseAnd", [part, self._scalar("mask", np.int32((1 << self.bits) - 1))])
            parts.append(part)
        found = call("Concat", parts, axis=-1)
        if self.columns == self.part * len(parts):
            return found
        ends = [
            self._scalar(name, np.array([end])) for name, end in (("first", 0), ("columns", self.columns), ("axis", -1))
        ]
        return call("Slice", [found, *ends])

    def _scalar(self, name: str, value: Any) -> Any:
        return self.canvas.constant(f"{self.name}_{name}", value)


def pick_from_blocks(canvas: Canvas, blocks: Blocks, name: str, node: Any) -> None:
    """Replace a pick of rows by one from the constants of ``MatMulNBits``, which another product shares."""
    call, picked = canvas.call, node.inputs[1]

    def whole(label: str, values: Any) -> Any:
        return canvas.constant(f"{name}_{label}", values)

    found = call("Cast", [call("Gather", [blocks.packed, picked], axis=0)], to=INT32)
    each = 8 // blocks.bits
    if each > 1:
        places = whole("places", np.array([1 << (blocks.bits * n) for n in range(each)], np.int32))
        apart = call("Unsqueeze", [found, whole("axis", np.array([-1]))])
        shifted = call("Div", [apart, places])
        found = call("BitwiseAnd", [shifted, whole("mask", np.int32((1 << blocks.bits) - 1))])
    # (..., blocks, bytes, codes of a byte) -> (..., blocks, inputs of a block)
    rank = len(picked.shape)
    shape = whole("shape", np.array([0] * rank + [blocks.packed.shape[1], blocks.size]))
    numbers = call("Cast", [call("Reshape", [found, shape])], to=FLOAT)
    centred = call("Sub", [numbers, whole("middle", np.float32(1 << (blocks.bits - 1)))])
    steps = call("Gather", [blocks.steps, picked], axis=0)
    spread = call("Unsqueeze", [steps, whole("end", np.array([-1]))])
    scaled = call("Mul", [centred, spread])
    joined = call("Reshape", [scaled, whole("joined", np.array([0] * rank + [-1]))])
    if blocks.inputs < blocks.packed.shape[1] * blocks.size:
        ends = [whole(f"cut{n}", np.array([end])) for n, end in enumerate((0, blocks.inputs, -1))]
        joined = call("Slice", [joined, *ends])
    canvas.replace(node, joined)

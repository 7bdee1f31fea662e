"""Linear layers as products with packed integers, which onnxruntime multiplies without unpacking them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qubo_compress.exports.exported import IN_INTEGERS, NOWHERE, faster_packed
from qubo_compress.exports.onnx.canvas import MICROSOFT, Canvas, narrow_name
from qubo_compress.exports.weights import Held
from qubo_compress.menu.storage.portable import Halves, ScaledCodes

BLOCKS = (32, 64, 128, 256, 16)
"""Inputs that share a step in MatMulNBits; of several that take equally few bytes, the first."""

ACCURACY_LEVEL = 4
"""Inputs are rounded to 8 bits too; at other levels, 2 bits run in a kernel ten times slower than floating point."""


@dataclass(frozen=True, eq=False)
class LinearUse:
    """A node that multiplies by the transpose of a weight.

    Attributes:
        node: a ``MatMul`` behind a ``Transpose`` of the weight, or a ``Gemm``.
        transpose: that ``Transpose``, or None.
    """

    node: Any
    transpose: Any = None


def linear_uses(value: Any) -> list[LinearUse] | None:
    """Every use of a weight (outputs, inputs), if all are products with its transpose; otherwise None."""
    found = []
    for node, position in value.uses():
        if node.op_type == "Gemm" and position == 1 and _is_plain(node):
            found.append(LinearUse(node))
            continue
        if node.op_type != "Transpose" or tuple(node.attributes["perm"].as_ints()) != (1, 0):
            return None
        products = list(node.outputs[0].uses())
        if not products or any(used.op_type != "MatMul" or place != 1 for used, place in products):
            return None
        found += [LinearUse(used, node) for used, _ in products]
    return found or None


def _is_plain(node: Any) -> bool:
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    factors = values.get("alpha", 1.0), values.get("beta", 1.0)
    return factors == (1.0, 1.0) and values.get("transB", 0) == 1 and values.get("transA", 0) == 0


@dataclass(frozen=True, eq=False)
class Turned:
    """A weight as (inputs, outputs) in packed integers.

    In this order of axes, with a step for each output, onnxruntime makes ``MatMulNBits`` of it and the product.

    Attributes:
        canvas: the graph.
        packed, steps: its constants.
        axis: of the steps; None for a single one.
    """

    canvas: Canvas
    packed: Any
    steps: Any
    axis: int | None

    @classmethod
    def of(cls, canvas: Canvas, name: str, codes: ScaledCodes) -> Turned:
        """The constants of codes (outputs, inputs)."""
        turned, single = codes.transposed(), codes.steps.numel() == 1
        packed = canvas.integers(f"{name}_codes", turned.codes, canvas.width(codes, name))
        steps = canvas.numbers(f"{name}_steps", turned.steps.reshape(()) if single else turned.steps)
        return cls(canvas, packed, steps, None if single else turned.axis)

    def multiply(self, inputs: Any) -> Any:
        """A product, with numbers of its own: onnxruntime leaves numbers alone that two products share."""
        axis = {} if self.axis is None else {"axis": self.axis}
        weight = self.canvas.call("DequantizeLinear", [self.packed, self.steps], **axis)
        return self.canvas.call("MatMul", [inputs, weight])


def replace_products(canvas: Canvas, uses: list[LinearUse], product: Callable[[Any], Any]) -> None:
    """Replace every use by a product, and a sum if it is a ``Gemm`` with a bias.

    Args:
        canvas: the graph.
        uses: of one weight.
        product: inputs -> output of the product.
    """
    for use in uses:
        node = use.node
        found = product(node.inputs[0])
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            found = _with_bias(canvas, found, node.inputs[2])
        canvas.replace(node, found)
        if use.transpose is not None and not use.transpose.outputs[0].uses():
            canvas.graph.remove(use.transpose, safe=True)


def _with_bias(canvas: Canvas, product: Any, bias: Any) -> Any:
    """The sum of a product of matrices and a bias.

    It is written as a difference: onnxruntime makes one ``Gemm`` of a product and a sum before it sees that the weight
    is packed, and ``Gemm`` has no kernel for packed weights.
    """
    held = canvas.held.get(bias.name)
    if held is None or len(bias.uses()) > 1:
        return canvas.call("Add", [product, bias])
    form = held.portable
    if isinstance(form, ScaledCodes):
        form = ScaledCodes(-form.codes, form.steps, form.axis)
    elif isinstance(form, Halves):
        form = Halves(-form.values)
    negated = canvas.numbers(f"{bias.name}_negated", -held.value)
    canvas.held[negated.name] = Held(-held.value, form, held.source)
    return canvas.call("Sub", [product, negated])


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight as onnxruntime's ``MatMulNBits`` takes it.

    Attributes:
        packed: constant (outputs, blocks, bytes of a block) of unsigned codes, lowest bits first.
        steps: constant (outputs, blocks) float32.
        bits: of a code: 2, 4 or 8.
        size: inputs of a block.
        inputs, outputs: of the layer.
    """

    packed: Any
    steps: Any
    bits: int
    size: int
    inputs: int
    outputs: int


def in_blocks(canvas: Canvas, name: str, codes: ScaledCodes) -> Blocks:
    """The constants of ``MatMulNBits`` for codes (outputs, inputs) with steps by output, of 8 bits at most."""
    bits, (outputs, inputs) = codes.bits, codes.codes.shape
    size = min(BLOCKS, key=lambda length: -(-inputs // length) * (length * bits / 8 + 4))
    count = -(-inputs // size)
    padded = torch.zeros(outputs, count * size, dtype=torch.int16)
    padded[:, :inputs] = codes.codes
    packed = canvas.constant(
        f"{name}_codes", lowest_first(padded + (1 << (bits - 1)), bits).reshape(outputs, count, -1)
    )
    rows = codes.by_row()
    assert rows is not None  # noqa: S101 - checked by the caller
    steps = canvas.numbers(f"{name}_steps", rows.steps[:, None].expand(outputs, count))
    return Blocks(packed, steps, bits, size, inputs, outputs)


def lowest_first(values: Tensor, bits: int) -> Any:
    """(rows, columns x bits / 8) bytes of unsigned codes, the first code in the lowest bits.

    Example:
        >>> lowest_first(torch.tensor([[1, 2, 3, 4]]), 4).tolist()
        [[33, 67]]
    """
    each = 8 // bits
    parts = values.to(torch.int64).reshape(len(values), -1, each) << (bits * torch.arange(each))
    return parts.sum(-1).to(torch.uint8).numpy()


def multiply(canvas: Canvas, blocks: Blocks, inputs: Any) -> Any:
    """The product by onnxruntime's own operator."""
    canvas.graph.opset_imports[MICROSOFT] = 1
    return canvas.call(
        "MatMulNBits", [inputs, blocks.packed, blocks.steps], domain=MICROSOFT, K=blocks.inputs,
        N=blocks.outputs, bits=blocks.bits, block_size=blocks.size, accuracy_level=ACCURACY_LEVEL,
    )  # fmt: skip


def place_linear(canvas: Canvas, value: Any, codes: ScaledCodes, uses: list[LinearUse], source: str) -> None:
    """Replace a weight that only multiplies."""
    name, bits = value.name, canvas.width(codes, value.name)
    if name not in canvas.rounded and canvas.runtime == "onnxruntime" and bits <= 8 and codes.by_row() is not None:
        blocks = in_blocks(canvas, name, codes)
        replace_products(canvas, uses, lambda inputs: multiply(canvas, blocks, inputs))
        constants, runs = [blocks.packed, blocks.steps], "MatMulNBits"
    else:
        turned = Turned.of(canvas, name, codes)
        replace_products(canvas, uses, turned.multiply)
        constants, runs = [turned.packed, turned.steps], "DequantizeLinear, MatMul"
    canvas.drop(value)
    by_output = bits <= 8 and (codes.steps.numel() == 1 or codes.axis == 0)
    packed = IN_INTEGERS if name in canvas.rounded else faster_packed(codes.codes.numel())
    canvas.record(source, narrow_name(bits), constants, runs, packed if by_output else NOWHERE)

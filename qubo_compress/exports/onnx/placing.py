"""Puts every tensor of a network into a graph in its smallest form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qubo_compress.exports.exported import IN_INTEGERS, IN_INTEGERS_OPENVINO, NOT_TIMED, NOWHERE, faster_packed
from qubo_compress.exports.onnx.canvas import Canvas, narrow_name
from qubo_compress.exports.onnx.embeddings import (
    pick_from_blocks,
    picks_rows,
    place_product_table,
    place_table,
)
from qubo_compress.exports.onnx.linear import in_blocks, linear_uses, multiply, place_linear, replace_products
from qubo_compress.exports.weights import Held
from qubo_compress.menu.storage.portable import Halves, Product, ScaledCodes

NODE_BYTES = 100
"""About what a node and a constant's name take in the file: a form that saves less is not worth it."""

ONNX_TYPES = {torch.float32: 1, torch.float16: 10, torch.float64: 11, torch.bfloat16: 16}


def place_all(canvas: Canvas) -> None:
    """Place every constant that holds a tensor of the network."""
    matrices = [value for value in canvas.graph.initializers.values() if len(value.shape) > 1]
    for value in matrices:
        _place_if_used(canvas, value)
    for value in list(canvas.graph.initializers.values()):  # biases, which matrices may have replaced
        _place_if_used(canvas, value)


def _place_if_used(canvas: Canvas, value: Any) -> None:
    held = canvas.held.pop(value.name, None)
    if held is None:
        return
    if not value.uses():
        canvas.drop(value)
    elif held.value.is_floating_point():
        canvas.float_bytes += held.value.numel() * held.value.element_size()
        _place(canvas, value, held)


def _place(canvas: Canvas, value: Any, held: Held) -> None:
    form, single = held.portable, held.value.dtype == torch.float32
    if isinstance(form, ScaledCodes) and held.value.ndim == 2 and single:
        uses = linear_uses(value)
        if uses is not None and (canvas.packs(form) or value.name in canvas.rounded):
            return place_linear(canvas, value, form, uses, held.source)
        if picks_rows(value):
            return place_table(canvas, value, form, held.source)
        if (
            canvas.packs(form)
            and canvas.runtime == "onnxruntime"
            and form.bits <= 8
            and form.by_row() is not None
            and _is_tied(value)
        ):
            return _place_tied(canvas, value, form, held.source)
    if isinstance(form, Product) and held.value.ndim == 2 and single and picks_rows(value):
        return place_product_table(canvas, value, form, held.source)
    return _place_anywhere(canvas, value, held)


def _is_tied(value: Any) -> bool:
    """Whether rows of a table are picked and products with its transpose are made."""
    return all(node.op_type in ("Gather", "Gemm", "Transpose") for node, _ in value.uses())


def _place_tied(canvas: Canvas, value: Any, codes: ScaledCodes, source: str) -> None:
    """Place a table that also multiplies, in one copy."""
    blocks = in_blocks(canvas, value.name, codes)
    for node, _ in list(value.uses()):
        if node.op_type == "Gather":
            pick_from_blocks(canvas, blocks, value.name, node)
    uses = linear_uses(value)
    replace_products(canvas, uses or [], lambda inputs: multiply(canvas, blocks, inputs))
    canvas.drop(value)
    constants = [blocks.packed, blocks.steps]
    faster = faster_packed(codes.codes.numel())
    canvas.record(source, narrow_name(codes.bits), constants, "MatMulNBits, Gather of packed rows", faster)


def _place_anywhere(canvas: Canvas, value: Any, held: Held) -> None:
    """Place a tensor for any use: its value is computed from its constants in front of all else."""
    readers = ", ".join(sorted({node.op_type for node, _ in value.uses()}))
    form, faster = held.portable, NOWHERE
    if isinstance(form, Halves) or _is_wasteful(canvas, value, held):
        form = None
    if form is None and _fits_half(held.value):
        form = Halves(held.value.to(torch.float16))
    if form is None:
        _place_numbers(canvas, value, held, readers)
        return
    if isinstance(form, ScaledCodes):
        kind = narrow_name(canvas.width(form, value.name))
        if value.name in canvas.rounded:
            found, constants = dequantized(canvas, value.name, form)
            runs, faster = f"{readers} in integers", _faster_in_integers(canvas, value, form)
        else:
            found, constants = unpacked(canvas, value.name, form)
            runs = f"{readers}, unpacked when loaded"
    elif isinstance(form, Product):
        found, constants, kind = _multiplied(canvas, value.name, form)
        runs = f"{readers}, multiplied when loaded"
    else:
        assert isinstance(form, Halves)  # noqa: S101 - there is no other form
        constants = [canvas.numbers(f"{value.name}_half", form.values)]
        found = canvas.call("Cast", constants, to=ONNX_TYPES[held.value.dtype])
        kind, runs = "float16", readers
    if held.value.dtype != torch.float32 and not isinstance(form, Halves):
        found = canvas.call("Cast", [found], to=ONNX_TYPES[held.value.dtype])
    value.replace_all_uses_with(found)
    canvas.drop(value)
    canvas.record(held.source, kind, constants, runs, faster)


def _faster_in_integers(canvas: Canvas, value: Any, codes: ScaledCodes) -> str:
    """Where a weight of 8 bits and rounded inputs saves time: onnxruntime needs rounded outputs for that, too."""
    if codes.codes.ndim < 2 or canvas.width(codes, value.name) > 8:
        return NOWHERE
    if any(node.op_type == "ConvTranspose" for node, _ in value.uses()):
        return NOT_TIMED
    return IN_INTEGERS if canvas.runtime == "onnxruntime" else IN_INTEGERS_OPENVINO


def _is_wasteful(canvas: Canvas, value: Any, held: Held) -> bool:
    """Whether codes, steps and nodes take more bytes than the numbers, where no kernel needs the codes."""
    form, numbers = held.portable, held.value
    if not isinstance(form, ScaledCodes) or value.name in canvas.rounded:
        return False
    size = form.codes.numel() * canvas.width(form) / 8 + 4 * form.steps.numel() + 2 * NODE_BYTES
    return size >= numbers.numel() * numbers.element_size()


def _fits_half(value: Tensor) -> bool:
    """Whether numbers of more bits are exactly those of float16, and half the bytes save more than a node takes."""
    saved = value.numel() * (value.element_size() - 2)
    return saved > 2 * NODE_BYTES and bool((value.to(torch.float16).to(value.dtype) == value).all())


def _place_numbers(canvas: Canvas, value: Any, held: Held, readers: str) -> None:
    made = canvas.numbers(f"{value.name}_numbers", held.value)
    value.replace_all_uses_with(made)
    name, source = value.name, held.source
    canvas.drop(value)
    del canvas.graph.initializers[made.name]
    made.name = made.const_value.name = name
    canvas.graph.register_initializer(made)
    canvas.record(source, str(held.value.dtype).removeprefix("torch."), [made], readers)


def unpacked(canvas: Canvas, name: str, codes: ScaledCodes) -> tuple[Any, list[Any]]:
    """The float32 numbers of packed codes, and the constants behind them.

    ``Cast`` and ``Mul`` of constants are computed once when a file is loaded; ``DequantizeLinear`` is not, because
    programs look for it: convolutions behind it ran up to 2.6 times slower.
    """
    packed = canvas.integers(f"{name}_codes", codes.codes, canvas.width(codes))
    steps = canvas.numbers(f"{name}_steps", codes.spread() if codes.steps.numel() > 1 else codes.steps.reshape(()))
    numbers = canvas.call("Cast", [packed], to=ONNX_TYPES[torch.float32])
    return canvas.call("Mul", [numbers, steps]), [packed, steps]


def dequantized(canvas: Canvas, name: str, codes: ScaledCodes) -> tuple[Any, list[Any]]:
    """The float32 numbers of codes that a kernel multiplies as they are, and the constants behind them."""
    packed = canvas.integers(f"{name}_codes", codes.codes, canvas.width(codes, name))
    single = codes.steps.numel() == 1
    steps = canvas.numbers(f"{name}_steps", codes.steps.reshape(()) if single else codes.steps)
    axis = {} if single else {"axis": codes.axis}
    return canvas.call("DequantizeLinear", [packed, steps], **axis), [packed, steps]


def _multiplied(canvas: Canvas, name: str, form: Product) -> tuple[Any, list[Any], str]:
    """The value of a product, its constants, and their form."""
    left, constants = unpacked(canvas, f"{name}_left", form.left)
    if isinstance(form.right, Tensor):
        right, rank = canvas.numbers(f"{name}_right", form.right), form.right.shape[0]
        constants.append(right)
    else:
        right, more = unpacked(canvas, f"{name}_right", form.right)
        rank, constants = form.right.codes.shape[0], [*constants, *more]
    if tuple(form.left.codes.shape[1:]) != (rank,):
        left = canvas.call("Reshape", [left, canvas.constant(f"{name}_rows", np.array([-1, rank]))])
    shape = canvas.constant(f"{name}_shape", np.array(form.shape))
    found = canvas.call("Reshape", [canvas.call("MatMul", [left, right]), shape])
    if form.gains is not None:
        constants.append(canvas.numbers(f"{name}_gains", form.spread_gains()))
        found = canvas.call("Mul", [found, constants[-1]])
    return found, constants, f"product of {narrow_name(canvas.width(form.left))}"

"""Batch normalisations, which a graph needs no node for: behind a convolution they become its steps and its bias.

    (conv(x; q s) + b - mean) / sqrt(variance + epsilon) * weight + bias  =  conv(x; q (s g)) + (b - mean) g + bias,
    g = weight / sqrt(variance + epsilon)

with codes q and one step s for every output channel. Codes stay; if g is negative, they change their sign.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qubo_compress.exports.onnx.canvas import Canvas
from qubo_compress.exports.weights import Held
from qubo_compress.menu.storage.portable import Halves, Portable, Product, ScaledCodes

EPSILON = 1e-5
"""ONNX's default."""


def fold_normalisations(canvas: Canvas) -> None:
    """Fold every batch normalisation into the convolution before it, or into one product and one sum."""
    for node in list(canvas.graph):
        if node.op_type == "BatchNormalization" and all(value.name in canvas.held for value in node.inputs[1:5]):
            values = [canvas.held[value.name] for value in node.inputs[1:5]]
            epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else EPSILON
            if not _into_convolution(canvas, node, values, epsilon):
                _as_product_and_sum(canvas, node, values, epsilon)


def _scale_and_shift(values: list[Held], epsilon: float) -> tuple[Tensor, Tensor]:
    """Float64 scale and shift."""
    weight, bias, mean, variance = (held.value.double() for held in values)
    scale = weight / torch.sqrt(variance + epsilon)
    return scale, bias - mean * scale


def _into_convolution(canvas: Canvas, node: Any, values: list[Held], epsilon: float) -> bool:
    """Whether the normalisation could be folded into a convolution."""
    before = node.inputs[0]
    layer = before.producer()
    if layer is None or layer.op_type != "Conv" or len(before.uses()) != 1 or before.is_graph_output():
        return False
    weight = layer.inputs[1]
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    known = weight.name in canvas.held and len(weight.uses()) == 1 and (bias is None or bias.name in canvas.held)
    if not known:
        return False
    scale, shift = _scale_and_shift(values, epsilon)
    held = canvas.held[weight.name]
    scaled = _scaled(held, scale)
    if scaled is None:
        return False
    old = torch.zeros_like(shift) if bias is None else canvas.held[bias.name].value.double()
    # Without a bias and a mean, the shift is what is stored; it may be stored in fewer bits than 32.
    form = values[1].portable if not bool(old.any()) and not bool(values[2].value.any()) else None
    total = (shift + old * scale).to(values[1].value.dtype)
    canvas.held[weight.name] = scaled
    made = canvas.numbers(f"{weight.name.removesuffix('weight')}bias", total)
    canvas.held[made.name] = Held(total, form, values[1].source)
    layer.resize_inputs(3)
    layer.replace_input_with(2, made)
    output = layer.outputs[0]
    _merge(canvas, node, output)
    for value in (*node.inputs[1:5], *(() if bias is None else (bias,))):
        if value is not None:
            canvas.drop(value)
    return True


def _merge(canvas: Canvas, node: Any, output: Any) -> None:
    """Let a convolution's output take the place and the name of the normalisation's."""
    inputs = list(node.inputs)
    for number in range(len(inputs)):
        node.replace_input_with(number, None)
    canvas.replace(node, output)
    for value in inputs[1:5]:
        canvas.drop(value)


def _scaled(held: Held, scale: Tensor) -> Held | None:
    """A weight with every output channel times its scale; None if it has steps along another axis."""
    if isinstance(held.portable, (ScaledCodes, Product)):
        form = held.portable.scaled(scale.float())
        return None if form is None else Held(form.decoded().to(held.value.dtype), form, held.source)
    spread = scale.reshape(-1, *[1] * (held.value.ndim - 1))
    return Held((held.value.double() * spread).to(held.value.dtype), None, held.source)


def _as_product_and_sum(canvas: Canvas, node: Any, values: list[Held], epsilon: float) -> None:
    """Replace a normalisation that stands alone."""
    inputs = node.inputs[0]
    if inputs.shape is None:
        return
    shape = (-1, *[1] * (len(inputs.shape) - 2))
    scale, shift = _scale_and_shift(values, epsilon)
    plain = not bool(values[2].value.any()) and bool((values[3].value.double() + epsilon - 1).abs().max() < 1e-6)
    name = node.inputs[1].name.removesuffix("weight")
    made = []
    for number, (kind, numbers) in enumerate((("scale", scale), ("shift", shift))):
        form = values[number].portable if plain else None
        exact = values[number].value if form is not None else numbers.to(values[number].value.dtype)
        constant = canvas.numbers(f"{name}{kind}", exact.reshape(shape))
        canvas.held[constant.name] = Held(exact.reshape(shape), _reshaped(form, shape), values[number].source)
        made.append(constant)
    product = canvas.call("Mul", [inputs, made[0]])
    total = canvas.call("Add", [product, made[1]])
    old = list(node.inputs[1:5])
    canvas.replace(node, total)
    for value in old:
        canvas.drop(value)


def _reshaped(form: Portable | None, shape: tuple[int, ...]) -> Portable | None:
    if isinstance(form, ScaledCodes) and form.steps.numel() == 1:
        return ScaledCodes(form.codes.reshape(shape), form.steps, form.axis)
    return Halves(form.values.reshape(shape)) if isinstance(form, Halves) else None

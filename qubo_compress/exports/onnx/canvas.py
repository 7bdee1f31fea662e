"""An ONNX graph that is being changed, and what its constants hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qubo_compress._internal.optional import require
from qubo_compress.exports.exported import NOWHERE, WIDE
from qubo_compress.exports.weights import Held
from qubo_compress.menu.storage.portable import ScaledCodes

EXTRA = "onnx"
"""The extra that brings what reads, changes and runs ONNX files."""

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators."""

_NARROW = {2: "int2", 4: "int4", 8: "int8", 16: "int16"}


@dataclass(frozen=True)
class Placed:
    """How a tensor came into the graph.

    Attributes:
        name: of the tensor.
        form: such as ``"int4"``.
        nbytes: of its constants.
        runs: the operators that read it.
        faster: where that is faster than floating point.
    """

    name: str
    form: str
    nbytes: int
    runs: str
    faster: str = NOWHERE


@dataclass(eq=False)
class Canvas:
    """A graph, the tensors that its constants hold, and what was placed so far.

    Attributes:
        model: of onnx_ir.
        held: name of a constant -> tensor.
        runtime: which the graph is written for; None for any.
        placed: one entry per tensor.
        packed_products: whether linear layers multiply by packed integers; otherwise they are unpacked when loaded.
            None: those that are wide enough.
        float_bytes: of all tensors in the network's own dtypes.
        rounded: names of the weights that multiply with rounded inputs.
    """

    model: Any
    held: dict[str, Held]
    runtime: str | None = None
    placed: list[Placed] = field(default_factory=list)
    packed_products: bool | None = None
    float_bytes: int = 0
    rounded: set[str] = field(default_factory=set)

    @property
    def graph(self) -> Any:
        """The graph of onnx_ir."""
        return self.model.graph

    def width(self, codes: ScaledCodes, name: str = "") -> int:
        """Bits of the integers that hold a constant's codes in this file: OpenVINO reads none of two bits.

        Biases are short, and integers of 8 bits are known to more programs; integer kernels, of layers with rounded
        inputs, know no others.
        """
        if codes.codes.ndim < 2 or name in self.rounded:
            return max(codes.bits, 8)
        return max(codes.bits, 4) if self.runtime == "openvino" else codes.bits

    def packs(self, codes: ScaledCodes) -> bool:
        """Whether a linear layer multiplies by packed integers."""
        return codes.codes.numel() >= WIDE if self.packed_products is None else self.packed_products

    def integers(self, name: str, codes: Tensor, bits: int) -> Any:
        """A constant of packed integers."""
        if bits < 8:
            kind = getattr(require("ml_dtypes", EXTRA), _NARROW[bits])
            return self.constant(name, codes.numpy().astype(kind))
        return self.constant(name, codes.to(torch.int8 if bits == 8 else torch.int16).numpy())

    def constant(self, name: str, values: Any) -> Any:
        """A constant of an array, under that name or, if it is taken, one like it.

        Its data are raw bytes in the array's own width: fields of numbers, as some writers make them, take up to eight
        times as much.
        """
        ir = require("onnx_ir", EXTRA)
        unique, number = name, 0
        while unique in self.graph.initializers:
            number += 1
            unique = f"{name}_{number}"
        tensor = ir.Tensor(np.asarray(values, order="C"), name=unique)
        made = ir.Value(name=unique, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(made)
        return made

    def numbers(self, name: str, values: Tensor) -> Any:
        """A constant of floating-point numbers."""
        return self.constant(name, values.detach().cpu().contiguous().numpy())

    def call(self, operator: str, inputs: Sequence[Any], **attributes: Any) -> Any:
        """The output of a new node; the graph is brought into order at the end."""
        return self.calls(operator, inputs, 1, **attributes)[0]

    def calls(self, operator: str, inputs: Sequence[Any], count: int, **attributes: Any) -> Sequence[Any]:
        """The outputs of a new node of several; ``domain=`` is where the operator comes from."""
        ir = require("onnx_ir", EXTRA)
        domain = attributes.pop("domain", "")
        made = ir.node(operator, inputs=list(inputs), attributes=attributes, domain=domain, num_outputs=count)
        self.graph.append(made)
        found: Sequence[Any] = made.outputs
        return found

    def replace(self, node: Any, output: Any) -> None:
        """Remove a node of one output, whose place another value takes, with its name and type."""
        old = node.outputs[0]
        output.type, output.shape, name = old.type, old.shape, old.name
        old.name = f"{name}_replaced"
        output.name = name
        require("onnx_ir", EXTRA).convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def drop(self, value: Any) -> None:
        """Remove a constant that nothing reads."""
        if value.name in self.graph.initializers and not value.uses():
            del self.graph.initializers[value.name]
        self.held.pop(value.name, None)

    def record(self, name: str, form: str, constants: Sequence[Any], runs: str, faster: str = NOWHERE) -> None:
        """Note how a tensor was placed."""
        size = sum(value.const_value.nbytes for value in constants)
        self.placed.append(Placed(name, form, size, runs, faster))


def narrow_name(bits: int) -> str:
    """The name of integers of that many bits.

    Example:
        >>> narrow_name(4)
        'int4'
    """
    return _NARROW[bits]

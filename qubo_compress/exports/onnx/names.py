"""Names that people read in an ONNX file: of its outputs, and of the axes that may have any length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from qubo_compress._internal.optional import require
from qubo_compress.exports.onnx.canvas import EXTRA

OUTPUT = "output"
BATCH = "batch"


def output_names(found: Any) -> list[str]:
    """The name of every tensor that a forward returns: the keys of a mapping, the fields of a named tuple, or numbers.

    Example:
        >>> import torch
        >>> output_names(torch.ones(1)), output_names({"loss": None, "logits": torch.ones(1)})
        (['output'], ['logits'])
        >>> output_names((torch.ones(1), [torch.ones(1)]))
        ['output_0', 'output_1']
    """
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        found = dict(zip(found._fields, found, strict=True))
    if not isinstance(found, Mapping):
        return _numbered(OUTPUT, found)
    return [name for key, value in found.items() for name in _numbered(str(key), value)]


def _numbered(name: str, value: Any) -> list[str]:
    count = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    return [name] if count == 1 else [f"{name}_{number}" for number in range(count)]


def name_outputs(graph: Any, names: list[str]) -> None:
    """Rename the outputs of a graph, unless they are others or a name is taken."""
    taken = {value.name for value in _values(graph)} - {value.name for value in graph.outputs}
    fit = len(names) == len(graph.outputs) == len(set(names)) == len({id(value) for value in graph.outputs})
    if not fit or taken & set(names):
        return
    for number, value in enumerate(graph.outputs):  # first to names that are certainly free
        value.name = f"{OUTPUT} {number}"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _values(graph: Any) -> Iterator[Any]:
    yield from (*graph.inputs, *graph.initializers.values())
    for node in graph:
        yield from node.outputs


def name_axes(graph: Any) -> None:
    """Call the first axis of all inputs ``batch``, and any other free one by the first input that has it.

    Torch's exporter numbers them, and gives the first axis of each input another number where nothing in the network
    compares them. The examples lie along it, and an input of more examples than another is an error.
    """
    symbols: dict[str, str] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                symbols.setdefault(str(size.value), BATCH if axis == 0 else f"{value.name}_axis_{axis}")
    ir = require("onnx_ir", EXTRA)
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, symbols) for size in value.shape])


def _renamed(size: Any, symbols: Mapping[str, str]) -> Any:
    """A size, or an expression of sizes, by its new names."""
    if isinstance(size, int):
        return size
    return re.sub(r"[A-Za-z_]\w*", lambda word: symbols.get(word.group(), word.group()), str(size.value))

"""A compressed network as an ONNX file, checked before it is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from qubo_compress._internal.files import write_atomically
from qubo_compress.errors import ExportRefused
from qubo_compress.exports.difference import Difference, allowed, answers, compared, single
from qubo_compress.exports.exported import Exported, ExportedTensor, choices_by_tensor
from qubo_compress.exports.onnx.canvas import Canvas, Placed
from qubo_compress.exports.onnx.file import finished, graph_bytes, version_needed
from qubo_compress.exports.onnx.normalisations import fold_normalisations
from qubo_compress.exports.onnx.placing import place_all
from qubo_compress.exports.onnx.rounding import mark_rounded, round_outputs
from qubo_compress.exports.onnx.running import in_full_precision, outputs, session
from qubo_compress.exports.onnx.shared_inputs import join_products
from qubo_compress.exports.onnx.splits import split_constants
from qubo_compress.exports.onnx.tracing import traced
from qubo_compress.exports.weights import Exportable, exportable
from qubo_compress.network.inputs import Inputs
from qubo_compress.network.rounding import rounds_inputs
from qubo_compress.plan import Compression

logger = logging.getLogger(__name__)

FEW_EQUAL = 0.99
"""Below this share of equal answers in onnxruntime's own arithmetic, the log says so."""


@dataclass(frozen=True)
class OnnxSettings:
    """How an ONNX file is written.

    Attributes:
        runtime: ``None`` for any; ``"onnxruntime"`` for its own operators; ``"openvino"`` without integers of 2 bits.
        dynamic: axes of the inputs that may have any length.
        packed_products: whether linear layers multiply by packed integers; None: those that are wide enough.
    """

    runtime: str | None = None
    dynamic: tuple[int, ...] = (0,)
    packed_products: bool | None = None


def write_onnx(
    small: nn.Module, compression: Compression, path: Path, batches: Sequence[Inputs], settings: OnnxSettings
) -> Exported:
    """Write a compressed network as an ONNX file.

    Args:
        small: the network.
        compression: what it carries.
        path: of the file.
        batches: inputs to check it with.
        settings: how it is written.

    Raises:
        ExportRefused: when the network cannot be traced, or the file computes something else.
        StorageError: when the file cannot be written.
        MissingDependency: without the extra ``onnx``.
    """
    network = exportable(small, compression)
    canvas = drawn(network, batches[0], settings)
    model = finished(canvas)
    wanted = answers(network.model, batches)
    exact = _same(partial(outputs, session(in_full_precision(model), exactly=True)), network.model, batches, wanted)
    if settings.runtime == "onnxruntime" and canvas.rounded:
        round_outputs(model, batches)
    data = bytes(model.SerializeToString())
    usual = compared(partial(outputs, session(data, exactly=False)), batches, wanted)
    if usual.agreement < FEW_EQUAL:
        logger.warning(
            "onnxruntime gives the network's own answer on %.1f %% of %d examples: it rounds the inputs of products "
            "with packed integers, and the outputs of convolutions in integers, to 8 bits",
            100 * usual.agreement, usual.examples,
        )  # fmt: skip
    write_atomically(path, lambda handle: handle.write(data))
    return _exported(path, canvas, compression, (len(data), graph_bytes(model)), exact, usual)


def _same(
    run: Callable[[Inputs], Sequence[Tensor]],
    model: nn.Module,
    batches: Sequence[Inputs],
    wanted: Sequence[Sequence[Tensor]],
) -> Difference:
    """The difference of a graph from the network, on the batches and on a single example.

    Raises:
        ExportRefused: when it is more than rounding explains.
    """
    one = single(batches[0])
    try:
        exact = compared(run, batches, wanted)
        alone = compared(run, [one], answers(model, [one]))
    except ExportRefused:
        raise
    except Exception as cause:  # the network's or onnxruntime's own
        raise ExportRefused(
            f"the network or its graph takes no batch of another size ({str(cause).splitlines()[0][:300]}): its "
            "forward must read sizes as x.shape[0], not as numbers or len(x). Nothing was written"
        ) from cause
    tolerance = allowed(wanted, rounds_inputs(model))
    if not exact.largest <= tolerance:
        raise ExportRefused(
            f"the graph's outputs differ from the network's by {exact.largest:.2g} of the largest output, where "
            f"{tolerance:g} is allowed: its forward may depend on more than its inputs and weights. "
            "Nothing was written"
        )
    if not alone.largest <= tolerance:
        raise ExportRefused(
            f"with a batch of one example the graph's outputs differ from the network's by {alone.largest:.2g} of the "
            "largest output: its forward must read sizes as x.shape[0], not as numbers or len(x). Nothing was written"
        )
    return exact


def onnx_bytes(small: nn.Module, compression: Compression, batches: Sequence[Inputs], settings: OnnxSettings) -> bytes:
    """The file of a compressed network, unchecked: for taking the time.

    Raises:
        ExportRefused: when the network cannot be traced.
        MissingDependency: without the extra ``onnx``.
    """
    canvas = drawn(exportable(small, compression), batches[0], settings)
    model = finished(canvas)
    if settings.runtime == "onnxruntime" and canvas.rounded:
        round_outputs(model, batches)
    return bytes(model.SerializeToString())


def drawn(network: Exportable, inputs: Inputs, settings: OnnxSettings) -> Canvas:
    """The graph of a network with its tensors packed."""
    opset = version_needed([held.portable for held in network.held.values()])
    canvas = traced(network, inputs, settings.dynamic, opset, settings.runtime)
    canvas.packed_products = settings.packed_products
    fold_normalisations(canvas)
    split_constants(canvas)
    mark_rounded(canvas)
    place_all(canvas)
    if settings.runtime == "onnxruntime":
        join_products(canvas)
    return canvas


def _exported(
    path: Path, canvas: Canvas, compression: Compression, sizes: tuple[int, int], exact: Difference, usual: Difference
) -> Exported:
    nbytes, graph = sizes
    choices = choices_by_tensor(compression)
    rows = tuple(
        ExportedTensor(name, choices.get(name, "not in a group"), form, size, runs, faster)
        for (name, form, runs, faster), size in _sizes(canvas.placed).items()
    )
    return Exported(
        path=path, format="onnx", nbytes=nbytes, graph_bytes=graph,
        float_bytes=graph + canvas.float_bytes, artifact_bytes=compression.plan.bytes,
        original_bytes=compression.plan.original_bytes, largest_difference=exact.largest,
        default_difference=usual.largest, agreement=usual.agreement, examples=usual.examples, tensors=rows,
    )  # fmt: skip


def _sizes(placed: Sequence[Placed]) -> dict[tuple[str, str, str, str], int]:
    """Bytes by tensor, form and use: parts of one tensor are added up."""
    found: dict[tuple[str, str, str, str], int] = {}
    for one in placed:
        key = one.name, one.form, one.runs, one.faster
        found[key] = found.get(key, 0) + one.nbytes
    return found

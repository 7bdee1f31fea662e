"""The formats of other programs: the one call behind ``qc.export`` and ``result.export``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qubo_compress._internal.files import refuse_unwritable
from qubo_compress.errors import InvalidBatches, InvalidOption, unknown_name
from qubo_compress.exports.compressed_tensors import write_compressed_tensors
from qubo_compress.exports.exported import Exported
from qubo_compress.exports.onnx.writing import OnnxSettings, write_onnx
from qubo_compress.exports.packed_modules import write_packed_modules
from qubo_compress.exports.uncompressed import carried_or_kept
from qubo_compress.network.inputs import Inputs, tensors_of
from qubo_compress.network.memory import refuse_without_values
from qubo_compress.network.wrappers import unwrapped

FORMATS = ("onnx", "torch", "compressed-tensors")
RUNTIMES = ("onnxruntime", "openvino")


def export(
    model: nn.Module,
    path: str | Path,
    example_inputs: Inputs | Sequence[Inputs],
    format: str = "onnx",
    runtime: str | None = None,
    dynamic: Sequence[int] = (0,),
    packed_products: bool | None = None,
) -> Exported:
    """Write a network for other programs, and check that it computes the same there.

    Args:
        model: made by ``plan.apply``, ``recover``, ``compress`` or ``load``; any other network is written as it is.
        path: of the file, or of the folder.
        example_inputs: what the network is called with: a tensor, a tuple or a dict of tensors, with the examples
            along the first axis; or a list of such batches, or of pairs (inputs, labels). The file is checked on them.
        format: ``"onnx"``; or ``"torch"``: a safetensors file with the state dict of packed modules, which
            :func:`qubo_compress.layers.load` runs without the rest of the library; or ``"compressed-tensors"``: a
            folder that this package reads, and transformers' ``from_pretrained`` too if the network has a
            configuration of Hugging Face; for networks whose compressed layers are Linear and Embedding.
        runtime: of an ONNX file. ``None``: standard operators, which onnxruntime makes quick; ``"onnxruntime"``: its
            own ``MatMulNBits`` for linear layers; ``"openvino"``: without integers of 2 bits, which it does not read.
        dynamic: axes of the inputs that may have any length in an ONNX file: 0 is the batch; (0, 1) for texts.
        packed_products: whether linear layers of an ONNX file multiply by packed integers. That is faster than in
            floating point for wide layers and a few rows (batch times tokens) at a time, and slower for narrow ones.
            ``None``: layers of at least 65,536 weights do; ``True``: all; ``False``: none. Others are unpacked once
            when the file is loaded, as convolutions are, and run as fast as in floating point; the file has the same
            size, the memory that a session takes does not.

    Raises:
        WrongModel: when the values of the module have left the grid of its plan.
        InvalidModel: when tensors have no values, on the meta device.
        ExportRefused: when the network has no form in that format; the message names what is in the way.
        InvalidBatches: when the example inputs are none.
        UnknownName, InvalidOption: for other arguments.
        MissingDependency: without the extra ``onnx``; the message says what to install.
        StorageError: when the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> import qubo_compress as qc
        >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> data = [(torch.randn(32, 64), torch.arange(32) % 4)]
        >>> table = qc.measure(net, data, metric="magnitude", progress=False)
        >>> small = table.plan(qc.solve(table.problem(qc.Budget(ratio=4)))).apply(net)
        >>> found = qc.export(small, Path(tempfile.mkdtemp()) / "net.onnx", data[0][0])
        >>> found.largest_difference < 1e-4, found.nbytes < found.float_bytes / 2
        (True, True)
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if runtime is not None and runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    if packed_products not in (None, True, False):
        raise InvalidOption(f"packed_products is None, True or False; got {packed_products!r}")
    axes = checked_axes(dynamic)
    if format != "compressed-tensors":
        refuse_unwritable(path)
    model = unwrapped(model)
    refuse_without_values(model)
    batches = checked_batches(example_inputs, model)
    refuse_missing_axes(axes, batches)
    compression = carried_or_kept(model)
    if format == "compressed-tensors":
        return write_compressed_tensors(model, compression, Path(path), batches)
    if format == "torch":
        return write_packed_modules(model, compression, Path(path), batches)
    return write_onnx(model, compression, Path(path), batches, OnnxSettings(runtime, axes, packed_products))


def checked_axes(dynamic: Sequence[int]) -> tuple[int, ...]:
    """The axes as a tuple.

    Raises:
        InvalidOption: unless they are whole numbers from 0, among them 0.
    """
    axes = tuple(dynamic) if isinstance(dynamic, (tuple, list)) else ()
    if 0 not in axes or not all(type(axis) is int and 0 <= axis < 16 for axis in axes):
        raise InvalidOption(f"dynamic lists axes of the inputs from 0, the batch, which must be there; got {dynamic!r}")
    return axes


def refuse_missing_axes(axes: Sequence[int], batches: Sequence[Inputs]) -> None:
    """Raise :class:`InvalidOption` for an axis that no input has."""
    most = max(tensor.ndim for tensor in tensors_of(batches[0]))
    if max(axes) >= most:
        raise InvalidOption(f"dynamic lists axis {max(axes)}, and the inputs have the axes 0 to {most - 1}")


def checked_batches(example_inputs: Any, model: nn.Module) -> list[Inputs]:
    """The batches of inputs, without the labels of pairs (inputs, labels).

    Args:
        example_inputs: a batch, or a list of them.
        model: which tells pairs from two inputs, by what its forward takes.

    Raises:
        InvalidBatches: when there is none, something in one is no tensor or has no examples, or they differ in form.
    """
    batches = list(example_inputs) if isinstance(example_inputs, list) else [example_inputs]
    if not batches:
        raise InvalidBatches("example_inputs is an empty list; give a few calibration examples to check the file with")
    found = [without_labels(batch, model) for batch in batches]
    for inputs in found:
        _refuse_no_inputs(inputs)
    forms = {tuple(tensor.ndim for tensor in tensors_of(inputs)) for inputs in found}
    if len(forms) > 1:
        raise InvalidBatches(
            "the batches in the list have tensors of different numbers of axes; a batch of inputs and labels is a "
            "tuple (inputs, labels), and a list holds several batches"
        )
    return found


def without_labels(batch: Any, model: nn.Module) -> Any:
    """The inputs of a pair (inputs, labels), if the network's forward does not take both; anything else as it is."""
    pair = isinstance(batch, tuple) and len(batch) == 2 and not hasattr(batch, "_fields")
    if not pair or not isinstance(batch[1], Tensor):
        return batch
    if isinstance(batch[0], (tuple, dict)):
        return batch[0]
    try:
        inspect.signature(model.forward).bind(*batch)
    except TypeError:
        return batch[0]
    except ValueError:  # no signature is known
        return batch
    return batch


def _refuse_no_inputs(inputs: Any) -> None:
    held = (
        [inputs]
        if isinstance(inputs, Tensor)
        else list(inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else ())
    )
    if not held or len(held) != len(tensors_of(inputs if held else ())):
        raise InvalidBatches(
            "example_inputs must be a tensor, a tuple or a dict of tensors, as the network is called with, or a "
            f"list of such batches; got {type(inputs).__name__}"
        )
    if any(tensor.ndim == 0 or len(tensor) == 0 for tensor in held):
        raise InvalidBatches("a tensor of example_inputs has no examples; they lie along its first axis")
    if any(tensor.is_floating_point() and not bool(tensor.isfinite().all()) for tensor in held):
        raise InvalidBatches("example_inputs hold NaN or infinity, with which no file can be checked")

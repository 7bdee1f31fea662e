"""Runs ONNX files in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qubo_compress._internal.optional import require
from qubo_compress.errors import ExportRefused
from qubo_compress.exports.onnx.canvas import EXTRA, MICROSOFT
from qubo_compress.network.inputs import Inputs


def session(data: bytes, exactly: bool) -> Any:
    """A session of onnxruntime with one thread.

    Args:
        data: of the file.
        exactly: compute as the graph says, in floating point; otherwise as onnxruntime would by default.

    Raises:
        ExportRefused: when onnxruntime cannot read it.
    """
    runtime = require("onnxruntime", EXTRA)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exactly:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # onnxruntime's own
        raise ExportRefused(
            f"onnxruntime cannot run the graph of this network ({str(cause).splitlines()[0][:300]}); install a "
            "newer onnxruntime. Nothing was written"
        ) from cause


def outputs(running: Any, inputs: Inputs) -> list[Tensor]:
    """The outputs of a session."""
    return [torch.from_numpy(np.asarray(found)) for found in running.run(None, fed(running, inputs))]


def fed(running: Any, inputs: Inputs) -> dict[str, Any]:
    """Name of every input of a session -> array."""
    given = inputs.values() if isinstance(inputs, dict) else (inputs,) if isinstance(inputs, Tensor) else inputs
    return {
        argument.name: value.detach().cpu().numpy() for argument, value in zip(running.get_inputs(), given, strict=True)
    }


def in_full_precision(model: Any) -> bytes:
    """The file with ``MatMulNBits`` computing in floating point, for an exact comparison."""
    copy = type(model)()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.domain == MICROSOFT and node.op_type == "MatMulNBits":
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return bytes(copy.SerializeToString())

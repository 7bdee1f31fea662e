"""What onnxruntime makes of a file."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime


def optimised(path: Path) -> list[str]:
    """The operators that onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]

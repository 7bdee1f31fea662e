"""Compressed networks for other programs: ONNX files, plain PyTorch modules, and compressed-tensors."""

from __future__ import annotations

from qubo_compress.exports.exported import Exported, ExportedTensor
from qubo_compress.exports.formats import export

__all__ = ["Exported", "ExportedTensor", "export"]

"""ONNX files: the network's graph with packed integers instead of floating-point weights."""

from __future__ import annotations

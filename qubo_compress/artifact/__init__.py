"""Compressed networks on disk: one safetensors file, exactly as large as its plan says."""

from __future__ import annotations

from qubo_compress.artifact.reading import load
from qubo_compress.artifact.writing import save

__all__ = ["load", "save"]

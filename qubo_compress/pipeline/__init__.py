"""From a network to the best compressed one that fits: measure, solve, judge, refine."""

from __future__ import annotations

from qubo_compress.pipeline.compress import CompressionResult, compress

__all__ = ["CompressionResult", "compress"]

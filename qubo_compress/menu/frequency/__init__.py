"""Convolution kernels in the frequency domain."""

from __future__ import annotations

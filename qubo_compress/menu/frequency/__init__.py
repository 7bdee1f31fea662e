"""Convolution kernels by their frequencies."""

from __future__ import annotations

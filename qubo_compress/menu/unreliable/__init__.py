"""Weights in unreliable memory, which changes them."""

from __future__ import annotations

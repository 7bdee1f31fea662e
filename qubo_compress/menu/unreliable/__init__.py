"""Weights in memory that changes them."""

from __future__ import annotations

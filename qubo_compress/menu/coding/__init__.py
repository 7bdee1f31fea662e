"""Entropy coding of stored numbers."""

from __future__ import annotations

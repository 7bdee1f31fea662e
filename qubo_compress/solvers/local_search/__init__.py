"""Repair and descent from any assignment."""

from __future__ import annotations

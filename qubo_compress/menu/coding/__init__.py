"""Stored numbers through an entropy coder."""

from __future__ import annotations

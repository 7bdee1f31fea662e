"""Weights as products of small factors."""

from __future__ import annotations

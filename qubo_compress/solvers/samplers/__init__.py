"""Samplers of binary models from other packages, all local and classical."""

from __future__ import annotations

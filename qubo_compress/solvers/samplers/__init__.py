"""Samplers of binary models by others, all on this machine and all classical."""

from __future__ import annotations

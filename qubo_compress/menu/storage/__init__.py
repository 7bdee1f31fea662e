"""How stored values become bytes, and how many choices of a group are stored in one pass."""

from __future__ import annotations

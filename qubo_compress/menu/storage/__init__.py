"""How stored values become bytes, and how many choices of one group are stored at once."""

from __future__ import annotations

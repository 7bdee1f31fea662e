"""Published methods of other authors, for comparison."""

from __future__ import annotations

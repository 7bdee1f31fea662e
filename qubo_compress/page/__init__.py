"""What reports are made of: numbers as text, figures, and a page that holds all it shows."""

from __future__ import annotations

"""The parts of reports: numbers as text, figures, and self-contained HTML pages."""

from __future__ import annotations

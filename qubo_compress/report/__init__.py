"""Tables and pictures of a result: on the terminal, and as one self-contained HTML file."""

from __future__ import annotations

from qubo_compress.report.html import write_report
from qubo_compress.report.terminal import print_summary

__all__ = ["print_summary", "write_report"]

"""Fuzzers of everything that the library reads from a disk, and kill tests of everything that it writes.

Shortly within the test suite; for long::

    python -m tests.fuzz --minutes 30
    python -m tests.fuzz --coverage --minutes 5
    python -m tests.fuzz.kills --rounds 200
    python -m tests.fuzz.kills_of_calls --kills 200
"""

from __future__ import annotations

from pathlib import Path

NAMES = (
    "network", "plan", "plan of 0.4", "payloads of 0.4", "problem", "problem of 0.4", "unit of a cache", "signature",
    "function of a cache", "embeddings", "certificate", "service answer",
)  # fmt: skip
"""The formats. Sensitivity tables are in none of their own: the units of a cache are what is kept of them."""

KEPT = Path("out/fuzz")
"""Where files are kept that were found to be a problem."""

"""Surrogate: the problem's energy, corrected by the network's own loss, proposes what to measure next."""

from __future__ import annotations

from qubo_compress.solvers.surrogate.surrogate import Surrogate

__all__ = ["Surrogate"]

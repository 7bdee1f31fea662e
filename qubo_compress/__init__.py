"""Compress trained PyTorch networks by solving one combinatorial problem."""

from __future__ import annotations

from qubo_compress import channels, menu, sensitivity, solvers
from qubo_compress.artifact import load, save
from qubo_compress.audit import AuditReport, audit
from qubo_compress.budget import Budget
from qubo_compress.channels.reading import read_unreliably
from qubo_compress.compress import CompressionResult, compress
from qubo_compress.errors import QuboCompressError
from qubo_compress.example_weights import TailWeights, tail_weights
from qubo_compress.front import pareto
from qubo_compress.menu import Menu
from qubo_compress.plan import Plan
from qubo_compress.problem import ChoiceProblem
from qubo_compress.recovery import recover
from qubo_compress.sensitivity import Forecast, SensitivityTable, estimate, measure
from qubo_compress.solvers import Solution, solve
from qubo_compress.stitched import StitchedLoss

__all__ = [
    "AuditReport",
    "Budget",
    "ChoiceProblem",
    "CompressionResult",
    "Forecast",
    "Menu",
    "Plan",
    "QuboCompressError",
    "SensitivityTable",
    "Solution",
    "StitchedLoss",
    "TailWeights",
    "audit",
    "channels",
    "compress",
    "estimate",
    "load",
    "measure",
    "menu",
    "pareto",
    "read_unreliably",
    "recover",
    "save",
    "sensitivity",
    "solve",
    "solvers",
    "tail_weights",
]

"""Compress trained PyTorch networks by solving one combinatorial problem.

Names are imported on first use, so solving a problem need not wait for torch and matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qubo_compress._internal.moved import MOVED, keep_old_paths

if TYPE_CHECKING:
    from qubo_compress import channels, menu, published, sensitivity, solvers
    from qubo_compress.artifact import load, save
    from qubo_compress.audits import AuditReport, audit
    from qubo_compress.budget import Budget
    from qubo_compress.calibration.weights import TailWeights, tail_weights
    from qubo_compress.errors import QuboCompressError
    from qubo_compress.example import ExampleNetwork, example_network
    from qubo_compress.exports import Exported, export
    from qubo_compress.latency import LatencyTable
    from qubo_compress.menu import Menu
    from qubo_compress.pipeline import CompressionResult, compress
    from qubo_compress.plan import Plan
    from qubo_compress.problem import ChoiceProblem
    from qubo_compress.pruning.shrink import shrink
    from qubo_compress.recovery import recover
    from qubo_compress.recovery.reading import read_unreliably
    from qubo_compress.selection import pareto
    from qubo_compress.sensitivity import Forecast, SensitivityTable, estimate, measure
    from qubo_compress.sensitivity.stitched_loss import StitchedLoss
    from qubo_compress.solvers import Solution, solve
    from qubo_compress.timing import latency_table, measured_latency

__all__ = [
    "AuditReport",
    "Budget",
    "ChoiceProblem",
    "CompressionResult",
    "ExampleNetwork",
    "Exported",
    "Forecast",
    "LatencyTable",
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
    "example_network",
    "export",
    "latency_table",
    "load",
    "measure",
    "measured_latency",
    "menu",
    "pareto",
    "published",
    "read_unreliably",
    "recover",
    "save",
    "sensitivity",
    "shrink",
    "solve",
    "solvers",
    "tail_weights",
]

_MODULES = {
    "AuditReport": "audits",
    "Budget": "budget",
    "ChoiceProblem": "problem",
    "CompressionResult": "pipeline",
    "ExampleNetwork": "example",
    "Exported": "exports",
    "Forecast": "sensitivity",
    "LatencyTable": "latency",
    "Menu": "menu",
    "Plan": "plan",
    "QuboCompressError": "errors",
    "SensitivityTable": "sensitivity",
    "Solution": "solvers",
    "StitchedLoss": "sensitivity.stitched_loss",
    "TailWeights": "calibration.weights",
    "audit": "audits",
    "compress": "pipeline",
    "estimate": "sensitivity",
    "example_network": "example",
    "export": "exports",
    "latency_table": "timing",
    "load": "artifact",
    "measure": "sensitivity",
    "measured_latency": "timing",
    "pareto": "selection",
    "read_unreliably": "recovery.reading",
    "recover": "recovery",
    "save": "artifact",
    "shrink": "pruning.shrink",
    "solve": "solvers",
    "tail_weights": "calibration.weights",
}
"""Public name -> its module, relative to the package."""

_ROOMS = (
    "artifact", "audits", "budget", "calibration", "channels", "cli", "commands", "encodings", "errors", "example",
    "exports", "latency", "layers", "menu", "network", "page", "pipeline", "plan", "problem", "pruning", "published",
    "recovery", "report", "selection", "sensitivity", "solvers", "testing", "timing", "warm_up",
)  # fmt: skip
"""Modules and folders that are attributes of the package without an import."""


def __getattr__(name: str) -> Any:
    """A public name, a room, or a module under its old name, on its first use."""
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    elif name in _ROOMS or name in MOVED:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


keep_old_paths()

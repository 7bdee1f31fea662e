"""Examples, their weights, and the statistics that operators ask for."""

from __future__ import annotations

from qubo_compress.calibration.evaluation import Score, score
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.calibration.weights import TailWeights, tail_weights

__all__ = ["Examples", "Score", "TailWeights", "read_examples", "score", "tail_weights"]

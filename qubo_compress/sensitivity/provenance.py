"""How a sensitivity table was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """How a table was measured.

    Attributes:
        metric, loss: names.
        examples: number of calibration examples.
        baseline_loss: mean loss of the uncompressed network on them; 0 under ``"kl"``, which compares it with itself.
        evaluations: runs of the network over all examples.
        seconds: wall time, without cached parts.
        dropped: share of the squared feature norm lost by reducing the factor's rank.
        shrinkage: share of the divergences in the linear terms.
        weights: signature of the weights measured.
        resumed: units read back from the cache.
        trust: share of the pair energies that was kept; see :mod:`qubo_compress.sensitivity.shrinkage`.
        multiplications: of one forward run of one example, in the layer calls that were seen.
    """

    metric: str
    loss: str
    examples: int
    baseline_loss: float
    evaluations: int
    seconds: float
    dropped: float
    shrinkage: float
    weights: str
    resumed: int = 0
    trust: float = 1.0
    multiplications: float = 0.0

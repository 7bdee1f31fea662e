"""The published formulation on networks: which filters are pruned, and how many bits each layer keeps, from one QUBO.

The objective, and what of the paper could be read, is described in :mod:`qubo_compress.encodings.published`. This room
computes its numbers from the weights of a network, without data, and makes plans of its bits: pruned filters become
``zero``, the other filters ``quantize(bits=b)`` with the bits of their layer, and the plan is applied, saved, recovered
and audited like any other. Stored bytes are those of the library's files, which the objective does not know: it counts
bits of weights, without scales, the list of choices and the rounding up to whole bytes.
"""

from __future__ import annotations

from qubo_compress.published.decoding import PublishedPlans
from qubo_compress.published.formulation import QUANTIZATION_LOSSES, Formulation
from qubo_compress.published.model import filters_and_bits
from qubo_compress.published.size import SizedPlan, plan_of_size

__all__ = [
    "QUANTIZATION_LOSSES",
    "Formulation",
    "PublishedPlans",
    "SizedPlan",
    "filters_and_bits",
    "plan_of_size",
]

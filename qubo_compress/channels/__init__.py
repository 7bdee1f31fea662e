"""Unreliable memory as a communication channel: writing, reading, and the price of reliable bits.

Isik, Choi, Zheng, Weissman, Ermon, Wong, Alaghi, "Neural network compression for noisy storage devices"
(arXiv 2102.07725). Operators that store weights in such cells are in ``qubo_compress.menu``.
"""

from __future__ import annotations

from qubo_compress.channels.analog import AnalogChannel, analog_channel, channels
from qubo_compress.channels.binary import BinaryChannel, majority_flip_rate
from qubo_compress.channels.coding import cells_per_protected_bit
from qubo_compress.channels.redundancy import water_filling

__all__ = [
    "AnalogChannel",
    "BinaryChannel",
    "analog_channel",
    "cells_per_protected_bit",
    "channels",
    "majority_flip_rate",
    "names",
    "register",
    "water_filling",
]

register = channels.register


def names() -> tuple[str, ...]:
    """Names of all analog channels, sorted."""
    return channels.names()

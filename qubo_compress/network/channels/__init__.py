"""Coupled channels: which slices of which tensors must leave a network together, and the smaller network without them.

A network is run once while every element of every tensor carries the label of its channel (:mod:`.walk`). Operations
pass labels on or tie them; connected labels are one coupled set (:mod:`.sets`). A set that is removed takes its slices
out of every tensor (:mod:`.removal`); the result is compared with the network that only stops reading them.
"""

from __future__ import annotations

from qubo_compress.network.channels.find import find_channels
from qubo_compress.network.channels.removal import Removal
from qubo_compress.network.channels.sets import Channels, ChannelSet

__all__ = ["ChannelSet", "Channels", "Removal", "find_channels"]

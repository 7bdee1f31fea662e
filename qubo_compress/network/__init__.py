"""A torch network as the rest of the library sees it: what is wrapped around it, and what its weights are given."""

from __future__ import annotations

from qubo_compress.network.wrappers import unwrapped

__all__ = ["unwrapped"]

"""Reads of a network from unreliable cells."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group
from qubo_compress.network.private import CARRIED, independent_copy
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import compression_of


def corrupted(small: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy of a compressed module after one read of its cells.

    The copy carries no plan, because its values are not the stored ones.

    Raises:
        WrongModel: when the module carries no plan.
    """
    compression = compression_of(small)
    noisy = independent_copy(small)
    delattr(noisy, CARRIED)
    tensors = NetworkTensors(noisy)
    read = (
        pair
        for group in compression.layout.groups
        for pair in zip(group.members, compression.stored[group.name].drawn(generator), strict=True)
    )
    tensors.fill(tensors.assembled(read))
    return noisy.eval()


def read_unreliably(small: nn.Module, seed: int = 0) -> nn.Module:
    """One noisy read of a compressed network: a new module in eval mode, for Monte-Carlo studies.

    Groups in ``analog`` or ``digital`` cells are read with random errors, all others exactly. ``qubo_compress.load``
    gives the mean of such reads.

    Args:
        small: made by ``plan.apply``, ``recover`` or ``load``.
        seed: of the errors.

    Raises:
        WrongModel: when the module carries no plan.
    """
    return corrupted(small, torch.Generator().manual_seed(seed))


def disturbance(seed: int) -> Callable[[Group, Stored], tuple[Tensor, ...] | None]:
    """Fresh read errors of every unreliable group at every call, for noise-aware fine-tuning."""
    generator = torch.Generator().manual_seed(seed)

    def errors(_: Group, packed: Stored) -> tuple[Tensor, ...] | None:
        if not packed.unreliable:
            return None
        read = packed.drawn(generator)
        return tuple(r.float() - mean.float() for r, mean in zip(read, packed.tensors(), strict=True))

    return errors

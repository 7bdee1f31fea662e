"""Wrappers around a network: compiled, replicated and scripted modules."""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import nn

from qubo_compress.errors import InvalidModel

logger = logging.getLogger(__name__)

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Wrappers that replicate a network or synchronise its copies; the network is their ``module``."""

SHARDED = ("FullyShardedDataParallel", "FSDPModule")
"""Names of wrappers that hold only a part of every weight; not imported, because not every torch has them."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``, however nested.

    Plans and files use the names of the network inside, so that they fit the unwrapped network too.

    Raises:
        InvalidModel: for scripted, sharded and partly compiled networks.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(net)) is net, unwrapped(net) is net
        (True, True)
    """
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"the model must be a torch.nn.Module; got {type(model).__name__}")
    found, peeled = model, []
    while isinstance(found, PARALLEL) or _is_compiled(found):
        peeled.append(type(found).__name__)
        found = cast(nn.Module, found.module if isinstance(found, PARALLEL) else found._orig_mod)
    if peeled:
        logger.info("the network inside %s is used: names are those of this %s", ", ".join(peeled), _kind(found))
    _refuse_opaque(found)
    return found


def _is_compiled(module: nn.Module) -> bool:
    # Its class is in a module that takes seconds to import, and only users of torch.compile have imported it.
    return type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module)


def _refuse_opaque(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidModel(
            f"this {_kind(model)} was made by torch.jit.script or torch.jit.trace, whose layers and weights cannot be "
            "exchanged one by one; give the Python network that it was made from"
        )
    for name, module in model.named_modules():
        if any(kind.__name__ in SHARDED for kind in type(module).__mro__):
            raise InvalidModel(
                f"{name or 'the network'} is a {_kind(module)}, which holds only a part of its weights here; "
                "gather them in a plain network first"
            )
        if module is not model and _is_compiled(module):
            raise InvalidModel(
                f"{name} is compiled by torch.compile inside the network, and would be compiled again for every "
                "choice; give the network as it was before its parts were compiled"
            )


def _kind(module: nn.Module) -> str:
    return type(module).__name__

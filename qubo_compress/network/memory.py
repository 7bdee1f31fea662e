"""Networks on torch's ``meta`` device, which have shapes and no memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from qubo_compress.errors import InvalidModel, WrongModel


def refuse_without_values(model: nn.Module) -> None:
    """Raise :class:`InvalidModel` for a network with tensors on the meta device, whose values are needed."""
    missing = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if missing:
        raise InvalidModel(
            f"tensors without values, on the meta device: {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' * (len(missing) > 3)}; load the weights on a real device first"
        )


def with_memory(model: nn.Module) -> nn.Module:
    """The network itself, or a copy in which parameters and persistent buffers without data have memory on the CPU.

    Their values are arbitrary: they are to be filled from a file. Shared tensors stay shared.

    Raises:
        WrongModel: when a tensor has no data that no file holds, such as a buffer that is not persistent.

    Example:
        >>> net = with_memory(nn.Linear(3, 2, device="meta"))
        >>> net.weight.device.type, tuple(net.weight.shape), isinstance(net.weight, nn.Parameter)
        ('cpu', (2, 3), True)
    """
    if not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return model
    for name, module in model.named_modules():
        for attribute, tensor in {**module._buffers, **vars(module)}.items():
            saved = attribute in module._buffers and attribute not in module._non_persistent_buffers_set
            if isinstance(tensor, Tensor) and tensor.is_meta and not saved:
                raise WrongModel(
                    f"{name + '.' if name else ''}{attribute} of this network is on the meta device and in no file, as "
                    "it is no persistent buffer; build the network on a real device, or give that tensor its values"
                )
    found = copy.deepcopy(model)
    made: dict[int, Tensor] = {}
    for module in found.modules():
        for held in (module._parameters, module._buffers):
            for attribute, tensor in held.items():
                if tensor is not None and tensor.is_meta:
                    held[attribute] = made.setdefault(id(tensor), _filled_in(tensor))  # type: ignore[assignment]
    return found


def _filled_in(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="cpu")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

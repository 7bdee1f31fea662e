"""The smaller network after some channels were removed: which indices of which tensors stay, and what else changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.errors import InvalidModel, WrongModel
from qubo_compress.network.channels.adapters import FewerHeads, Pick, Spread
from qubo_compress.network.channels.bypass import BypassedModule, bypass, refuse_other_modules
from qubo_compress.network.private import CARRIED, independent_copy
from qubo_compress.network.tensors import NetworkTensors

REMOVED = "qubo_compress.removal"
"""The attribute under which a smaller network carries what was removed: the dot rules out a clash with other names."""


@dataclass(frozen=True)
class KeptIndices:
    """The indices of one axis that stay.

    Attributes:
        tensor: name of the parameter or buffer.
        axis: in the network's order.
        full: length of the axis before.
        indices: what stays, rising.
    """

    tensor: str
    axis: int
    full: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class HookedModule:
    """A module without tensors that still computes with all channels.

    Attributes:
        module: its name.
        before, after: the channels of its input and its output that stay; None where all do.
    """

    module: str
    before: KeptIndices | None
    after: KeptIndices | None


@dataclass(frozen=True)
class ChangedNumber:
    """A whole number in a module that counts channels or heads.

    Attributes:
        module: its name.
        attribute: that holds the number.
        value: the new number.
    """

    module: str
    attribute: str
    value: int


@dataclass(frozen=True)
class Removal:
    """What is left of a network, enough to make the smaller one from the original architecture.

    Attributes:
        kept: axes that lose some of their indices.
        hooked: modules that need the full number of channels.
        numbers: what modules count.
        bypassed: layers of branches that leave whole, and are replaced by a constant.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> left = (0, 2, 3)
        >>> axes = (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))
        >>> Removal(tuple(KeptIndices(name, axis, 4, left) for name, axis in axes)).applied(net)
        Sequential(
          (0): Linear(in_features=3, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """

    kept: tuple[KeptIndices, ...] = ()
    hooked: tuple[HookedModule, ...] = ()
    numbers: tuple[ChangedNumber, ...] = ()
    bypassed: tuple[BypassedModule, ...] = ()

    def cut(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The kept part of every tensor that loses some."""
        found: dict[str, Tensor] = {}
        for part in self.kept:
            whole = found.get(part.tensor, values[part.tensor])
            index = torch.tensor(part.indices, device=whole.device)
            found[part.tensor] = whole.detach().index_select(part.axis, index)
        return found

    def applied(self, model: nn.Module) -> nn.Module:
        """A smaller copy in eval mode, of the same classes and with the same names in its state dict.

        Raises:
            WrongModel: when the network does not have these tensors, modules or lengths.
            InvalidModel: when one of its modules cannot lose channels.
        """
        self.refuse_other(model)
        small = independent_copy(model)
        tensors = NetworkTensors(small)
        touched: dict[int, nn.Module] = {}
        for name, value in self.cut(tensors).items():
            held = tensors[name]
            new = nn.Parameter(value, requires_grad=held.requires_grad) if isinstance(held, nn.Parameter) else value
            for module, attribute in tensors.owners(name):
                home: dict[str, Any] = module._parameters if attribute in module._parameters else module._buffers
                home[attribute] = new
                touched[id(module)] = module
        for module in small.modules():
            attention = isinstance(module, nn.MultiheadAttention) and id(module.out_proj) in touched
            if id(module) in touched or attention:
                recount(module)
        modules = dict(small.named_modules())
        for number in self.numbers:
            setattr(modules[number.module], number.attribute, number.value)
        for hooked in self.hooked:
            module = modules[hooked.module]
            before, after = hooked.before, hooked.after
            if before is not None:
                module.register_forward_pre_hook(Spread(before.axis, before.full, before.indices))
            if after is not None:
                module.register_forward_hook(Pick(after.axis, after.indices))
        bypass(small, self.bypassed)
        vars(small)[REMOVED] = (*removals_of(model), self)
        vars(small).pop(CARRIED, None)  # a plan is for tensors of the former shapes
        return small

    def refuse_other(self, model: nn.Module) -> None:
        """Raise :class:`WrongModel` for a network that does not have these tensors, modules or lengths."""
        tensors, modules = NetworkTensors(model), dict(model.named_modules())
        for part in self.kept:
            shape = tensors[part.tensor].shape if part.tensor in tensors else ()
            if part.axis >= len(shape) or shape[part.axis] != part.full:
                raise WrongModel(
                    f"channels are to be removed from {part.tensor}, of length {part.full} along axis {part.axis}; "
                    f"this {type(model).__name__} has {tuple(shape) if shape else 'no such tensor'} there; give the "
                    "network as it was when its channels were found"
                )
        refuse_other_modules(model, self.bypassed)
        named = [*(item.module for item in self.hooked), *(item.module for item in self.numbers)]
        missing = [name for name in named if name not in modules]
        if missing:
            raise WrongModel(f"this {type(model).__name__} has no module {missing[0]}; give the original network")
        for item in self.hooked:
            if [*modules[item.module].parameters(), *modules[item.module].buffers()]:
                raise WrongModel(
                    f"hooks are for modules without tensors, and {item.module} of this {type(model).__name__} has "
                    "some; give the original network"
                )
        for number in self.numbers:
            if type(vars(modules[number.module]).get(number.attribute)) is not int:
                raise WrongModel(
                    f"{number.module}.{number.attribute} is to count {number.value}, and is no whole number of this "
                    f"{type(model).__name__}; give the original network"
                )


def removals_of(model: nn.Module) -> tuple[Removal, ...]:
    """What was removed from a network, in order; nothing for one that was not made by :meth:`Removal.applied`."""
    found = vars(model).get(REMOVED, ())
    return found if isinstance(found, tuple) else ()


def recount(module: nn.Module) -> None:
    """Set the numbers of channels in one of torch's modules to those of its tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.MultiheadAttention):
        if not module._qkv_same_embed_dim and not isinstance(module, FewerHeads):
            raise InvalidModel("attention with separate projections of keys and values cannot lose channels or heads")
        if module.bias_k is not None or module.add_zero_attn:
            raise InvalidModel(
                "attention with keys of its own (add_bias_kv, add_zero_attn) cannot lose channels or heads"
            )
        FewerHeads.adopt(module)
    elif weight is None:
        return
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        each = module.in_channels // module.groups
        module.groups = 1 if module.groups == 1 else weight.shape[0] // each
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        each = module.out_channels // module.groups
        module.groups = 1 if module.groups == 1 else weight.shape[0] // each
        module.in_channels, module.out_channels = weight.shape[1] * module.groups, weight.shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * weight.shape[0] // module.num_channels
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.numel()
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif hasattr(module, "nf"):  # transformers' Conv1D
        module.nf = weight.shape[1]
        if hasattr(module, "nx"):
            module.nx = weight.shape[0]

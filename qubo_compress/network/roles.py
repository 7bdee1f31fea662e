"""What a module does with each of its parameters: which are weights, and which axis holds their outputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qubo_compress.network.constant_output import ConstantOutput

Kind = Literal["weight", "normalisation", "bias", "channels"]

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
"""Modules whose ``weight`` is a group of kind ``"weight"``, one scale per row of the first axis."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Modules whose weight is (inputs, outputs per group, *kernel)."""

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
"""Modules with one matrix per layer, direction and kind of input; the rows are outputs, gate by gate."""

ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
ATTENTION_BIASES = ("in_proj_bias", "bias_k", "bias_v")

LEFT_ALONE = "the caller's grouping leaves it alone"
"""The reason for weights without a label from the caller's function; a layout lists them last."""

_PARAMETRIZED = re.compile(r"(?:(.+)\.)?parametrizations\.([^.]+)\.")


@dataclass(frozen=True)
class Role:
    """How a parameter is used.

    Attributes:
        kind: ``"weight"`` or ``"bias"``.
        inputs_first: see :class:`qubo_compress.network.groups.Member`.
    """

    kind: Kind
    inputs_first: int = 0


def role_of(module: nn.Module, attribute: str) -> Role | None:
    """What a module uses its parameter for, or None if unknown.

    Example:
        >>> layer = nn.ConvTranspose1d(4, 6, 3, groups=2)
        >>> role_of(layer, "weight"), role_of(layer, "bias")
        (Role(kind='weight', inputs_first=2), Role(kind='bias', inputs_first=0))
    """
    named = {"weight": "weight", "bias": "bias"}.get(attribute)
    if isinstance(module, nn.MultiheadAttention):
        named = "weight" if attribute in ATTENTION_WEIGHTS else "bias" if attribute in ATTENTION_BIASES else None
    elif isinstance(module, ConstantOutput):
        named = "bias" if attribute == "bias" else None
    elif isinstance(module, RECURRENT):
        named = next((kind for kind in ("weight", "bias") if attribute.startswith(f"{kind}_")), None)
    elif not (isinstance(module, (*WEIGHTED, *TRANSPOSED)) or is_transposed_linear(module)):
        named = None
    if named == "bias":
        return Role("bias")
    if named != "weight":
        return None
    if isinstance(module, TRANSPOSED):
        return Role("weight", inputs_first=module.groups)
    return Role("weight", inputs_first=int(is_transposed_linear(module)))


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is the ``Conv1D`` of transformers' GPT-2: a linear layer with weight (inputs, outputs).

    It is recognised by its class name, its attribute ``nf`` and its shape, because transformers may not be installed.
    """
    weight = getattr(module, "weight", None)
    return (
        any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
        and isinstance(weight, Tensor)
        and weight.ndim == 2
        and getattr(module, "nf", None) == weight.shape[1]
    )


def why_computed(name: str, module: nn.Module, attribute: str) -> str | None:
    """Why a parameter is only the source of a tensor that the module computes, or None.

    Args:
        name: of the parameter in the network.
        module: its owner.
        attribute: its name there.
    """
    match = _PARAMETRIZED.match(name)
    if match and not isinstance(module, WEIGHTED):
        owner, tensor = match.groups()
        layer = f"model.get_submodule({owner!r})" if owner else "model"
        return (
            f"{tensor} is computed from it by a parametrization; call "
            f"torch.nn.utils.parametrize.remove_parametrizations({layer}, {tensor!r}) first"
        )
    for hook in module._forward_pre_hooks.values():
        computed, undo = _computed_by(hook)
        if computed is not None and attribute.rpartition("_")[0] == computed:
            owner = name.rpartition(".")[0]
            layer = f"model.get_submodule({owner!r})" if owner else "model"
            return (
                f"{computed} is computed from it by a {type(hook).__name__} hook; "
                f"call torch.nn.utils.{undo}({layer}, {computed!r}) first"
            )
    return None


def _computed_by(hook: Any) -> tuple[str | None, str]:
    if isinstance(hook, WeightNorm):
        return hook.name, "remove_weight_norm"
    if isinstance(hook, SpectralNorm):
        return hook.name, "remove_spectral_norm"
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name, "prune.remove"
    return None, ""


def why_unknown(name: str, module: nn.Module, tensor: Tensor) -> tuple[str, bool]:
    """Why a parameter without a role is kept, and whether a caller's grouping may still ask for it."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        return f"it is inside a {kind} of torch.jit, whose weights cannot be exchanged one by one", False
    if tensor.ndim < 2:
        return f"it is a vector of a {kind}, for which there is no operator", False
    return (
        f"it is a parameter of a {kind}, and how that uses it is not known; to compress it, give groups= a function "
        f"that returns a label for {name!r}"
    ), True

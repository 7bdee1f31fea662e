"""Packed weights in plain PyTorch modules: files of ``qc.export(..., format="torch")`` run with this file alone.

    from qubo_compress import layers
    net = layers.load("net.safetensors", Net())  # Net() gives the architecture

A packed weight is stored in as many bits as its codes need and unpacked whenever the layer runs: it saves memory and
bytes on disk, not time. Nothing here imports numba, scipy or the parts of the library that compress.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress._internal.reader import parsed_json, refused_as
from qubo_compress._internal.tensors import StoredTensor, read_tensors
from qubo_compress.errors import WrongModel

__all__ = ["FORMAT", "PackedTensor", "RoundInput", "load", "pack", "pack_bits", "unpack_bits"]

FORMAT = "qubo_compress layers 1"
"""The value of ``format`` in the metadata of such files."""

KINDS = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16, "U8": torch.uint8,
         "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool}  # fmt: skip
"""The types of tensors in safetensors files."""

STAGES = {"Linear": nn.Linear, "Conv1d": nn.Conv1d, "Conv2d": nn.Conv2d, "Conv3d": nn.Conv3d}
"""Layers that the factors of a low-rank layer may be."""

ARGUMENTS = {"in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding",
             "dilation", "groups", "padding_mode", "bias"}  # fmt: skip
"""What these layers may be made with."""

ENDS = {0: ("in_features", "in_channels"), -1: ("out_features", "out_channels")}
"""The widths that the first and the last factor have in common with the layer."""

WHAT = "packed layers"


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """(n,) whole numbers from 0 to 2^bits - 1 as bytes, one behind the other, lowest bits first.

    Args:
        codes: whole numbers.
        bits: 1 to 16.

    Example:
        >>> pack_bits(torch.tensor([1, 2, 3]), 3).tolist()
        [209, 0]
    """
    digits = (codes.reshape(-1, 1).to(torch.int32) >> torch.arange(bits, dtype=torch.int32)) & 1
    flat = torch.zeros(-(-digits.numel() // 8) * 8, dtype=torch.int32)
    flat[: digits.numel()] = digits.reshape(-1)
    return (flat.reshape(-1, 8) << torch.arange(8, dtype=torch.int32)).sum(1).to(torch.uint8)


def unpack_bits(data: Tensor, count: int, bits: int) -> Tensor:
    """The whole numbers from their bytes, int32: inverse of :func:`pack_bits`.

    Example:
        >>> unpack_bits(pack_bits(torch.tensor([1, 2, 3]), 3), 3, 3).tolist()
        [1, 2, 3]
    """
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    digits = ((data.reshape(-1, 1) >> shifts) & 1).reshape(-1)[: count * bits].reshape(count, bits)
    return (digits.to(torch.int32) << torch.arange(bits, dtype=torch.int32, device=data.device)).sum(
        1, dtype=torch.int32
    )


class PackedTensor(nn.Module):
    """A tensor as packed whole numbers times steps.

    Its state dict has ``codes``, bytes of :func:`pack_bits`, and ``steps``, one for each entry of an axis or one for
    all; the value is (code + lowest) * step.

    Args:
        shape: of the tensor.
        bits: of a code, 1 to 16.
        lowest: the smallest whole number, which is code 0.
        steps: how many there are.
        axis: which axis they belong to.
        dtype: of the tensor.

    Example:
        >>> packed = PackedTensor((2, 2), bits=2, lowest=-1, steps=2)
        >>> packed.codes.copy_(pack_bits(torch.tensor([0, 1, 2, 2]), 2)) is packed.codes
        True
        >>> packed.steps.copy_(torch.tensor([0.5, 2.0])) is packed.steps, packed().tolist()
        (True, [[-0.5, 0.0], [2.0, 2.0]])
    """

    codes: Tensor
    steps: Tensor

    def __init__(
        self, shape: tuple[int, ...], bits: int, lowest: int, steps: int, axis: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.bits, self.lowest, self.axis, self.dtype = tuple(shape), bits, lowest, axis, dtype
        self.register_buffer("codes", torch.zeros(-(-math.prod(self.shape) * bits // 8), dtype=torch.uint8))
        self.register_buffer("steps", torch.ones(steps))

    def forward(self) -> Tensor:
        """The tensor."""
        whole = unpack_bits(self.codes, math.prod(self.shape), self.bits).reshape(self.shape) + self.lowest
        spread = [1] * len(self.shape)
        if spread:
            spread[self.axis] = -1
        values = whole.float() * self.steps.float().reshape(spread)
        limit = min(torch.finfo(self.dtype).max, torch.finfo(torch.float32).max)
        return values.clamp(-limit, limit).to(self.dtype)

    def extra_repr(self) -> str:
        """Shape and bits."""
        return f"shape={self.shape}, bits={self.bits}"


def pack(layer: nn.Module, name: str, tensor: PackedTensor) -> None:
    """Let a layer compute with a packed tensor instead of one of its parameters; changes the layer.

    Args:
        layer: any module that reads the parameter as an attribute when it runs.
        name: of the parameter, such as ``"weight"``.
        tensor: takes its place, as the submodule ``NAME_packed``.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> pack(layer, "weight", PackedTensor((2, 2), bits=2, lowest=-1, steps=1))
        >>> sorted(layer.state_dict()), layer.weight.tolist()
        (['bias', 'weight_packed.codes', 'weight_packed.steps'], [[-1.0, -1.0], [-1.0, -1.0]])
    """
    kind, held = type(layer), f"{name}_packed"
    del layer._parameters[name]
    layer.add_module(held, tensor)
    label = kind.__name__ if kind.__name__.startswith("Packed") else f"Packed{kind.__name__}"
    layer.__class__ = type(label, (kind,), {name: property(lambda self: self._modules[held]())})


@dataclass(frozen=True)
class RoundInput:
    """A forward pre-hook that rounds a layer's first input: to scale * (q - zero_point), q from 0 to 2^bits - 1.

    Attributes:
        scale: distance between two levels.
        zero_point: level of zero.
        bits: 2 to 8.
    """

    scale: float
    zero_point: int
    bits: int

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs, the first one rounded."""
        first, levels = inputs[0], (1 << self.bits) - 1
        found = torch.fake_quantize_per_tensor_affine(first.float(), self.scale, self.zero_point, 0, levels)
        return (found.to(first.dtype), *inputs[1:])


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """A new module in eval mode with the packed layers of a file.

    Args:
        path: written by ``qc.export(..., format="torch")``.
        model: gives the architecture; its own weights do not matter and stay.

    Raises:
        CorruptArtifact: when the file is damaged or something else.
        WrongModel: when it belongs to another architecture.
        StorageError: when it cannot be read.
        FileNotFoundError: when there is no file.
    """
    found = read_tensors(path, WHAT)
    try:
        with refused_as(path, f"a file of {WHAT}", "export the network again"):
            if found.metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {found.metadata.get('format')!r}")
            described = parsed_json(found.metadata["layers"].encode())
            values = {name: _tensor(stored) for name, stored in found.tensors.items()}
            net = _packed(copy.deepcopy(model).eval(), described, values)
        net.load_state_dict(_with_shared(net, values))
    except (WrongModel, RuntimeError) as cause:
        raise WrongModel(
            f"{path} was written for another architecture than this {type(model).__name__} ({str(cause)[:300]}); "
            "build the model as it was when it was compressed. If channels were removed from it, give the smaller "
            "network that plan.apply or qc.load makes"
        ) from cause
    return net


def _packed(net: nn.Module, described: Any, values: Mapping[str, Tensor]) -> nn.Module:
    """The network with the layers that a file describes, still without its numbers; changes the network."""
    factors = _entries(described, "factors")
    for name, stages in factors.items():
        net = _replaced(net, name, [_stage(stage) for stage in stages])
    from_file = tuple(f"{name}." if name else "" for name in factors)
    for name, settings in _entries(described, "packed").items():
        # A layer that the file describes and contradicts is damaged; any other is another network's.
        _pack(net, name, settings, values, ValueError if name.startswith(from_file) else WrongModel)
    _allocate(net, values)
    for name, given in _entries(described, "rounded").items():
        _submodule(net, name).register_forward_pre_hook(_rounding(name, given))
    return net


def _with_shared(net: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values, also under the other names of tensors that have several: the file has the first."""
    first: dict[int, str] = {}
    found = dict(values)
    for name, tensor in net.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        if known in values:
            found[name] = values[known]
    return found


def _entries(described: Any, name: str) -> Mapping[str, Any]:
    found = described.get(name) if isinstance(described, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"it does not list what is {name}")
    return found


def _tensor(stored: StoredTensor) -> Tensor:
    dtype = KINDS[stored.dtype]
    if math.prod(stored.shape) * dtype.itemsize != len(stored.data):
        raise ValueError(f"a tensor of the shape {stored.shape} has {len(stored.data)} bytes")
    if not len(stored.data):
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(bytearray(stored.data), dtype=torch.uint8).view(dtype).reshape(stored.shape)


def _pack(
    net: nn.Module, name: str, settings: Any, values: Mapping[str, Tensor], differs: type[ValueError]
) -> None:  # fmt: skip
    """Replace one parameter by what the file says about it; ``differs`` is raised where the parameter is another."""
    owner, _, attribute = name.rpartition(".")
    held = _submodule(net, owner)._parameters.get(attribute)
    codes, steps = values[f"{name}_packed.codes"], values[f"{name}_packed.steps"]
    bits, lowest, axis = (settings[key] for key in ("bits", "lowest", "axis"))
    whole = all(type(value) is int for value in (bits, lowest, axis))
    if not whole or not (1 <= bits <= 16 and abs(lowest) <= 1 << 15 and axis >= 0) or steps.ndim != 1:
        raise ValueError(f"{name!r} cannot be packed as {settings!r}")
    if held is None:
        raise differs(f"it has no parameter {name}")
    if axis >= max(1, held.ndim) or steps.numel() not in (1, held.shape[axis] if held.ndim else 1):
        raise differs(f"{name} has the shape {tuple(held.shape)}, and {steps.numel()} steps along axis {axis} here")
    if codes.shape != (-(-held.numel() * bits // 8),):
        raise differs(f"{name} has the shape {tuple(held.shape)}, and {codes.numel()} bytes of {bits} bits here")
    tensor = PackedTensor(tuple(held.shape), bits, lowest, steps.numel(), axis, held.dtype)
    tensor.steps = tensor.steps.to(steps.dtype)
    for place in list(net.modules()):
        for other, parameter in list(place._parameters.items()):
            if parameter is held:
                pack(place, other, tensor)


def _submodule(net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError as cause:
        raise WrongModel(f"it has no layer {name!r}") from cause


def _rounding(name: str, given: Any) -> RoundInput:
    scale, zero_point, bits = given
    whole = type(zero_point) is int and type(bits) is int
    if not (whole and 2 <= bits <= 8 and 0 <= zero_point < 1 << bits and type(scale) is float and 0 < scale < 1e31):
        raise ValueError(f"the inputs of {name!r} cannot be rounded by {given!r}")
    return RoundInput(scale, zero_point, bits)


def _stage(described: Any) -> nn.Module:
    """A layer of a low-rank layer, without memory: the file's tensors must have its shapes first."""
    arguments = {
        name: tuple(value) if isinstance(value, list) else value for name, value in described["arguments"].items()
    }
    strange = sorted(set(arguments) - ARGUMENTS)
    if strange:
        raise ValueError(f"no layer is made with {strange[0]!r}")
    with torch.device("meta"):
        made: nn.Module = STAGES[described["kind"]](**arguments)
    return made.eval()


def _allocate(net: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give memory to the tensors without any, whose shapes are those of the file's."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old ones are held, so that no other gets the identity of one
    for name, module in net.named_modules():
        places: list[dict[str, Any]] = [module._parameters, module._buffers]
        for home, attribute, held in [(place, key, value) for place in places for key, value in place.items()]:
            if held is None or not held.is_meta:
                continue
            if id(held) not in made:
                made[id(held)] = held, _empty(f"{name}.{attribute}".lstrip("."), held, values)
            home[attribute] = made[id(held)][1]


def _empty(name: str, held: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """Memory for a tensor without any."""
    if name not in values:
        raise WrongModel(f"{name} has no data here, and the file does not hold it")
    if values[name].shape != held.shape:
        raise ValueError(f"{name} has the shape {tuple(values[name].shape)}, not {tuple(held.shape)}")
    empty = torch.empty_like(held, device="cpu")
    return nn.Parameter(empty) if isinstance(held, nn.Parameter) else empty


def _replaced(net: nn.Module, name: str, stages: list[nn.Module]) -> nn.Module:
    """The network with a layer replaced by several, which keep its settings, such as ``in_features``."""
    old, made = _submodule(net, name), nn.Sequential(*stages)
    weight = old._parameters.get("weight")
    widths = {setting: getattr(stages[end], setting, None) for end, settings in ENDS.items() for setting in settings}
    other = [f"{key} {value}" for key, value in widths.items() if value not in (None, getattr(old, key, value))]
    if weight is None or weight.ndim != stages[0].get_parameter("weight").ndim or other:
        raise WrongModel(f"{name or 'it'} is a {old}, and the file holds factors of {other or 'another layer'}")
    for setting, value in vars(old).items():
        if not setting.startswith("_") and isinstance(value, (int, str, tuple)):
            setattr(made, setting, value)
    if not name:
        return made
    _submodule(net, name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = made
    return net


def described(
    packed: Mapping[str, Mapping[str, int]], factors: Mapping[str, Any], rounded: Mapping[str, Any]
) -> dict[str, str]:
    """The metadata of a file.

    Args:
        packed: name of a parameter -> bits, lowest and axis.
        factors: name of a layer -> kind and arguments of every stage.
        rounded: name of a layer -> scale, zero point and bits of its inputs.
    """
    entries = {"packed": packed, "factors": factors, "rounded": rounded}
    return {"format": FORMAT, "layers": json.dumps(entries, separators=(",", ":"))}
